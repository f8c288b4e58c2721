"""`apr prune`: settings to a pruned model folder, or to nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from apr.calibrate.stream import ModelStream, layer_number, with_number
from apr.calibrate.windows import Calibration, calibration
from apr.checkpoint import CheckpointWriter, open_checkpoint
from apr.checkpoint.model_folder import (
    MANIFEST_NAME,
    exact_source,
    folder_manifest,
    refuse_existing,
    refuse_overlap,
)
from apr.common.errors import UsageError
from apr.common.memory import (
    peak_process_memory,
    process_memory,
    return_free_memory,
    return_large_blocks,
)
from apr.engine.runners.runtime import pick_device, pick_product_dtype
from apr.hub import Pulled, pull
from apr.hub.checksums import file_records
from apr.model.config import ModelConfig
from apr.model.load import expected_shapes
from apr.model.rope import short_context
from apr.prune.layers import BATCH_TOKENS, prune_layers
from apr.prune.methods import MatrixPruner
from apr.prune.output import Layout, PrunedOutput, layout_of
from apr.prune.scores import check_divides
from apr.prune.settings import PruneSettings
from apr.prune.shrink import layers_to_keep, shrink_layers
from apr.prune.smaller import fewer_layers, smaller_json, smaller_layers, with_layers
from apr.prune.width import narrower, plan_narrowing, write_narrow
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
            "after": self._after(),
            "calibration": self.calibration.to_json() if self.calibration else None,
            "dtype": str(self.stream.dtype).removeprefix("torch."),
            "device": str(self.stream.device),
            "peak_memory_bytes": process_memory() + self._working_bytes(),
            "notes": list(self.notes),
        }

    def _after(self) -> dict[str, int] | None:
        """Sizes of a model that shrinks."""
        config, settings = self.stream.config, self.settings
        if settings.method == "structured":
            config = smaller_layers(config, settings.sparsity, settings.kv_groups)
        elif settings.method == "depth":
            layers = config.num_layers - fewer_layers(config, settings.sparsity)
            config = replace(config, num_layers=layers)
        elif settings.method == "width":
            config = narrower(config, settings.sparsity)
        else:
            return None
        return {
            "layers": config.num_layers,
            "hidden": config.hidden_size,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "channels": config.intermediate_size,
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
        with_hessian = self.settings.method in ("sparsegpt", "structured")
        hessian = 4 * 4 * largest**2 if with_hessian else 0
        return held + 2 * layer * width + batch + hessian


@dataclass(frozen=True)
class PruneReport:
    """sparsity: zeros among the weights of the layers' matrices, or the part of them that is gone;
    of_all: of all parameters, which embeddings and norms are part of. layers: sparsity of each.
    damping: of matrices whose Hessian needed more than asked for. input_bytes, nbytes: of all
    tensors before and after. shapes_kept: whether weights became zero rather than less.
    """

    folder: Path
    method: str
    pattern: str | None
    nominal: float
    sparsity: float
    of_all: float
    layers: tuple[float, ...]
    input_parameters: int
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
    where = pick_device(settings.device)
    kind = pick_product_dtype(settings.dtype, where)
    pulled = pull(settings.model, offline=offline, progress=progress)
    stream = ModelStream(open_checkpoint(pulled.path), kind, where)
    layout = layout_of(stream)
    if settings.pattern is not None:
        for name in stream.matrices(0):
            check_divides(settings.pattern, stream.shapes[name][1], name)
    if settings.method == "structured":
        smaller_layers(stream.config, settings.sparsity, settings.kv_groups)
    if settings.method == "depth":
        fewer_layers(stream.config, settings.sparsity)
    if settings.method == "width":
        narrower(stream.config, settings.sparsity)
    if not (settings.runs_layers or needs_calibration):
        return PreparedPrune(settings, pulled, stream, layout, None)
    context = short_context(stream.config)
    if settings.length > context:
        raise UsageError(
            f"--sequence-length {settings.length} is more than the {context} tokens the model can"
            " see"
        )
    # A batch's activations stay on the heap, where those of the next fit.
    return_large_blocks(16 << 20)
    drawn = calibration(
        settings.calibration,
        load_tokenizer(pulled.path),
        settings.sequences,
        settings.length,
        vocab_size=stream.config.vocab_size,
        seed=settings.seed,
        data=data,
    )
    return_free_memory()  # what a tokenizer leaves is as much as a small model
    return PreparedPrune(settings, pulled, stream, layout, drawn)


@dataclass(frozen=True)
class Outline:
    """What is written. config: of the output. layers: those kept, by their old numbers.
    influences: of all layers, where these were measured.
    """

    config: ModelConfig
    layers: tuple[int, ...]
    influences: tuple[float, ...] = ()

    def shapes(self, stream: ModelStream) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors that are written, by their names in the input; a stored copy of
        tied embeddings is one of them.
        """
        found = {}
        for name, shape in expected_shapes(self.config).items():
            number = layer_number(name)
            found[name if number is None else with_number(name, self.layers[number])] = shape
        tied = "lm_head.weight"
        if tied in stream.stored and tied not in found:
            found[tied] = found["model.embed_tokens.weight"]
        return found


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
    stream, pruner = prepared.stream, MatrixPruner(prepared.settings)
    outline = _outline(prepared, progress)
    shapes = outline.shapes(stream)
    with CheckpointWriter(target, max_shard_bytes, overwrite=force) as writer:
        output = PrunedOutput(stream, writer, prepared.layout)
        output.reserve(shapes, outline.layers if prepared.settings.method == "depth" else None)
        layers = tuple(_write_layers(prepared, outline, pruner, output, progress))
        pruned_zeros = output.zeros
        output.put_others()
        notes = (*prepared.notes, *_damping_notes(pruner))
        for name, content in _files(prepared, outline, layers, pruner, output, notes).items():
            writer.add_file(name, content)
    matrices = prepared.matrices()
    before = sum(prod(stream.shapes[name]) for name in matrices)
    gone = before - sum(prod(shapes[name]) for name in matrices if name in shapes)
    everything = sum(map(prod, stream.shapes.values()))
    left = sum(map(prod, expected_shapes(outline.config).values()))
    infos = [stream.checkpoint.tensors.info(name) for name in stream.stored.values()]
    shrinks = prepared.settings.shrinks
    return PruneReport(
        folder=target,
        method=prepared.settings.method,
        pattern=str(prepared.settings.pattern) if prepared.settings.pattern else None,
        nominal=prepared.settings.sparsity,
        sparsity=(gone if shrinks else pruned_zeros) / before,
        of_all=(everything - left) / everything if shrinks else output.zeros / output.parameters,
        layers=layers,
        input_parameters=everything,
        parameters=left,
        input_bytes=sum(info.nbytes for info in infos),
        nbytes=output.nbytes,
        shapes_kept=not shrinks,
        seconds=time.perf_counter() - begin,
        peak_memory_bytes=peak_process_memory(),
        damping=pruner.damping,
        notes=notes,
    )


