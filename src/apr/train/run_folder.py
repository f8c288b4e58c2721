"""The folder of a training run: begun, gone on with, cleared, and given its results.

Its checkpoints are written whole or not at all, so that a killed run goes on exactly.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint import CheckpointWriter
from apr.checkpoint.adapter import CONFIG_FILE
from apr.checkpoint.model_folder import MANIFEST_NAME
from apr.checkpoint.safetensors_folder import SafetensorsSource
from apr.checkpoint.tensors import read_json_object
from apr.common.errors import AprError, UsageError
from apr.common.files import new_file, write_json

RUN_FILE = "run.json"
SCORES, CHECKPOINTS = "scores", "checkpoints"
STATE_FILE, TENSORS = "state.json", "state"
_RNG = "rng.cpu"


def open_run(target: Path, request: dict[str, Any], force: bool) -> bool:
    """Make the folder of a run, or find the same run in it; whether it was there.

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
            return True
    try:
        write_json(record, request)
    except OSError as error:
        raise AprError(
            f"{target} cannot be written: {error.strerror}", "choose another folder"
        ) from None
    return False


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
            "choose another folder, or `force` to begin anew",
        )
    if (target / MANIFEST_NAME).is_file():
        raise UsageError(
            f"{target} holds this run, and it is complete", "`force` trains it once more"
        )


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _clear(target: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in (CHECKPOINTS, SCORES, "best", "last"):
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
        with new_file(goal) as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)


@dataclass
class Progress:
    """Where a run is. step: optimizer steps done. epoch, position: the next batch of the data, in
    micro-batches. tokens: seen; best_loss: of evaluations, nats per token; measured: the step of
    the last one. smoothed, lowest: of the training loss. logged: lines of metrics. seconds: of
    training, over all its sessions.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_epoch: int | None = None
    measured: int | None = None
    smoothed: float | None = None
    lowest: float | None = None
    logged: int = 0
    seconds: float = 0.0


def save_state(root: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Write root/step-N: optimizer and parameters, random numbers, the place in the data; then
    remove older ones, so that at every moment there is a whole one.

    Dropout on a GPU draws from the GPU's generator, which is saved as well.
    """
    older = saved_states(root)
    random = {_RNG: torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            random[f"rng.cuda.{index}"] = state
    folder = root / f"step-{progress.step:08d}"
    with CheckpointWriter(folder, overwrite=True, stem=TENSORS) as writer:
        for name, tensor in {**tensors, **random}.items():
            writer.add(name, tensor)
        text = json.dumps(asdict(progress), indent=1) + "\n"
        writer.add_file(STATE_FILE, text.encode())
    for stale in older:
        if stale != folder:
            shutil.rmtree(stale)


def load_state(folder: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    """What `save_state` wrote; the random generators are set. AprError where it is damaged."""
    values = read_json_object(folder / STATE_FILE)
    try:
        progress = Progress(**values)
    except TypeError:
        raise AprError(
            f"{folder / STATE_FILE} is not a checkpoint of this version of apr",
            "start the run anew with `force`",
        ) from None
    source = SafetensorsSource.from_file(folder / f"{TENSORS}.safetensors")
    tensors = {name: source.get(name) for name in source.names()}
    torch.set_rng_state(tensors.pop(_RNG).clone())
    cuda = [tensors.pop(name) for name in sorted(tensors) if name.startswith("rng.cuda.")]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.clone() for state in cuda])
    return progress, tensors


def saved_states(root: Path) -> list[Path]:
    """Whole checkpoints, the newest last."""
    return sorted(path.parent for path in root.glob(f"step-*/{STATE_FILE}"))
