"""`apr prune`: settings to a pruned model folder, or to nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from apr.calibrate.model_stream import ModelStream, is_matrix
from apr.calibrate.sequences import Calibration, calibration
from apr.calibrate.walk import BATCH_TOKENS
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
from apr.hub.resolve import file_records
from apr.model.config import ModelConfig
from apr.model.load import expected_shapes
from apr.model.rope import short_context
from apr.prune.matrices import chosen_matrices, zero_weights
from apr.prune.prune_methods import Method, method_for
from apr.prune.prune_settings import PruneSettings, names_module
from apr.prune.pruned_folder import Layout, PrunedFolder, layout_of
from apr.prune.smaller import Shrinking, smaller_json
from apr.text import load_tokenizer


@dataclass(frozen=True)
class PreparedPrune:
    """An open and checked model with its calibration; no weight has been read.

    options: the method's own. config: of what is written; which layers are in it may be measured
    later. calibration: None for methods that need none.
    """

    settings: PruneSettings
    method: Method
    options: dict[str, Any]
    config: ModelConfig
    pulled: Pulled
    stream: ModelStream
    layout: Layout
    calibration: Calibration | None

    @property
    def notes(self) -> tuple[str, ...]:
        drawn = self.calibration.notes if self.calibration else ()
        return (*self.layout.notes, *drawn, *self._rounding())

    def _rounding(self) -> list[str]:
        """Why a smaller model loses another part than was asked for, where it does."""
        if self.method.shrink is None:
            return []
        left = sum(prod(s) for n, s in expected_shapes(self.config).items() if is_matrix(n))
        gone = 1 - left / sum(prod(self.stream.shapes[name]) for name in self.matrices())
        if abs(gone - self.settings.part) < 0.005:
            return []
        return [
            f"{100 * gone:.1f} % of the layers' matrices go, not {100 * self.settings.part:g} %:"
            f" {self.method.steps(self.stream.config)}"
        ]

    def matrices(self) -> list[str]:
        """Names of all matrices that will be pruned."""
        layers = range(self.stream.config.num_layers)
        return [name for i in layers for name in chosen_matrices(self.stream, self.settings, i)]

    def summary(self) -> dict[str, Any]:
        """What will happen, as `--plan` shows it; sizes in bytes."""
        counts = {name: prod(shape) for name, shape in self.stream.shapes.items()}
        names = self.matrices()
        return {
            "method": self.settings.method,
            "sparsity": self.settings.part,
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
        """Sizes of a model that gets smaller."""
        config = self.config
        if self.method.shrink is None:
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
        hessian = 4 * 4 * largest**2 if self.method.asks == "Hessians" else 0
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
    method, options = method_for(settings)
    pulled = pull(settings.model, offline=offline, progress=progress)
    stream = ModelStream(open_checkpoint(pulled.path), kind, where)
    layout = layout_of(stream)
    _check_choice(stream, settings)
    if settings.pattern is not None:
        for index in range(stream.config.num_layers):
            for name in chosen_matrices(stream, settings, index):
                settings.pattern.check_divides(stream.shapes[name][1], name)
    config = stream.config
    if method.resize is not None:
        config = method.resize(config, settings.part, options)
    checked = partial(PreparedPrune, settings, method, options, config, pulled, stream, layout)
    if method.asks == "nothing" and settings.allocation != "owl" and not needs_calibration:
        return checked(None)
    context = short_context(stream.config)
    if settings.sequence_length > context:
        raise UsageError(
            f"`sequence_length` {settings.sequence_length} is more than the {context} tokens the"
            " model can see"
        )
    # A batch's activations stay on the heap, where those of the next fit.
    return_large_blocks(16 << 20)
    drawn = calibration(
        settings.calibration,
        load_tokenizer(pulled.path),
        settings.sequences,
        settings.sequence_length,
        vocab_size=stream.config.vocab_size,
        seed=settings.seed,
        data=data,
    )
    return_free_memory()  # what a tokenizer leaves is as much as a small model
    return checked(drawn)


def _check_choice(stream: ModelStream, settings: PruneSettings) -> None:
    """Raises UsageError for layers and names that the model does not have, and for none left."""
    count = stream.config.num_layers
    if settings.layers and max(settings.layers) >= count:
        raise UsageError(
            f"`layers` names layer {max(settings.layers)}; the model has {count}, the last is"
            f" {count - 1}"
        )
    modules = [name.rpartition(".")[0] for name in [*stream.shapes, "lm_head.weight"]]
    for pattern in settings.ignore:
        if not any(names_module(pattern, module) for module in modules):
            known = ", ".join(name.split(".")[-2] for name in stream.matrices(0))
            raise UsageError(f"`ignore` {pattern} names nothing of this model", f"e.g. {known}")
    if not any(chosen_matrices(stream, settings, index) for index in range(count)):
        raise UsageError("`layers` and `ignore` leave nothing to prune")


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
    with CheckpointWriter(target, max_shard_bytes, overwrite=force) as writer:
        output = PrunedFolder(stream, writer, prepared.layout)
        layers = tuple(_write_layers(prepared, output, progress))
        pruned_zeros = output.zeros
        output.put_others()
        notes = (*prepared.notes, *_damping_notes(output))
        for name, content in _files(prepared, layers, output, notes).items():
            writer.add_file(name, content)
    matrices = prepared.matrices()
    before = sum(prod(stream.shapes[name]) for name in matrices)
    gone = before - sum(prod(output.shapes[name]) for name in matrices if name in output.shapes)
    everything = sum(map(prod, stream.shapes.values()))
    left = sum(map(prod, expected_shapes(output.config).values()))
    infos = [stream.checkpoint.tensors.info(name) for name in stream.stored.values()]
    shrinks = prepared.method.shrink is not None
    return PruneReport(
        folder=target,
        method=settings.method,
        pattern=str(settings.pattern) if settings.pattern else None,
        nominal=settings.part,
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
        damping=output.damping,
        notes=notes,
    )


def _write_layers(prepared: PreparedPrune, output: PrunedFolder, progress: bool) -> Iterator[float]:
    """Write what the method changes; the part taken from each layer of the input."""
    stream, settings, method = prepared.stream, prepared.settings, prepared.method
    ids = prepared.calibration.ids if prepared.calibration else None
    if method.shrink is None:
        options = prepared.options
        return zero_weights(stream, method, settings, options, ids, output, progress)
    assert ids is not None
    return method.shrink(
        Shrinking(stream, prepared.config, prepared.options, ids, settings.seed, output, progress)
    )


def _files(
    prepared: PreparedPrune,
    layers: tuple[float, ...],
    output: PrunedFolder,
    notes: tuple[str, ...],
) -> dict[str, bytes]:
    """Everything beside the weights, the manifest last."""
    files, settings = dict(prepared.layout.files), prepared.settings
    if prepared.method.shrink is not None:
        old = prepared.stream.config
        files["config.json"] = smaller_json(files["config.json"], old, output.config, output.layers)
    files[MANIFEST_NAME] = folder_manifest(
        "prune",
        source=exact_source(prepared.pulled),
        inputs=file_records(prepared.pulled),
        settings={
            **settings.to_json(),
            **prepared.options,
            "calibration": prepared.calibration.to_json() if prepared.calibration else None,
            "layer_sparsity": layers,
            "layer_influence": output.influences,
            "damping_raised": output.damping,
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


def _damping_notes(output: PrunedFolder) -> list[str]:
    if not output.damping:
        return []
    most, of = max(output.damping.values()), len(output.damping)
    return [f"SparseGPT raised the damping to at most {most:g} for {of} matrices (manifest)"]
