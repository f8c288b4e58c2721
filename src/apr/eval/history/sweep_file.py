"""What a sweep is asked to do: models × strategies × settings, in YAML, read strictly.

Keys are the flags of `apr eval` with _ for -. Plain data; nothing else is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.common.files import read_yaml
from apr.common.settings import changed, read_keys, settings_in, unknown_key
from apr.eval.benchmarks import ALL, GROUPS, NAMES, is_file_name, unknown_benchmark
from apr.eval.run.eval_settings import Asking, EvalSettings
from apr.eval.run.identity import check

# What a row may set, in the order of its label.
ROW_KEYS = (
    *("model", "adapter", "endpoint", "request_timeout", "dtype", "device", "max_context"),
    *("prompt_strategy", "system", "exemplars", "prompt_template", "rounds"),
    *("n_samples", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "k", "rerank"),
    *("limit", "mode", "newline", "prefill", "max_tokens", "seed"),
)
_ALL_KEYS = {setting.key: setting for setting in settings_in(EvalSettings)}
_KEYS = {key: _ALL_KEYS[key] for key in ROW_KEYS}
_KEY_OF = {setting.name: key for key, setting in _ALL_KEYS.items()}
_STRATEGY = {setting.key for setting in settings_in(Asking)}
# Axis -> the key that an entry which is only a name sets; its value needs no key in a label.
_AXES = {"models": "model", "strategies": "prompt_strategy", "settings": ""}


@dataclass(frozen=True)
class Part:
    """What an entry of an axis sets, by key. name: in the table, in place of the values."""

    name: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)

    def label(self) -> str:
        if self.name:
            return self.name
        plain = _AXES.values()
        given = self.given.items()
        return ", ".join(_value(v) if k in plain else f"{k} {_value(v)}" for k, v in given)


@dataclass(frozen=True)
class Sweep:
    """The axes; each combination is a row of the table. Empty: as on the command line."""

    benchmarks: tuple[str, ...] = ()
    models: tuple[Part, ...] = ()
    strategies: tuple[Part, ...] = ()
    settings: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of the table. settings: of all its cells, whose benchmark is yet to be put in."""

    label: str
    options: Mapping[str, Any]
    settings: EvalSettings


def key_of(name: str) -> str:
    """How a file calls a field of the settings."""
    return _KEY_OF.get(name, name)


def read_sweep(path: Path) -> Sweep:
    """Raises UsageError naming file and key."""
    value = read_yaml(path)
    keys = ("benchmarks", *_AXES)
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no sweep", f"keys: {', '.join(keys)}")
    axes: dict[str, tuple[Any, ...]] = {}
    try:
        for axis, entries in value.items():
            if axis not in keys:
                raise unknown_key(axis, axis, keys)
            several = entries if isinstance(entries, list) else [entries]
            read = _part if axis in _AXES else _benchmark
            axes[axis] = tuple(read(entry, axis, place) for place, entry in enumerate(several))
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.hint) from None
    return Sweep(**axes)


def _benchmark(entry: Any, axis: str, place: int) -> str:
    if not isinstance(entry, str):
        raise UsageError(f"{axis}.{place}: Input should be a valid string")
    if entry == ALL:
        raise UsageError(f"{axis}: name the benchmarks: a sweep leaves none out")
    if entry.partition("@")[0] not in (*NAMES, *GROUPS) and not is_file_name(entry):
        raise UsageError(f"{axis}: {entry} is unknown", unknown_benchmark(entry).hint)
    return entry


def _part(entry: Any, axis: str, place: int) -> Part:
    if isinstance(entry, str) and _AXES[axis]:
        entry = {_AXES[axis]: entry}
    if not isinstance(entry, dict):
        raise UsageError(f"{axis}.{place}: Input should be a valid dictionary")
    name = entry.get("name")
    if name is not None and not (isinstance(name, str) and name):
        raise UsageError(f"{axis}.{place}.name: Input should be a text that is not empty")
    return Part(name or "", read_keys(_KEYS, entry, f"{axis}.{place}", also=("name",)))


def sweep_rows(sweep: Sweep, base: EvalSettings, path: Path) -> list[Row]:
    """base: from the command line, for what the file does not set. Raises UsageError."""
    axes = [axis or (Part(),) for axis in (sweep.models, sweep.strategies, sweep.settings)]
    rows: list[Row] = []
    common = sweep.settings if len(sweep.settings) == 1 else ()  # of all rows: no news of one
    for parts in product(*axes):
        labels = [part.label() for part in parts if part.name or part not in common]
        label = ", ".join(filter(None, labels)) or base.model
        options = {key: value for part in parts for key, value in part.given.items()}
        try:
            row = Row(label, options, _settings(base, options))
            check(row.settings)
        except UsageError as error:
            error.named(key_of)
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
    if options.keys() & _STRATEGY:  # what only fits the command line's strategy goes with it
        asked = base.asking
        base = replace(base, asking=Asking(asked.prompt_strategy, asked.system))
    return changed(base, {_KEYS[key].name: value for key, value in options.items()})


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
