"""`apr data`: the public benchmark files, and training data made, checked, divided."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apr.cli.options import JSON_HELP
from apr.common.settings import option
from apr.data.pair_settings import PairSettings
from apr.data.prep_settings import PrepSettings
from apr.data.response_settings import ResponseSettings

if TYPE_CHECKING:
    from apr.data.decontaminate import Decontamination
    from apr.data.quality import Quality

DATA_HELP = "Rows: .jsonl, .jsonl.gz, .json, .csv or .parquet."
COLUMNS = Annotated[
    str,
    typer.Option(
        metavar="NAME=COLUMN,...", help="The data's columns, as prompt=QUESTION,response=ANSWER."
    ),
]
NEAR_HELP = "Jaccard similarity, of runs of 5 words, from which rows are near-duplicates."


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(
        no_args_is_help=True,
        help="Benchmark files: what there is, and fetch it. Training data: make, check, split.",
    )
    verbs.command("list", help="The benchmark files apr knows, and which are here.")(list_data)
    verbs.command("pull", help="Fetch a benchmark's files, checked against their checksum.")(pull)
    for verb in (prep, decontaminate, quality, split, pairs, responses):
        verbs.command(verb.__name__)(verb)
    app.add_typer(verbs, name="data")


def list_data(as_json: bool = typer.Option(False, "--json", help=JSON_HELP)) -> None:
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
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
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


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What pairs are made of, and where they go."""

    paths: tuple[Path, ...] = option(
        (),
        ".py files, folders, or corpora of sources (.jsonl, .parquet, ...).",
        argument=True,
        repeated=True,
    )
    output: Path = option(..., "File to write, .jsonl or .jsonl.gz.", short="-o")
    stdlib: bool = option(False, "Also this Python's standard library.")
    installed: bool = option(False, "Also all installed packages.")
    as_json: bool = option(False, JSON_HELP, flag="json")


def prep(sources: Sources, settings: PrepSettings) -> None:
    """Make instruction and response pairs from Python sources with docstrings."""
    from apr.calibrate.texts import source_files
    from apr.data.prep import write_pairs

    files = source_files(sources.paths, stdlib=sources.stdlib, installed=sources.installed)
    counts = write_pairs(files, sources.output, settings).to_json()
    if sources.as_json:
        print(json.dumps({"output": str(sources.output), **counts}))
        return
    print(sources.output)
    print(
        f"{counts['kept']} pairs from {counts['definitions']} definitions, {counts['files']} files"
    )
    for reason, number in counts["dropped"].items():
        print(f"dropped: {number:6}  {reason}")


def decontaminate(
    data: Path = typer.Argument(help=DATA_HELP),
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REFERENCE]...", help="Further references."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Benchmark (as in `apr data list`), BENCHMARK=FILE, or a file of rows."),
    ] = None,
    ngram: int = typer.Option(10, "--ngram", help="Words in a run that counts as shared."),
    threshold: float = typer.Option(
        0.5, "--threshold", help="Part of a reference text that a row repeats; 0: any shared run."
    ),
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the clean rows here.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write every finding here, as JSON.")
    ] = None,
    columns: COLUMNS = "",
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Find rows that repeat a benchmark; exit code 1 if there are any and no -o leaves them out."""
    from apr.data.decontaminate import decontaminate as work
    from apr.data.decontaminate import write_report

    names = [name for text in [*(reference or ()), *(more or ())] for name in text.split(",")]
    result = work(
        data, names, ngram=ngram, threshold=threshold, output=output, columns=_listed(columns)
    )
    if report is not None:
        write_report(result, report)
    print(json.dumps(result.to_json())) if as_json else _show_findings(result)
    if result.found and output is None:
        raise typer.Exit(1)


def quality(
    data: Path = typer.Argument(help=DATA_HELP),
    near: float = typer.Option(0.7, "--near", help=NEAR_HELP),
    scores: Annotated[
        Path | None, typer.Option("--scores", help="Write each row's score and problems here.")
    ] = None,
    min_score: float = typer.Option(
        0.0, "--min-score", help="Exit code 1 if the data's score is lower."
    ),
    columns: COLUMNS = "",
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Score data from 0 to 100: code that does not parse, lint, duplicates, empty answers."""
    from apr.common.errors import UsageError
    from apr.data.quality import measure_quality

    if not 0 <= min_score <= 100:
        raise UsageError(f"--min-score is {min_score:g}", "from 0 to 100")

    result = measure_quality(data, threshold=near, scores=scores, columns=_listed(columns))
    print(json.dumps(result.to_json())) if as_json else _show_quality(result)
    if result.score < min_score:
        raise typer.Exit(1)


