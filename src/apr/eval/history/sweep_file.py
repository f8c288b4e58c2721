"""What a sweep is asked to do: models × strategies × settings, in YAML, read strictly.

Keys are the flags of `apr eval` with _ for -. Plain data; nothing else is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from apr.common.errors import UsageError
from apr.common.yaml_file import read_yaml
from apr.eval.benchmarks import ALL, GROUPS, NAMES, is_file_name, unknown_benchmark
from apr.eval.benchmarks.task import Mode, Newline
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.strategies.strategy import load_strategy

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_STRATEGY = ("prompt_strategy", "system", "exemplars", "prompt_template", "rounds")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Options(_Strict):
    """What a row of the table sets, as the flags of these names do; None: as on the command line.

    name: in the table, in place of the values.
    """

    name: str | None = Field(default=None, min_length=1)
    model: str | None = None
    adapter: str | None = None
    endpoint: str | None = None
    request_timeout: float | None = None
    dtype: str | None = None
    device: str | None = None
    prompt_strategy: str | None = None
    system: str | None = None
    exemplars: Path | None = None
    prompt_template: list[Path] | None = None
    rounds: int | None = None
    n_samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    k: list[int] | None = None
    rerank: list[str] | None = None
    limit: int | None = None
    mode: Mode | None = None
    newline: Newline | None = None
    prefill: bool | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def given(self) -> dict[str, Any]:
        return {k: v for k, v in self.model_dump(exclude={"name"}).items() if v is not None}

    def label(self) -> str:
        """Its name, or its values; those of models and strategies need no key."""
        if self.name:
            return self.name
        plain = ("model", "prompt_strategy")
        given = self.given().items()
        return ", ".join(_value(v) if k in plain else f"{k} {_value(v)}" for k, v in given)


class Sweep(_Strict):
    """The axes; each combination is a row of the table. Empty: as on the command line."""

    benchmarks: list[str] = []
    models: list[Options] = []
    strategies: list[Options] = []
    settings: list[Options] = []

    @field_validator("benchmarks", "models", "strategies", "settings", mode="before")
    @classmethod
    def _in_short(cls, value: Any, info: ValidationInfo) -> Any:
        """One entry for a list of one; a name for an entry that sets nothing else."""
        entries = value if isinstance(value, list) else [value]
        key = {"models": "model", "strategies": "prompt_strategy"}.get(info.field_name or "")
        return [{key: e} if key and isinstance(e, str) else e for e in entries]

    @field_validator("benchmarks")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name == ALL:
                raise ValueError("name the benchmarks: a sweep leaves none out")
            if name.partition("@")[0] not in (*NAMES, *GROUPS) and not is_file_name(name):
                raise ValueError(f"{name} is unknown ({unknown_benchmark(name).hint})")
        return value


@dataclass(frozen=True)
class Row:
    """A row of the table. settings: of all its cells, whose benchmark is yet to be put in."""

    label: str
    options: Mapping[str, Any]
    settings: EvalSettings


def read_sweep(path: Path) -> Sweep:
    """Raises UsageError naming file and key."""
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no sweep", f"keys: {', '.join(Sweep.model_fields)}")
    try:
        return Sweep.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            owner = Sweep if len(problem["loc"]) == 1 else Options
            known = ", ".join(owner.model_fields)
            raise UsageError(f"{path}: key {key} is unknown", f"keys: {known}") from None
        raise UsageError(f"{path}: {key}: {problem['msg'].removeprefix('Value error, ')}") from None


def sweep_rows(sweep: Sweep, base: EvalSettings, path: Path) -> list[Row]:
    """base: from the command line, for what the file does not set. Raises UsageError."""
    axes = [axis or [Options()] for axis in (sweep.models, sweep.strategies, sweep.settings)]
    rows: list[Row] = []
    common = sweep.settings if len(sweep.settings) == 1 else []  # of all rows: no news of one
    for parts in product(*axes):
        labels = [part.label() for part in parts if part.name or part not in common]
        label = ", ".join(filter(None, labels)) or base.model
        options = {key: value for part in parts for key, value in part.given().items()}
        try:
            row = Row(label, options, _settings(base, options))
        except UsageError as error:
            raise UsageError(f"{path}: {label}: {error.message}", error.hint) from None
        if not row.settings.model:
            raise UsageError(f"{path}: models names none", "there, or apr eval MODEL --sweep FILE")
        _check_new(row, rows, path)
        rows.append(row)
    return rows


def _check_new(row: Row, rows: Sequence[Row], path: Path) -> None:
    for number, other in enumerate(rows, 1):
        if other.settings == row.settings:
            raise UsageError(f"{path}: rows {number} and {len(rows) + 1} are the same", row.label)
        if other.label == row.label:
            raise UsageError(f"{path}: two rows are called {row.label}", "give them a name each")


def _settings(base: EvalSettings, options: Mapping[str, Any]) -> EvalSettings:
    changes = dict(options)
    sampling = {name: changes.pop(name) for name in _SAMPLING if name in changes}
    strategy = {name: changes.pop(name) for name in _STRATEGY if name in changes}
    if sampling:
        changes["sampling"] = replace(base.sampling, **sampling)
    if strategy:
        name = strategy.pop("prompt_strategy", base.strategy.name)
        strategy.setdefault("system", base.strategy.system)
        strategy["templates"] = strategy.pop("prompt_template", ())
        changes["strategy"] = load_strategy(name, **strategy)
    if "k" in changes:
        changes["ks"] = tuple(changes.pop("k"))
    if "rerank" in changes:
        changes["rerank"] = tuple(changes["rerank"])
    return replace(base, **changes)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
