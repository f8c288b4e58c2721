"""`apr doctor`: what this machine offers."""

from __future__ import annotations

import json

import typer


def register(app: typer.Typer) -> None:
    app.command("doctor", help="Show what this machine offers: sandbox, processor, memory, cache.")(
        doctor
    )


def doctor(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    from apr.eval.run.machine import describe, examine

    report = examine()
    print(json.dumps(report) if as_json else "\n".join(describe(report)))
