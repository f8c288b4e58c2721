"""What a merge is asked to do: MergeKit's YAML.

Everything here is plain data; nothing is opened. A key that MergeKit does not know either is passed
over with a note, as it passes it over, unless it looks like a slip of the pen. What MergeKit knows
and this does not is refused by name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from apr.common.errors import UsageError
from apr.common.files import read_yaml

Scalar = float | int | bool | str
DTYPES = ("bfloat16", "float16", "float32")
_SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def reference(value: Any) -> Any:
    """MergeKit's mapping of a model ({model: {path, revision}, lora: {…}}) as one reference, and
    anything else as it is. Raises ValueError naming a key that has no meaning here.
    """
    if not isinstance(value, Mapping) or "model" not in value:
        return value
    unknown = [key for key in value if key not in ("model", "lora")]
    if unknown:
        raise ValueError(f"key {unknown[0]!r} of a model is not supported; leave it out")
    return "+".join(_path(value[key]) for key in ("model", "lora") if value.get(key))


def _path(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    if not value.get("path"):
        raise ValueError("a model written as a mapping needs a path")
    return "@".join(str(value[key]) for key in ("path", "revision") if value.get(key))


def misspelt(key: str, known: Sequence[str]) -> str | None:
    """The known key that one was probably meant to be."""
    close = get_close_matches(key, known, 1, cutoff=0.8)
    return close[0] if close else None


ModelName = Annotated[str, Field(min_length=1), BeforeValidator(reference)]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _no_slips(self) -> _Keys:
        for key in self.model_extra or ():
            meant = misspelt(key, list(type(self).model_fields))
            if meant is not None:
                raise ValueError(f"key {key!r} is unknown; did you mean {meant!r}?")
        return self


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Conditional(_Strict):
    """A value for some tensors. filter: part of a tensor's name, or a pattern with * and ?.

    layers: [first, end) of the output's layers (not in MergeKit).
    """

    value: Scalar | list[Scalar] | None
    filter: str | None = None
    layers: tuple[int, int] | None = None

    def applies(self, name: str, layer: int | None) -> bool:
        if self.layers is not None and (
            layer is None or not self.layers[0] <= layer < self.layers[1]
        ):
            return False
        if self.filter is None or self.filter == "*":
            return True
        if "*" in self.filter or "?" in self.filter:
            return fnmatch.fnmatchcase(name, self.filter)
        return self.filter in name


def _form(value: Any) -> str:
    if isinstance(value, list):
        conditions = any(isinstance(part, dict | Conditional) for part in value)
        return "[conditions]" if conditions else "[values]"
    return "[condition]" if isinstance(value, dict | Conditional) else "[value]"


# By its form, so that an error is about what was meant.
Setting = Annotated[
    Annotated[Scalar, Tag("[value]")]
    | Annotated[list[Scalar], Tag("[values]")]
    | Annotated[Conditional, Tag("[condition]")]
    | Annotated[list[Conditional], Tag("[conditions]")],
    Discriminator(_form),
]
# A heading with nothing under it is null in YAML.
Parameters = Annotated[dict[str, Setting], BeforeValidator(lambda value: value or {})]


class ModelEntry(_Keys):
    """model: any reference `apr` knows, MergeKit's org/name, and MODEL+ADAPTER."""

    model: ModelName
    parameters: Parameters = Field(default_factory=dict)


class SliceSource(ModelEntry):
    layer_range: tuple[int, int]

    @model_validator(mode="after")
    def _ordered(self) -> SliceSource:
        if not 0 <= self.layer_range[0] <= self.layer_range[1]:
            raise ValueError(f"layer_range {list(self.layer_range)} must be [first, end)")
        return self


class Slice(_Keys):
    """Layers of the output, from the same number of layers of each source; maybe none."""

    sources: list[SliceSource] = Field(min_length=1)
    base_model: ModelName | None = None
    parameters: Parameters = Field(default_factory=dict)

    @property
    def length(self) -> int:
        first, end = self.sources[0].layer_range
        return end - first

    @model_validator(mode="after")
    def _same_length(self) -> Slice:
        lengths = [s.layer_range[1] - s.layer_range[0] for s in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"sources have {lengths} layers; all must have the same number")
        return self


