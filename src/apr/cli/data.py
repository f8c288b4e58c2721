"""`apr data`: the public benchmark files; the verbs on training data are in `training_data`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from apr.cli import training_data


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(
        no_args_is_help=True,
        help="Benchmark files: what there is, and fetch it. Training data: make, check, split.",
    )
    verbs.command("list", help="The benchmark files apr knows, and which are here.")(list_data)
    verbs.command("pull", help="Fetch a benchmark's files, checked against their checksum.")(pull)
    training_data.register(verbs)
    app.add_typer(verbs, name="data")


def list_data(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    from apr.hub.data_files import cached_path, describe
    from apr.hub.data_registry import DATASETS

    if as_json:
        print(json.dumps({"data": [describe(dataset) for dataset in DATASETS]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "rows", "licence", "here", "made by")
    table.columns[0].no_wrap = True
    for dataset in DATASETS:
        here = all(cached_path(file).is_file() for file in dataset.files)
        table.add_row(
            dataset.label, str(dataset.rows), dataset.licence, "yes" if here else "", dataset.paper
        )
    Console().print(table)


def pull(
    name: str = typer.Argument(
        help="As in `apr data list`; the version may be left out. Several: evalplus, infilling."
    ),
    source: Path = typer.Option(
        None, "--from", help="A copy on this disk, or a folder that holds it."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.eval.benchmarks import ALL, GROUPS
    from apr.hub.data_files import describe, pull_data
    from apr.hub.data_registry import find_dataset

    names = GROUPS.get(name, (name,)) if name != ALL else (name,)
    found = [pull_data(find_dataset(each), source) for each in names]
    if as_json:
        shown = [{**describe(each.dataset), "from_cache": each.from_cache} for each in found]
        print(json.dumps({"data": shown} if name in GROUPS else shown[0]))
        return
    for pulled in found:
        for path in pulled.paths:
            print(path)
        known = ", already in the cache" if pulled.from_cache else ""
        print(f"{pulled.dataset.label}, {pulled.dataset.rows} rows{known}")
        print(f"licence: {pulled.dataset.licence}")