def _outline(prepared: PreparedPrune, progress: bool) -> Outline:
    """Sizes and layers of the output; for depth, the layers are measured here."""
    stream, settings = prepared.stream, prepared.settings
    every = tuple(range(stream.config.num_layers))
    if settings.method == "depth":
        assert prepared.calibration is not None
        drop = fewer_layers(stream.config, settings.sparsity)
        ids = prepared.calibration.ids
        kept, influences = layers_to_keep(stream, settings, ids, drop, progress)
        return Outline(with_layers(stream.config, kept), tuple(kept), tuple(influences))
    if settings.method == "structured":
        config = smaller_layers(stream.config, settings.sparsity, settings.kv_groups)
        return Outline(config, every)
    if settings.method == "width":
        return Outline(narrower(stream.config, settings.sparsity), every)
    return Outline(stream.config, every)


def _write_layers(
    prepared: PreparedPrune,
    outline: Outline,
    pruner: MatrixPruner,
    output: PrunedOutput,
    progress: bool,
) -> Iterator[float]:
    """Write what changes; the part taken from each layer of the input."""
    stream, settings = prepared.stream, prepared.settings
    ids = prepared.calibration.ids if prepared.calibration else None
    if settings.method == "depth":
        kept = set(outline.layers)
        yield from (float(index not in kept) for index in range(stream.config.num_layers))
    elif settings.method == "width":
        assert ids is not None
        size = outline.config.hidden_size
        write_narrow(stream, plan_narrowing(stream, settings, ids, size, progress), output)
        taken = 1 - size / stream.config.hidden_size
        yield from [taken] * stream.config.num_layers
    elif settings.method == "structured":
        assert ids is not None
        yield from shrink_layers(
            stream, settings, ids, outline.config, output, pruner.damping, progress
        )
    else:
        yield from prune_layers(stream, settings, ids, pruner, output, progress)


def _files(
    prepared: PreparedPrune,
    outline: Outline,
    layers: tuple[float, ...],
    pruner: MatrixPruner,
    output: PrunedOutput,
    notes: tuple[str, ...],
) -> dict[str, bytes]:
    """Everything beside the weights, the manifest last."""
    files, settings = dict(prepared.layout.files), prepared.settings
    if settings.shrinks:
        old = prepared.stream.config
        files["config.json"] = smaller_json(
            files["config.json"], old, outline.config, outline.layers
        )
    files[MANIFEST_NAME] = folder_manifest(
        "prune",
        source=exact_source(prepared.pulled),
        inputs=file_records(prepared.pulled),
        settings={
            **settings.to_json(),
            "calibration": prepared.calibration.to_json() if prepared.calibration else None,
            "layer_sparsity": layers,
            "layer_influence": outline.influences,
            "damping_raised": pruner.damping,
        },
        tensors=output.sums,
        files=files,
        notes=notes,
    )
    return files


def check_target(prepared: PreparedPrune, target: Path, force: bool) -> None:
    """Raises UsageError when the folder is in the way, or holds the input."""
    if not force:
        refuse_existing(target)
    refuse_overlap(target, prepared.pulled.path)


def _damping_notes(pruner: MatrixPruner) -> list[str]:
    if not pruner.damping:
        return []
    most, of = max(pruner.damping.values()), len(pruner.damping)
    return [f"SparseGPT raised the damping to at most {most:g} for {of} matrices (manifest)"]
