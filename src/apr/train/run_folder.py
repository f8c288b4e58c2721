"""The folder of a training run: begun, gone on with, cleared, and given its results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apr.checkpoint.adapter import CONFIG_FILE
from apr.checkpoint.model_manifest import MANIFEST_NAME
from apr.common.errors import AprError, UsageError
from apr.train.loop import CHECKPOINTS

RUN_FILE = "run.json"
SCORES = "scores"  # the folder of what `apr.train.scores` runs


def open_run(target: Path, request: dict[str, Any], force: bool) -> None:
    """Make the folder of a run, or find the same run in it.

    Raises UsageError where it holds something else, or the same run already at its end, AprError
    where it cannot be written.
    """
    record = target / RUN_FILE
    if target.is_file():
        raise UsageError(f"{target} is a file", "name a folder")
    if target.is_dir() and any(target.iterdir()) and not record.is_file():
        raise UsageError(f"{target} exists and is no training run", "choose another folder")
    if record.is_file():
        if force:
            _clear(target)
        else:
            _check_same(target, json.loads(record.read_text()), request)
            return
    temporary = record.with_name(record.name + ".new")
    try:
        target.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(request, indent=1) + "\n")
        temporary.replace(record)
    except OSError as error:
        raise AprError(
            f"{target} cannot be written: {error.strerror}", "choose another folder"
        ) from None


def is_complete(target: Path, request: dict[str, Any]) -> bool:
    """Whether a folder holds the very run that is asked for, at its end."""
    record = target / RUN_FILE
    if not (record.is_file() and (target / MANIFEST_NAME).is_file()):
        return False
    return json.loads(record.read_text()) == request


def _check_same(target: Path, before: dict[str, Any], request: dict[str, Any]) -> None:
    old, new = dict(_flat(before)), dict(_flat(request))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        raise UsageError(
            f"{target} holds a run with other settings: {key} was {old.get(key)}, now"
            f" {new.get(key)}",
            "choose another folder, or --force to begin anew",
        )
    if (target / MANIFEST_NAME).is_file():
        raise UsageError(
            f"{target} holds this run, and it is complete", "--force trains it once more"
        )


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _clear(target: Path) -> None:
    """Remove what a run writes, and nothing else."""
    before = json.loads((target / RUN_FILE).read_text())
    # A run of several adapters has a request, and a folder, for each.
    several = [n for n, asked in before.items() if isinstance(asked, dict) and "data" in asked]
    for name in (CHECKPOINTS, SCORES, "best", "last", *several):
        shutil.rmtree(target / name, ignore_errors=True)
    for path in target.iterdir():
        if path.is_file():
            path.unlink()


def publish(source: Path, target: Path) -> None:
    """Put a saved model's files in `target` as well (hard links where the disk has them).

    The file that makes a folder an adapter or a model comes last.
    """
    last = (CONFIG_FILE, "config.json")
    paths = sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: p.name in last)
    for path in paths:
        goal = target / path.relative_to(source)
        goal.parent.mkdir(parents=True, exist_ok=True)
        temporary = goal.with_name(f".{goal.name}.new")
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        temporary.replace(goal)
