"""From settings and opened models to the list of tensors to write, before any of them is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from apr.checkpoint.dtypes import LONG_NAMES
from apr.common.errors import AprError, UsageError
from apr.merge.inputs import (
    EMBEDDING,
    OUTPUT_LAYER,
    ModelInput,
    elements,
    in_layer,
    layer_of,
    missing,
)
from apr.merge.methods import Method, method_named
from apr.merge.parameters import REQUIRED, Parameter
from apr.merge.recipe import (
    MergeSettings,
    Parameters,
    Slice,
    SliceSource,
    leaves,
    misspelt,
    value_of,
)
from apr.merge.stacking import Origin, stacked_config

# Accepted for MergeKit's sake; they change no result here.
_IGNORED = {"int8_mask"}


@dataclass(frozen=True)
class Source:
    """Where a tensor comes from: a model, by its place among the inputs, and a tensor of it."""

    model: int
    name: str


@dataclass(frozen=True)
class Output:
    """One tensor to write. models, base: see `apr.merge.operands.Operands`. copied: it holds no
    floats, and is taken over from the first source as it is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    models: tuple[Source, ...]
    base: Source | None
    parameters: Mapping[str, Any]
    copied: bool = False

    @property
    def nbytes(self) -> int:
        return elements(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """inputs: in order of their first mention, the base first; the first one gives configuration
    and tokenizer. config: config.json of the result.
    """

    settings: MergeSettings
    method_name: str
    method: Method
    inputs: tuple[ModelInput, ...]
    outputs: tuple[Output, ...]
    config: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    @property
    def read_bytes(self) -> int:
        return sum(
            self.inputs[source.model].nbytes(source.name)
            for output in self.outputs
            for source in (*output.models, *([output.base] if output.base else []))
        )


def make_plan(
    settings: MergeSettings, inputs: Sequence[ModelInput], vocabulary_rows: int | None = None
) -> Plan:
    """Which tensors are made of which, with which parameters.

    inputs: one for each of `settings.references()`, in that order. vocabulary_rows: of embedding
    and output layer, where a common vocabulary is made (their inputs may then differ in rows).
    Raises UsageError (parameters, numbers of models and layers), AprError (tensors that are missing
    or of another shape).
    """
    method_name, method = method_named(settings.merge_method)
    by_ref = dict(zip(settings.references(), range(len(inputs)), strict=True))
    slices = settings.slices or [_whole(settings, inputs, by_ref, method)]
    planner = _Planner(settings, method_name, method, inputs, by_ref, vocabulary_rows)
    for piece in slices:
        planner.check_slice(piece)
    outputs: list[Output] = []
    before, in_layers, after = planner.names()
    outputs += [planner.output(name, name, slices[0], 0, None) for name in before]
    number, stack = 0, []
    for piece in slices:
        for offset in range(piece.length):
            t = offset / (piece.length - 1) if piece.length > 1 else 1.0
            outputs += [
                planner.output(in_layer(name, number), name, piece, t, offset)
                for name in in_layers
                if planner.present(name, piece, offset)
            ]
            first = piece.sources[0]
            model = inputs[by_ref[first.model]]
            layer = first.layer_range[0] + offset
            stack.append(Origin(model.label, model.config, model.layers, layer))
            number += 1
    outputs += [planner.output(name, name, slices[-1], 0, None) for name in after]
    config = _config(settings, inputs[0], stack, planner.untied, vocabulary_rows)
    notes = [*settings.notes(), *planner.notes]
    notes += [
        f"{model.label}: the adapter parts the output layer from the embedding; both are written"
        for model in inputs
        if model.untied
    ]
    return Plan(settings, method_name, method, tuple(inputs), tuple(outputs), config, tuple(notes))


def _whole(
    settings: MergeSettings, inputs: Sequence[ModelInput], by_ref: Mapping[str, int], method: Method
) -> Slice:
    """`models:` as one slice over all layers; the base joins where the method needs it."""
    entries = list(settings.models or [])
    listed: set[str] = set()
    for entry in entries:
        if entry.model in listed:
            raise UsageError(f"model {entry.model} is listed twice", "name each model once")
        listed.add(entry.model)
    sources = [
        SliceSource(
            model=entry.model,
            parameters=entry.parameters,
            layer_range=(0, max(1, inputs[by_ref[entry.model]].layers)),
        )
        for entry in entries
    ]
    base = settings.base_model
    # As in MergeKit, a base that is not listed takes part; of a method with weights, where the
    # general parameters give it one.
    joins = method.base == "member" or (
        method.base == "donor" and "weight" in {*method.per_model} & settings.parameters.keys()
    )
    if base and base not in listed and joins:
        layers = max(1, inputs[by_ref[base]].layers)
        sources.append(SliceSource(model=base, layer_range=(0, layers)))
    counts = {source.model: source.layer_range[1] for source in sources}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{model} has {count}" for model, count in counts.items())
        raise UsageError(f"the models have different numbers of layers: {told}", "use slices")
    return Slice(sources=sources)


@dataclass
class _Planner:
    settings: MergeSettings
    method_name: str
    method: Method
    inputs: Sequence[ModelInput]
    by_ref: Mapping[str, int]
    vocabulary_rows: int | None
    untied: bool = field(init=False)
    notes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        known = {**self.method.settings, **self.method.per_model}
        self.notes = []
        for where, parameters, of_model in self._all_parameters():
            for key, setting in parameters.items():
                meant = misspelt(key, list(known))
                if key in known:
                    for value in leaves(setting):
                        known[key].read(value, key, where)
                    if of_model and key in self.method.settings:
                        self.notes.append(
                            f"{key} under {where} changes nothing: {self.method_name} has one for "
                            "all models, under `parameters`"
                        )
                elif meant is not None:
                    raise UsageError(
                        f"{where}: parameter {key!r} is not one of {self.method_name}",
                        f"did you mean {meant}?",
                    )
                elif key not in _IGNORED:
                    self.notes.append(
                        f"{where}: {self.method_name} has no parameter {key}; it changes nothing"
                    )
        self.notes = list(dict.fromkeys(self.notes))
        # Output layers differ from the embedding as soon as one model's does.
        self.untied = any(OUTPUT_LAYER in model.stored and not model.tied for model in self.inputs)

    def _all_parameters(self) -> list[tuple[str, Parameters, bool]]:
        """(where, parameters, whether they are of one model only)"""
        found = [("parameters", self.settings.parameters, False)]
        found += [(entry.model, entry.parameters, True) for entry in self.settings.models or []]
        for piece in self.settings.slices or []:
            found.append(("slice", piece.parameters, False))
            found += [(source.model, source.parameters, True) for source in piece.sources]
        return found

    def check_slice(self, piece: Slice) -> None:
        for source in piece.sources:
            model = self.inputs[self.by_ref[source.model]]
            if source.layer_range[1] > max(1, model.layers):
                raise UsageError(
                    f"layer_range {list(source.layer_range)} of {model.label}",
                    f"it has {model.layers} layers",
                )
        count = len(self._merged(piece))
        least, most = self.method.models
        if count < least or (most is not None and count > most):
            upper = " or more" if most is None else f" to {most}" if most > least else ""
            besides = " besides the base" if self.method.base in ("origin", "optional") else ""
            raise UsageError(
                f"{self.method_name} merges {least}{upper} models{besides}, {count} given"
            )
        if self.method.base == "origin" and self._base_ref(piece) is None:
            raise UsageError(f"{self.method_name} needs a base model", "name it: base_model")

    def names(self) -> tuple[list[str], list[str], list[str]]:
        """Tensor names of the first model before, in (numbered 0) and after the layers, and
        those that only other models have.
        """
        everything = dict.fromkeys(self.inputs[0].stored)
        for model in self.inputs:
            everything |= dict.fromkeys(model.stored)
        if not self.untied:
            everything.pop(OUTPUT_LAYER, None)
        before: list[str] = []
        inside: dict[str, None] = {}
        after: list[str] = []
        for name in everything:
            if layer_of(name) is not None:
                inside[in_layer(name, 0)] = None
            elif "embed" in name:
                before.append(name)
            else:
                after.append(name)
        return before, list(inside), after

    def present(self, name: str, piece: Slice, offset: int) -> bool:
        """Whether any source has this tensor in its layer: layers of a model may differ."""
        return any(
            in_layer(name, source.layer_range[0] + offset)
            in self.inputs[self.by_ref[source.model]].stored
            for source in piece.sources
        )

    def output(self, name: str, pattern: str, piece: Slice, t: float, offset: int | None) -> Output:
        """pattern: the name in the inputs, of layer 0 for tensors of layers."""
        layer = layer_of(name)
        merged = self._merged(piece)
        sources = [self._source(s, pattern, offset) for s in merged]
        base = self._base(piece, pattern, offset)
        parameters = {
            key: self._setting(key, parameter, name, piece, t, layer)
            for key, parameter in self.method.settings.items()
        }
        for key, parameter in self.method.per_model.items():
            parameters[key] = [
                self._per_model(key, parameter, entry, source.name, piece, t, layer)
                for entry, source in zip(merged, sources, strict=True)
            ]
        lead = base or sources[0]
        shape = self._shape(name, [*sources, *([base] if base else [])])
        if not self.inputs[lead.model].is_float(lead.name):
            dtype = self.inputs[lead.model].tensor(lead.name).dtype
            return Output(name, shape, dtype, (lead,), None, {}, copied=True)
        return Output(name, shape, self._dtype(lead), tuple(sources), base, parameters)

    def _merged(self, piece: Slice) -> list[SliceSource]:
        """The sources that are merged, in the order the method takes them."""
        base = self._base_ref(piece)
        if self.method.base in ("origin", "optional"):
            return [source for source in piece.sources if source.model != base]
        if self.method.base == "member":
            return sorted(piece.sources, key=lambda source: source.model != base)
        return list(piece.sources)

    def _base_ref(self, piece: Slice) -> str | None:
        return piece.base_model or self.settings.base_model

    def _base(self, piece: Slice, pattern: str, offset: int | None) -> Source | None:
        ref = self._base_ref(piece)
        if ref is None or self.method.base not in ("origin", "optional"):
            return None
        for source in piece.sources:
            if source.model == ref:
                return self._source(source, pattern, offset)
        # Not listed: the layers of the base that are those of the first source.
        first = piece.sources[0].model_copy(update={"model": ref})
        return self._source(first, pattern, offset)

    def _source(self, source: SliceSource, pattern: str, offset: int | None) -> Source:
        index = self.by_ref[source.model]
        model = self.inputs[index]
        name = pattern if offset is None else in_layer(pattern, source.layer_range[0] + offset)
        if name not in model.stored:
            if name == OUTPUT_LAYER and model.tied and EMBEDDING in model.stored:
                return Source(index, EMBEDDING)
            raise missing(model, name)
        return Source(index, name)

    def _shape(self, name: str, sources: Sequence[Source]) -> tuple[int, ...]:
        shapes = [self.inputs[source.model].shape(source.name) for source in sources]
        by_vocabulary = name in (EMBEDDING, OUTPUT_LAYER)
        if by_vocabulary and self.vocabulary_rows is not None:
            shapes = [(self.vocabulary_rows, *shape[1:]) for shape in shapes]
        for source, shape in zip(sources, shapes, strict=True):
            if shape != shapes[0]:
                first, other = self.inputs[sources[0].model], self.inputs[source.model]
                hint = "models of one architecture are needed"
                if by_vocabulary and shape[1:] == shapes[0][1:]:
                    hint = "`tokenizer_source` base or union makes a common vocabulary"
                raise AprError(
                    f"tensor {name} is {_times(shapes[0])} in {first.label} and "
                    f"{_times(shape)} in {other.label}",
                    hint,
                )
        return shapes[0]

    def _dtype(self, lead: Source) -> torch.dtype:
        asked = self.settings.out_dtype or self.settings.dtype
        if asked is not None:
            return LONG_NAMES[asked]
        return self.inputs[lead.model].dtype(lead.name) or torch.bfloat16

    def _setting(
        self, key: str, parameter: Parameter, name: str, piece: Slice, t: float, layer: int | None
    ) -> Any:
        for parameters in (piece.parameters, self.settings.parameters):
            if key in parameters:
                value = value_of(parameters[key], name, t, layer, _reader(parameter, key, name))
                if value is not None:
                    return value
        if parameter.default is REQUIRED:
            raise UsageError(f"{self.method_name} needs the parameter {key!r} for {name}")
        return parameter.default

    def _per_model(
        self,
        key: str,
        parameter: Parameter,
        source: SliceSource,
        name: str,
        piece: Slice,
        t: float,
        layer: int | None,
    ) -> Any:
        if key in source.parameters:
            read = _reader(parameter, key, source.model)
            value = value_of(source.parameters[key], name, t, layer, read)
            if value is not None:
                return value
        try:
            return self._setting(key, parameter, name, piece, t, layer)
        except UsageError:
            raise UsageError(
                f"{self.method_name} needs the parameter {key!r} of {source.model} for {name}"
            ) from None


def _reader(parameter: Parameter, key: str, where: str) -> Callable[[Any], Any]:
    return lambda value: parameter.read(value, key, where)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _config(
    settings: MergeSettings,
    donor: ModelInput,
    stack: Sequence[Origin],
    untied: bool,
    vocabulary_rows: int | None,
) -> dict[str, Any]:
    """The donor's config.json with the number of layers, types and vocabulary of the result."""
    config = dict(donor.config)
    whole = [(donor.config, layer) for layer in range(donor.layers)]
    if settings.slices and [(origin.config, origin.number) for origin in stack] != whole:
        config = stacked_config(config, stack)
    dtype = settings.out_dtype or settings.dtype
    if dtype is None and donor.family is not None:
        dtype = "bfloat16"
    text = config.get("text_config")
    parts = [config] if not isinstance(text, dict) else [config, dict(text)]
    if len(parts) == 2:
        config["text_config"] = parts[1]
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            if dtype is not None and key in part:
                part[key] = dtype
        if "vocab_size" in part and vocabulary_rows is not None:
            part["vocab_size"] = vocabulary_rows
    if dtype is not None and not {"dtype", "torch_dtype"} & set(config):
        config["torch_dtype"] = dtype
    if untied:
        config["tie_word_embeddings"] = False
    return config
