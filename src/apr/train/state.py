"""Checkpoints of a run: written whole or not at all, so that a killed run goes on exactly."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from apr.checkpoint import CheckpointWriter
from apr.checkpoint.safetensors_folder import SafetensorsSource
from apr.checkpoint.source import read_json_object
from apr.common.errors import AprError

STATE_FILE, TENSORS = "state.json", "state"
_RNG = "rng.cpu"


@dataclass
class Progress:
    """Where a run is. step: optimizer steps done. epoch, position: the next batch of the data, in
    micro-batches. tokens: seen; best_loss: of evaluations, nats per token. smoothed, lowest: of
    the training loss. logged: lines of metrics. seconds: of training, over all its sessions.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_epoch: int | None = None
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
            "start the run anew with --force",
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
