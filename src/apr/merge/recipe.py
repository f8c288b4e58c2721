"""What a merge is asked to do: MergeKit's YAML, read strictly.

Everything here is plain data; nothing is opened. A key this reads differently from MergeKit, or
not at all, is refused by name rather than passed over.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from apr.common.errors import UsageError
from apr.common.files import read_yaml

Scalar = float | int | bool | str
DTYPES = ("bfloat16", "float16", "float32")
_SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


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


Setting = Scalar | list[Scalar] | Conditional | list[Conditional]
Parameters = dict[str, Setting]


class ModelEntry(_Strict):
    """model: any reference `apr` knows, MergeKit's org/name, and MODEL+ADAPTER."""

    model: str
    parameters: Parameters = Field(default_factory=dict)


class SliceSource(ModelEntry):
    layer_range: tuple[int, int]

    @model_validator(mode="after")
    def _ordered(self) -> SliceSource:
        if not 0 <= self.layer_range[0] < self.layer_range[1]:
            raise ValueError(f"layer_range {list(self.layer_range)} must be [first, end)")
        return self


class Slice(_Strict):
    """Layers of the output, from the same number of layers of each source."""

    sources: list[SliceSource] = Field(min_length=1)
    base_model: str | None = None
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


class MergeSettings(_Strict):
    """A merge, by MergeKit's names (docs/merging.md has the methods and their parameters)."""

    merge_method: str
    models: list[ModelEntry] | None = Field(default=None, min_length=1)
    slices: list[Slice] | None = Field(default=None, min_length=1)
    base_model: str | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    out_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    tokenizer_source: str | None = None
    tokenizer: dict[str, Any] | None = None
    chat_template: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _long_dtypes(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in ("dtype", "out_dtype"):
                if isinstance(value.get(key), str):
                    value = {**value, key: _SHORT_DTYPES.get(value[key], value[key])}
        return value

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
            known = ", ".join(MergeSettings.model_fields)
            hint = f"known keys: {known}" if len(problem["loc"]) == 1 else ""
            raise UsageError(f"{where}: key {key!r} is not supported", hint) from None
        message = problem["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {key or 'settings'}: {message}") from None


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's location names a branch of a union, not a key."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in _BRANCHES)


_BRANCHES = ("float", "int", "bool", "str")


def value_of(setting: Setting, name: str, t: float, layer: int | None) -> Any:
    """What a setting says about one tensor; None if its filters leave the tensor out.

    A list of numbers is a gradient: interpolated at t, the place of the layer in its slice (0 to
    1). Of a list of conditions the first that applies counts. As in MergeKit.
    """
    if isinstance(setting, Conditional):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if all(isinstance(e, Conditional) for e in setting):
        for condition in setting:
            assert isinstance(condition, Conditional)
            if condition.applies(name, layer):
                return (
                    None if condition.value is None else value_of(condition.value, name, t, layer)
                )
        return None
    if all(isinstance(e, (int, float)) and not isinstance(e, bool) for e in setting):
        place = t * (len(setting) - 1)
        low = int(place)
        high = min(len(setting) - 1, low + 1)
        share = place - low
        return (1 - share) * setting[low] + share * setting[high]  # type: ignore[operator]
    return setting[int(t * (len(setting) - 1))]