class MergeSettings(_Keys):
    """A merge, by MergeKit's names (docs/merging.md has the methods and their parameters)."""

    merge_method: str
    models: list[ModelEntry] | None = Field(default=None, min_length=1)
    slices: list[Slice] | None = Field(default=None, min_length=1)
    base_model: ModelName | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    out_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    tokenizer_source: ModelName | None = None
    tokenizer: dict[str, Any] | None = None
    chat_template: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _long_dtypes(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in ("dtype", "out_dtype"):
                if isinstance(value.get(key), str):
                    name = value[key].removeprefix("torch.")
                    value = {**value, key: _SHORT_DTYPES.get(name, name)}
        return value

    @model_validator(mode="before")
    @classmethod
    def _only_module(cls, value: Any) -> Any:
        """`modules` of a model that has one is the same as no `modules`."""
        if not isinstance(value, dict) or "modules" not in value:
            return value
        modules, value = value["modules"], {k: v for k, v in value.items() if k != "modules"}
        if not modules:
            return value
        if not isinstance(modules, dict) or list(modules) != ["default"]:
            raise ValueError("modules: only one, called default, is supported")
        module = dict(_mapping(modules["default"], "modules.default"))
        own = _mapping(module.pop("parameters", None), "modules.default.parameters")
        general = _mapping(value.get("parameters"), "parameters")
        both = {
            key: _conditions(own[key]) + _conditions(general[key]) for key in own & general.keys()
        }
        return {**value, **module, "parameters": {**general, **own, **both}}

    @model_validator(mode="after")
    def _one_kind(self) -> MergeSettings:
        if (self.models is None) == (self.slices is None):
            raise ValueError("give either models or slices")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("give either tokenizer_source or tokenizer")
        return self

    def references(self) -> list[str]:
        """All models named, in order, the base first."""
        names = [self.base_model] if self.base_model else []
        names += [entry.model for entry in self.models or []]
        for piece in self.slices or []:
            names += [piece.base_model] if piece.base_model else []
            names += [source.model for source in piece.sources]
        return list(dict.fromkeys(names))

    def notes(self) -> list[str]:
        """What was passed over."""
        parts: list[tuple[str, _Keys]] = [("", self)]
        parts += [(f"models.{i}.", entry) for i, entry in enumerate(self.models or [])]
        for i, piece in enumerate(self.slices or []):
            parts.append((f"slices.{i}.", piece))
            parts += [(f"slices.{i}.sources.{j}.", s) for j, s in enumerate(piece.sources)]
        return [
            f"key {where}{key} changes nothing, here as in MergeKit (parameters belong under "
            "`parameters`)"
            for where, part in parts
            for key in part.model_extra or ()
        ]

    def to_yaml(self) -> str:
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
        )


def read_settings(path: Path) -> MergeSettings:
    """The settings in a YAML file. Raises UsageError naming file and key."""
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no settings", "expected keys such as merge_method, models")
    return make_settings(value, str(path))


def make_settings(value: Mapping[str, Any], where: str = "merge") -> MergeSettings:
    """Settings from plain data. Raises UsageError naming `where` and the first key at fault."""
    for key, tool in (("experts", "mergekit-moe"), ("genome", "mergekit-evolve")):
        if key in value and "merge_method" not in value:
            raise UsageError(f"{where}: {key!r} is for {tool}, whose work apr does not do")
    try:
        return MergeSettings.model_validate(dict(value))
    except ValidationError as error:
        problems = error.errors()
        # Of the ways a union failed, the deepest says most about what was meant.
        problem = max(problems, key=lambda p: len(p["loc"]))
        extra = [p for p in problems if p["type"] == "extra_forbidden"]
        problem = extra[0] if extra else problem
        key = ".".join(str(part) for part in problem["loc"] if not _is_branch(part))
        if problem["type"] == "extra_forbidden":
            raise UsageError(f"{where}: key {key!r} is not supported") from None
        message = problem["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {key or 'settings'}: {message}") from None


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's location names a branch of a union, not a key."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in _BRANCHES)


_BRANCHES = ("float", "int", "bool", "str")


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise ValueError(f"{key}: Input should be a valid dictionary")
    return value or {}


def _conditions(setting: Any) -> list[Any]:
    """A setting as a list of conditions (plain data)."""
    if isinstance(setting, list) and setting and all(isinstance(e, dict) for e in setting):
        return setting
    return [setting if isinstance(setting, dict) else {"value": setting}]


def leaves(setting: Setting | None) -> Iterator[Scalar]:
    """All single values of a setting."""
    if isinstance(setting, list):
        for part in setting:
            yield from leaves(part)
    elif isinstance(setting, Conditional):
        yield from leaves(setting.value)
    elif setting is not None:
        yield setting


def value_of(
    setting: Setting, name: str, t: float, layer: int | None, read: Callable[[Any], Any]
) -> Any:
    """What a setting says about one tensor; None if its filters leave the tensor out.

    A list of numbers is a gradient: interpolated at t, the place of the layer in its slice (0 to
    1). Of a list of conditions the first that applies counts. As in MergeKit. read: from a value in
    the file to what the parameter takes, which tells numbers written as text from words.
    """
    if isinstance(setting, Conditional):
        setting = [setting]
    if not isinstance(setting, list):
        return read(setting)
    if all(isinstance(e, Conditional) for e in setting):
        for condition in setting:
            assert isinstance(condition, Conditional)
            if condition.applies(name, layer):
                value = condition.value
                return None if value is None else value_of(value, name, t, layer, read)
        return None
    values = [read(value) for value in setting]
    place = t * (len(values) - 1)
    low = int(place)
    if any(isinstance(value, (bool, str)) for value in values):
        return values[low]
    high = min(len(values) - 1, low + 1)
    share = place - low
    return read((1 - share) * values[low] + share * values[high])
