"""Options stated once: frozen dataclasses whose fields are flags, keys of YAML and of records.

A field made by `option` is one option; a field whose default is another such dataclass holds that
one's options as if they were its own, so names are unique in the whole:

    @dataclass(frozen=True)
    class SplitSettings:
        share: float = option(0.05, "Share of the rows that is held out.", flag="eval")
        near: float = option(0.7, "Similarity above which rows stay together.", panel="Matching")

`apr.cli.options.with_flags` makes the flags of a command of it, `read_keys` reads the keys of a
YAML file, `made` and `changed` build it from values by field name. What checks a value names the
field in backticks ("`share` is 2"); the command line and the reader of a file put their own name
for it there (`AprError.named`). Standard library only: `apr --help` imports every such class.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from apr.common.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What is said of a field beside its type and its default.

    help: one sentence. panel: the heading it stands under in the help. flag: without dashes, where
    it is not the field's name. short: a second flag, "-o". metavar: what the help calls its value.
    none: the word for None, for no entries, or where neither is allowed, for the default. parse:
    makes the value of a flag's text; raises UsageError with what is wrong with it ("is no size").
    argument: by place, without a flag. repeated: given once for each entry, instead of all of them
    with commas between. least, above, most, below: what a number must be, or be above, at most,
    below.
    """

    help: str
    panel: str = ""
    flag: str = ""
    short: str = ""
    metavar: str = ""
    none: str = ""
    parse: Callable[[str], Any] | None = None
    argument: bool = False
    repeated: bool = False
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def allows(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def range(self) -> str:
        """What a number must be, in words; empty where it may be any."""
        bounds = (
            (self.least, "{:g} or more"),
            (self.above, "above {:g}"),
            (self.most, "at most {:g}"),
            (self.below, "below {:g}"),
        )
        return ", ".join(words.format(value) for value, words in bounds if value is not None)


def option(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field that is an option. default: `...` where there is none; more: see Option."""
    metadata = {"option": Option(help, **more)}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """An option in its place. path: the fields that lead to it. kind: its type without None."""

    path: tuple[str, ...]
    kind: Any
    optional: bool
    default: Any  # MISSING where there is none
    option: Option

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def flag(self) -> str:
        return self.option.flag or self.name.replace("_", "-")

    @property
    def key(self) -> str:
        return self.flag.replace("-", "_")

    @property
    def choices(self) -> tuple[str, ...]:
        """What a text may be, the word for None first; () where anything goes."""
        if get_origin(self.kind) is not Literal:
            return ()
        return (*([self.option.none] if self.option.none else []), *get_args(self.kind))

    def parsed(self, text: Any) -> Any:
        """The value of a flag. Raises UsageError."""
        option = self.option
        if not isinstance(text, str):
            return tuple(text) if option.repeated and text is not None else text
        if option.none and text == option.none:
            return None if self.optional else self.default if self.choices else ()
        if self.choices:
            if text not in self.choices:
                known = ", ".join(self.choices)
                raise UsageError(f"`{self.name}` {text} is unknown", f"one of {known}")
        elif option.parse is not None:
            try:
                return option.parse(text)
            except UsageError as error:
                raise UsageError(f"`{self.name}` {text} {error.message}", error.hint) from None
        elif get_origin(self.kind) is tuple:
            return self._parts(text)
        return text

    def _parts(self, text: str) -> tuple[Any, ...] | None:
        entry = get_args(self.kind)[0]
        parts = [part.strip() for part in text.split(",") if part.strip()]
        try:
            return tuple(entry(part) for part in parts) or (None if self.optional else ())
        except ValueError:
            raise UsageError(f"`{self.name}` {text} is not a list of numbers", "as 1,10") from None


@cache
def settings_in(cls: Any) -> tuple[Setting, ...]:
    """All options of a settings class, those of the classes it holds in their place."""
    found: list[Setting] = []
    hints: dict[str, Any] = {}
    for member in fields(cls):
        factory = member.default_factory
        if "option" in member.metadata:
            hints = hints or get_type_hints(cls)
            kind, optional = _plain_type(hints[member.name])
            what = member.metadata["option"]
            found.append(Setting((member.name,), kind, optional, member.default, what))
        elif isinstance(factory, type) and is_dataclass(factory):
            found += [replace(one, path=(member.name, *one.path)) for one in settings_in(factory)]
    return tuple(found)


def made(cls: type[T], values: Mapping[str, Any]) -> T:
    """Settings with these values by field name, defaults for the others."""
    own = {}
    for member in fields(cls):  # type: ignore[arg-type]
        factory = member.default_factory
        if member.name in values:
            own[member.name] = values[member.name]
        elif isinstance(factory, type) and is_dataclass(factory):
            own[member.name] = made(factory, values)
    return cls(**own)


def changed(settings: T, values: Mapping[str, Any]) -> T:
    """Settings with other values, by field name, for some of their options."""
    own: dict[str, Any] = {}
    for setting in settings_in(_class_of(settings)):
        top = setting.path[0]
        if setting.name in values and len(setting.path) == 1:
            own[top] = values[setting.name]
        elif setting.name in values and top not in own:
            own[top] = changed(getattr(settings, top), values)
    return replace(settings, **own) if own else settings  # type: ignore[type-var]


def check(settings: Any) -> None:
    """Raises UsageError for a number outside its option's range, a text that is no choice of it."""
    for setting in settings_in(_class_of(settings)):
        if len(setting.path) > 1:
            continue  # that class checks its own
        value, option = getattr(settings, setting.name), setting.option
        if isinstance(value, str) and setting.choices:
            setting.parsed(value)
        elif isinstance(value, int | float) and option.range() and not option.allows(value):
            raise UsageError(f"`{setting.name}` is {value:g}", f"it must be {option.range()}")


def byte_size(text: str) -> int:
    """Bytes of a size like 8GB or 512MiB: `parse` of such an option. Raises UsageError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UsageError("is no size", "e.g. 8GB") from None


def read_keys(
    known: Mapping[str, Setting], given: Mapping[Any, Any], where: str, also: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What a YAML file sets, by key, in the order of `known`; null counts as not given.

    known: key -> option. also: keys that are not options, left out of the result. Raises UsageError
    naming the key, behind `where` and a dot.
    """
    from pydantic import TypeAdapter, ValidationError

    for key in given:
        if key not in known and key not in also:
            raise unknown_key(f"{where}.{key}", str(key), (*also, *known))
    values = {}
    for key, setting in known.items():
        if given.get(key) is None:
            continue
        try:
            values[key] = TypeAdapter(setting.kind).validate_python(given[key])
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, (where, key, *problem["loc"])))
            raise UsageError(f"{place}: {problem['msg']}") from None
    return values


def unknown_key(place: str, key: str, known: Collection[str]) -> UsageError:
    """What to say of a key that is none."""
    close = difflib.get_close_matches(key, known, 1)
    meant = f"; {close[0]} was meant?" if close else ""
    return UsageError(f"key {place} is unknown", f"keys: {', '.join(known)}{meant}")


def _plain_type(hint: Any) -> tuple[Any, bool]:
    """A type without None, and whether None was allowed."""
    if get_origin(hint) in (Union, UnionType):
        (kind,) = (part for part in get_args(hint) if part is not NoneType)
        return kind, True
    return hint, False


def _class_of(settings: Any) -> Any:
    return type(settings)
