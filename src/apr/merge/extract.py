"""A full fine-tune as a LoRA adapter of its base: the best low-rank approximation of each delta."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint import CheckpointWriter
from apr.checkpoint.adapter import CONFIG_FILE
from apr.checkpoint.model_folder import refuse_existing
from apr.common.errors import AprError, UsageError
from apr.common.progress import ByteProgress
from apr.kernels.cpu.threads import default_threads
from apr.merge.inputs import ModelInput, layer_of, missing, open_input
from apr.merge.merge_plan import EMBEDDING, OUTPUT_LAYER
from apr.merge.operands import Operands, gram_matrix

# Up to this size the decomposition is exact; above, randomized, with so many extra columns and
# passes that its error is within a percent of the best one's.
EXACT_BELOW, OVERSAMPLING, PASSES = 512, 16, 4


@dataclass(frozen=True)
class LayerError:
    """error: |delta - B A| / |delta|, Frobenius norms. change: |delta| / |base|."""

    name: str
    error: float
    change: float


@dataclass(frozen=True)
class ExtractReport:
    """folder: the adapter. layers: what it holds. left_out: tensors that changed but are not in it,
    with their relative change. energy: part of all deltas' squared norm that is kept.
    """

    folder: Path
    rank: int
    layers: tuple[LayerError, ...]
    left_out: tuple[tuple[str, float], ...]
    energy: float
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "rank": self.rank,
            "layers": [vars(layer) for layer in self.layers],
            "left_out": [list(pair) for pair in self.left_out],
            "energy": self.energy,
            "nbytes": self.nbytes,
        }


def low_rank(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B (out, r), A (r, in)), fp32, B A the best approximation of rank r (Eckart & Young 1936).

    Each carries the square roots of the singular values. Large matrices: the randomized range
    finder with power iteration of Halko, Martinsson & Tropp 2011, algorithm 4.4.
    """
    rank = min(rank, *delta.shape)
    columns = rank + OVERSAMPLING
    if min(delta.shape) <= max(EXACT_BELOW, columns):
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        basis = delta @ torch.randn(delta.shape[1], columns, generator=generator)
        for _ in range(PASSES):
            basis, _ = torch.linalg.qr(delta.T @ torch.linalg.qr(basis)[0])
            basis = delta @ basis
        basis, _ = torch.linalg.qr(basis)
        small, s, v = torch.linalg.svd(basis.T @ delta, full_matrices=False)
        u = basis @ small
    root = s[:rank].clamp(min=0).sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def extract_lora(
    finetuned: str,
    base: str,
    folder: str | Path,
    rank: int,
    *,
    include_embeddings: bool = False,
    force: bool = False,
    offline: bool = False,
    progress: bool = True,
) -> ExtractReport:
    """Write a PEFT adapter that turns `base` into nearly `finetuned`, or nothing.

    rank: of every linear layer (lora_alpha is the same, so the scaling is 1). include_embeddings:
    save embedding and output layer whole, as modules_to_save. Raises UsageError (rank, models of
    other shapes), AprError (nothing changed, full disk).
    """
    if rank < 1:
        raise UsageError(f"`rank` is {rank}", "it must be 1 or more")
    target = Path(folder).expanduser()
    if not force:
        refuse_existing(target)
    tuned = open_input(finetuned, offline=offline, progress=progress)
    original = open_input(base, offline=offline, progress=progress)
    names = [name for name in tuned.stored if tuned.is_float(name)]
    _check_shapes(tuned, original, names)
    work = _Extraction(tuned, original, rank, include_embeddings)
    total = sum(tuned.nbytes(name) for name in names)
    with (
        CheckpointWriter(target, overwrite=force, stem="adapter_model") as writer,
        ByteProgress("extracting", total, progress) as bar,
        ThreadPoolExecutor(
            default_threads(), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        for name, tensors in zip(names, pool.map(work.one, names), strict=True):
            for key, tensor in tensors.items():
                writer.add(key, tensor)
                work.nbytes += tensor.nbytes
            bar.advance(tuned.nbytes(name))
        if not work.modules:
            raise AprError(f"{finetuned} does not differ from {base} in any linear layer")
        config = _config(base, rank, sorted(work.modules), sorted(work.saved))
        writer.add_file(CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    energy = 1 - work.lost / work.energy if work.energy else 1.0
    return ExtractReport(
        target, rank, tuple(work.layers), tuple(work.left_out), energy, work.nbytes
    )


class _Extraction:
    """What is learned tensor by tensor."""

    def __init__(self, tuned: ModelInput, base: ModelInput, rank: int, embeddings: bool) -> None:
        self._tuned, self._base, self._rank, self._embeddings = tuned, base, rank, embeddings
        self.layers: list[LayerError] = []
        self.left_out: list[tuple[str, float]] = []
        self.modules: set[str] = set()
        self.saved: set[str] = set()
        self.energy = self.lost = 0.0
        self.nbytes = 0

    def one(self, name: str) -> dict[str, torch.Tensor]:
        """The adapter's tensors for one of the model's."""
        tuned, base = self._tuned.reader(name), self._base.reader(name)
        shape = self._tuned.shape(name)
        x = Operands(name, shape, (tuned,), base)
        size = gram_matrix(x)[0, 0] ** 0.5
        if size == 0:
            return {}
        whole = gram_matrix(replace(x, models=(base,), base=None))[0, 0] ** 0.5
        change = size / max(whole, 1e-30)
        module = name.removesuffix(".weight")
        if name in (EMBEDDING, OUTPUT_LAYER) and self._embeddings:
            self.saved.add(module.rpartition(".")[2])
            return {f"base_model.model.{name}": tuned(0, x.count).view(shape)}
        if len(shape) != 2 or layer_of(name) is None:
            self.left_out.append((name, change))
            return {}
        delta = (tuned(0, x.count).float() - base(0, x.count).float()).view(shape)
        b, a = low_rank(delta, self._rank)
        lost = float(torch.linalg.vector_norm(delta - b @ a))
        self.layers.append(LayerError(name, lost / size, change))
        self.modules.add(module.rpartition(".")[2])
        self.energy += size**2
        self.lost += lost**2
        key = f"base_model.model.{module}"
        return {f"{key}.lora_A.weight": a.contiguous(), f"{key}.lora_B.weight": b.contiguous()}


def _check_shapes(tuned: ModelInput, base: ModelInput, names: list[str]) -> None:
    for name in names:
        if name not in base.stored:
            raise missing(base, name)
        if base.shape(name) != tuned.shape(name):
            raise UsageError(
                f"{name} is {tuned.shape(name)} in {tuned.label} and {base.shape(name)} in"
                f" {base.label}",
                "`base_model` is the model the fine-tune started from",
            )


def _config(base: str, rank: int, modules: list[str], saved: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.removeprefix("hf://"),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": modules,
        "modules_to_save": saved or None,
        "inference_mode": True,
    }