def split(
    data: Path = typer.Argument(help=DATA_HELP),
    output: Path = typer.Option(..., "-o", "--output", help="Folder for the parts."),
    share: float = typer.Option(0.05, "--eval", help="Part of the rows for evaluation."),
    by: str | None = typer.Option(None, "--by", help="Field whose values both parts represent."),
    near: float = typer.Option(0.7, "--near", help=NEAR_HELP),
    seed: int = typer.Option(0, "--seed", help="The same seed divides the same way."),
    columns: COLUMNS = "",
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Divide data into train.jsonl and eval.jsonl; near-duplicates stay on one side."""
    from apr.data.split import split_data

    result = split_data(
        data, output, share=share, by=by, seed=seed, threshold=near, columns=_listed(columns)
    )
    if as_json:
        print(json.dumps(result.to_json()))
        return
    for name, rows in (("train", result.train), ("eval", result.eval)):
        print(f"{rows:8} rows  {result.files[name]}")
    print(f"{result.groups} groups that stay together, the largest of {result.largest} rows")
    for name, (train, held_out) in result.strata.items():
        print(f"{train:8} + {held_out} of {result.by} {name}")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Where pairs come from and go to."""

    runs: tuple[Path, ...] = option(
        ..., "Folders of runs of apr eval.", argument=True,
        repeated=True,
    )  # fmt: skip
    output: Path = option(..., "File to write, .jsonl or .jsonl.gz.", short="-o")
    as_json: bool = option(False, JSON_HELP, flag="json")


def pairs(runs: Runs, settings: PairSettings) -> None:
    """Make preference pairs of what passed and what failed a task's tests in runs of apr eval."""
    from apr.data.pairs import write_pairs

    counts = write_pairs(runs.runs, runs.output, settings)
    if runs.as_json:
        print(json.dumps({"output": str(runs.output), **counts.to_json()}))
        return
    print(runs.output)
    print(
        f"{counts.pairs} pairs from {counts.samples} samples of {counts.tasks} tasks;"
        f" {counts.one_sided} tasks have samples of one kind only"
    )
    for number, what in (
        (counts.near, "pairs left out: too much alike"),
        (counts.unknown, "samples left out: no verdict"),
        (counts.suspect, "samples left out: suspect"),
        *((number, f"rejected for: {kind}") for kind, number in counts.failures.most_common()),
    ):
        if number:
            print(f"{number:8}  {what}")


def _listed(columns: str) -> list[str]:
    return [entry for entry in columns.split(",") if entry]


def responses(runs: Runs, settings: ResponseSettings) -> None:
    """Make training data of what a model, as a teacher, answered in runs of apr eval."""
    from apr.data.responses import write_responses

    counts = write_responses(runs.runs, runs.output, settings)
    if runs.as_json:
        print(json.dumps({"output": str(runs.output), **counts.to_json()}))
        return
    print(runs.output)
    print(f"{counts.answers} answers of {counts.samples} samples")
    for number, why in (
        (counts.failed, "failed the tests"),
        (counts.unknown, "no verdict"),
        (counts.empty, "no answer"),
        (counts.same, "written already"),
        (counts.over, "more than --per-task"),
    ):
        if number:
            print(f"{number:8}  left out: {why}")


def _show_findings(result: Decontamination) -> None:
    for one in result.found:
        print(f"{one.where}: {one.coverage:.0%} of {one.reference} {one.task}, {one.part}")
        for span in one.spans:
            print(f"    {' '.join(span['text'].split())[:100]}")
    for name, counts in result.references.items():
        print(
            f"{name}: {counts['tasks_found']} of {counts['tasks']} tasks are in the data"
            f" ({counts['texts']} texts, {counts['too_short']} too short to be found)"
        )
    print(
        f"{len(result.found)} of {result.rows} rows repeat at least {result.threshold:.0%} of a"
        f" text; {result.overlapping} share {result.ngram} words in a row"
    )


def _show_quality(result: Quality) -> None:
    lengths = ", ".join(f"{name} {value}" for name, value in result.lengths.items())
    print(f"score {result.score:.1f} of 100: {result.rows} rows, {result.with_code} with Python")
    for kind, rows in result.problems.items():
        print(f"{rows:8} rows  -{result.lost[kind]:.2f}  {kind}")
    print(f"characters of a response: {lengths}")
