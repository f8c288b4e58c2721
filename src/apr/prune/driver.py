"""`apr prune`: settings to a pruned model folder, or to nothing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from apr.checkpoint import CheckpointWriter, open_checkpoint
from apr.convert.folders import exact_source, refuse_existing, refuse_overlap
from apr.convert.manifest import MANIFEST_NAME, folder_manifest
from apr.errors import UsageError
from apr.hub import Pulled, pull
from apr.hub.checksums import file_records
from apr.model.rope import short_context
from apr.model.runtime import pick_device, pick_dtype
from apr.prune.calibration import Calibration, calibration
from apr.prune.layers import BATCH_TOKENS, prune_layers
from apr.prune.methods import MatrixPruner
from apr.prune.output import Layout, PrunedOutput, layout_of
from apr.prune.scores import check_divides
from apr.prune.settings import PruneSettings
from apr.prune.stream import ModelStream
from apr.text import load_tokenizer


@dataclass(frozen=True)
class PreparedPrune:
    """An open and checked model with its calibration; no weight has been read.

    calibration: None for methods that need none.
    """

    settings: PruneSettings
    pulled: Pulled
    stream: ModelStream
    layout: Layout
    calibration: Calibration | None

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.layout.notes, *(self.calibration.notes if self.calibration else ()))

    def matrices(self) -> list[str]:
        """Names of all matrices that will be pruned."""
        layers = range(self.stream.config.num_layers)
        return [name for index in layers for name in self.stream.matrices(index)]

    def summary(self) -> dict[str, Any]:
        """What will happen, as `--plan` shows it; sizes in bytes."""
        counts = {name: prod(shape) for name, shape in self.stream.shapes.items()}
        names = self.matrices()
        return {
            "method": self.settings.method,
            "sparsity": self.settings.sparsity,
            "pattern": str(self.settings.pattern) if self.settings.pattern else None,
            "allocation": self.settings.allocation,
            "model": self.settings.model,
            "layers": self.stream.config.num_layers,
            "matrices": len(names),
            "prunable_parameters": sum(counts[name] for name in names),
            "parameters": sum(counts.values()),
            "calibration": self.calibration.to_json() if self.calibration else None,
            "dtype": str(self.stream.dtype).removeprefix("torch."),
            "device": str(self.stream.device),
            "peak_memory_bytes": psutil.Process().memory_info().rss + self._working_bytes(),
            "notes": list(self.notes),
        }

    def _working_bytes(self) -> int:
        """Roughly: a layer, its inputs and outputs of attention, a batch inside it, a Hessian."""
        config, width = self.stream.config, self.stream.dtype.itemsize
        layer = sum(prod(self.stream.shapes[n]) for n in self.stream.layer_names(0))
        if self.calibration is None:
            return 12 * max(prod(self.stream.shapes[n]) for n in self.matrices())
        heads = config.num_heads * config.head_dim
        held = self.calibration.ids.numel() * (config.hidden_size + heads) * width
        batch = BATCH_TOKENS * (4 * config.intermediate_size + 4 * config.hidden_size) * 4
        largest = max(config.hidden_size, heads, config.intermediate_size)
        hessian = 4 * 4 * largest**2 if self.settings.method == "sparsegpt" else 0
        return held + 2 * layer * width + batch + hessian


@dataclass(frozen=True)
class PruneReport:
    """sparsity: zeros among the pruned matrices' weights; of_all: among all parameters, which
    embeddings and norms are part of. layers: sparsity of each. damping: of matrices whose Hessian
    needed more than asked for. input_bytes, nbytes: of all tensors before and after. shapes_kept:
    whether weights became zero rather than less.
    """

    folder: Path
    method: str
    pattern: str | None
    nominal: float
    sparsity: float
    of_all: float
    layers: tuple[float, ...]
    parameters: int
    input_bytes: int
    nbytes: int
    shapes_kept: bool
    seconds: float
    peak_memory_bytes: int
    damping: dict[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def prepare(
    settings: PruneSettings,
    *,
    data: Path | None = None,
    offline: bool = False,
    progress: bool = True,
    needs_calibration: bool = False,
) -> PreparedPrune:
    """Open the model, check that it can be pruned so, draw the calibration.

    needs_calibration: also where the method needs none (`analyze`).

    Raises UsageError (unknown model, a pattern that does not divide a row, calibration shorter
    than one sequence), AprError (damaged files, weights of types that cannot be pruned).
    """
    where, kind = pick_device(settings.device), pick_dtype(settings.dtype)
    pulled = pull(settings.model, offline=offline, progress=progress)
    stream = ModelStream(open_checkpoint(pulled.path), kind, where)
    layout = layout_of(stream)
    if settings.pattern is not None:
        for name in stream.matrices(0):
            check_divides(settings.pattern, stream.shapes[name][1], name)
    if not (settings.runs_layers or needs_calibration):
        return PreparedPrune(settings, pulled, stream, layout, None)
    context = short_context(stream.config)
    if settings.length > context:
        raise UsageError(
            f"--sequence-length {settings.length} is more than the {context} tokens the model can"
            " see"
        )
    drawn = calibration(
        settings.calibration,
        load_tokenizer(pulled.path),
        settings.sequences,
        settings.length,
        vocab_size=stream.config.vocab_size,
        seed=settings.seed,
        data=data,
    )
    return PreparedPrune(settings, pulled, stream, layout, drawn)


def run_prune(
    prepared: PreparedPrune,
    folder: str | Path,
    *,
    force: bool = False,
    max_shard_bytes: float = 5e9,
    progress: bool = True,
) -> PruneReport:
    """Write the pruned model, or nothing.

    force: replace a model that is in the folder. Raises UsageError (the folder is in the way),
    AprError (activations that are not finite, a Hessian no damping helps, a full disk).
    """
    begin, target = time.perf_counter(), Path(folder).expanduser()
    check_target(prepared, target, force)
    stream, settings = prepared.stream, prepared.settings
    pruner = MatrixPruner(settings)
    with CheckpointWriter(target, max_shard_bytes, overwrite=force) as writer:
        output = PrunedOutput(stream, writer, prepared.layout)
        output.reserve(_written_shapes(stream))
        ids = prepared.calibration.ids if prepared.calibration else None
        layers = tuple(prune_layers(stream, settings, ids, pruner, output, progress))
        pruned_zeros = output.zeros
        output.put_others()
        notes = (*prepared.notes, *_damping_notes(pruner))
        files = dict(prepared.layout.files)
        files[MANIFEST_NAME] = folder_manifest(
            "prune",
            source=exact_source(prepared.pulled),
            inputs=file_records(prepared.pulled),
            settings={
                **settings.to_json(),
                "calibration": prepared.calibration.to_json() if prepared.calibration else None,
                "layer_sparsity": layers,
                "damping_raised": pruner.damping,
            },
            tensors=output.sums,
            files=files,
            notes=notes,
        )
        for name, content in files.items():
            writer.add_file(name, content)
    prunable = sum(prod(stream.shapes[name]) for name in prepared.matrices())
    infos = [stream.checkpoint.tensors.info(name) for name in stream.stored.values()]
    return PruneReport(
        folder=target,
        method=settings.method,
        pattern=str(settings.pattern) if settings.pattern else None,
        nominal=settings.sparsity,
        sparsity=pruned_zeros / prunable,
        of_all=output.zeros / output.parameters,
        layers=layers,
        parameters=output.parameters,
        input_bytes=sum(info.nbytes for info in infos),
        nbytes=output.nbytes,
        shapes_kept=True,
        seconds=time.perf_counter() - begin,
        peak_memory_bytes=peak_memory(),
        damping=pruner.damping,
        notes=notes,
    )


def check_target(prepared: PreparedPrune, target: Path, force: bool) -> None:
    """Raises UsageError when the folder is in the way, or holds the input."""
    if not force:
        refuse_existing(target)
    refuse_overlap(target, prepared.pulled.path)


def peak_memory() -> int:
    """Most bytes this process had in memory at one time."""
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _written_shapes(stream: ModelStream) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that are written; a stored copy of tied embeddings is one of them."""
    shapes = dict(stream.shapes)
    tied = "lm_head.weight"
    if tied in stream.stored and tied not in shapes:
        shapes[tied] = shapes["model.embed_tokens.weight"]
    return shapes


def _damping_notes(pruner: MatrixPruner) -> list[str]:
    if not pruner.damping:
        return []
    most, of = max(pruner.damping.values()), len(pruner.damping)
    return [f"SparseGPT raised the damping to at most {most:g} for {of} matrices (manifest)"]
