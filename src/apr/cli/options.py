"""How verbs get their options: flags made of settings classes, and what is read from flags."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.models import ArgumentInfo

from apr.common.errors import AprError, UsageError
from apr.common.settings import Setting, made, settings_in

if TYPE_CHECKING:
    from pathlib import Path

    import typer
    from rich.table import Table

    from apr.engine.session import Session
    from apr.merge.diagnostics import MergeDiagnosis

T = TypeVar("T")

FIM_TOKENS_HELP = "PREFIX,SUFFIX,MIDDLE: tokens of a model trained to infill with others' names."

MODEL_HELP = "Short name, hf://org/name, pypi://package, folder or .gguf."
FORCE_HELP = "Replace a model that is in the folder."
OFFLINE_HELP = "Use only what is in the cache."
JSON_HELP = "Print one JSON object."
OUTPUT = "Output"  # a heading

# The headings of a verb's flags in the order in which its help shows them; others come after.
PANELS = (
    "Model", "Benchmark", "Data", "Method", "Teacher", "Objective", "Training",
    "Fill in the middle", "Scores", "Calibration", "Prompt", "Sampling", "Judging", "Perplexity",
    "Output",
)  # fmt: skip


def with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """A command function for typer, made of one whose parameters are settings.

    A parameter annotated with a settings class (`apr.common.settings`) becomes a flag for each of
    its options, under headings; the others are left to typer as they are. Fields that an error
    names are called by their flags in it.
    """
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, type] = {}
    others: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
        else:
            others.append(parameter)
    every = [one for group in groups.values() for one in settings_in(group)]
    known = {one.name: one for one in every}
    assert len(known) == len({one.flag for one in every}) == len(every), "two options of one name"
    shown = sorted(known.values(), key=_place)
    parameters = [*others, *map(_parameter, shown)]

    def command(**values: Any) -> None:
        try:
            given = {name: _value(one, values.pop(name)) for name, one in known.items()}
            made_of: dict[str, Any] = {}
            for name, group in groups.items():
                own = {one.name: given[one.name] for one in settings_in(group)}
                made_of[name] = made(group, own)
            function(**made_of, **values)
        except AprError as error:
            raise error.named(lambda name: _flag(name, known, others)) from None

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    )
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _place(setting: Setting) -> tuple[int, int]:
    panel = setting.option.panel
    known = PANELS.index(panel) if panel in PANELS else len(PANELS) * bool(panel)
    return (not setting.option.argument, known)


def _value(setting: Setting, text: Any) -> Any:
    if text is None and setting.default is not MISSING:
        return setting.default
    return setting.parsed(text)


def _flag(name: str, known: Mapping[str, Setting], others: Collection[inspect.Parameter]) -> str:
    """What the command line calls a field; a name that is no flag here stays."""
    if name in known:
        setting = known[name]
        return setting.name.upper() if setting.option.argument else f"--{setting.flag}"
    for one in others:
        if one.name == name:
            given = getattr(one.annotation, "__metadata__", (one.default,))[0]
            flags = getattr(given, "param_decls", None) or (f"--{name.replace('_', '-')}",)
            return name.upper() if isinstance(given, ArgumentInfo) else max(flags, key=len)
    return name


def _parameter(setting: Setting) -> inspect.Parameter:
    """A setting as typer takes it."""
    option, kind, default = setting.option, setting.kind, setting.default
    if option.repeated:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
        if default is not MISSING:
            default = list(default) if default else None
    elif setting.choices or option.parse is not None or get_origin(kind) is tuple:
        kind = str
        if default is None or default == ():
            default = option.none or None
        elif isinstance(default, tuple):
            default = ",".join(map(str, default))
    help_text = option.help.replace("[", r"\[")  # else rich takes it for a style
    what: dict[str, Any] = {"help": help_text, "metavar": option.metavar or None}
    if default in (None, ""):
        what["show_default"] = False
    if option.argument:
        info: Any = typer.Argument(**what)
    else:
        flags = [f"--{setting.flag}"]
        if kind is bool and default is not False:
            flags = [f"--{setting.flag}/--no-{setting.flag}"]
        if option.short:
            flags.append(option.short)
        info = typer.Option(*flags, rich_help_panel=option.panel or None, **what)
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind | None if default is None else kind, info],
    )


def one_of(flag: str, value: str, choices: Mapping[str, T]) -> T:
    """The choice a flag names. Raises UsageError listing them."""
    if value not in choices:
        raise UsageError(f"--{flag} {value} is unknown", f"one of {', '.join(choices)}")
    return choices[value]


def read_prompt(prompt: str) -> str:
    """The prompt, or standard input for "-"."""
    return sys.stdin.read() if prompt == "-" else prompt


def read_gap(
    prefix: Path | None, suffix: Path | None, whole: Path | None, marker: str
) -> tuple[str, str] | None:
    """The two sides of a gap from --prefix and --suffix or from --fim; None without these.

    Line ends stay as they are. Raises UsageError.
    """
    from apr.text import around

    if whole is not None:
        if prefix is not None or suffix is not None:
            raise UsageError("`fim` and `prefix`, `suffix` exclude each other", "one file, or two")
        return around(_read_text(whole), marker)
    if prefix is None and suffix is None:
        return None
    return (
        "" if prefix is None else _read_text(prefix),
        "" if suffix is None else _read_text(suffix),
    )


def _read_text(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def show_session(session: Session, verbose: bool) -> None:
    """What a user should know about how the model runs, on stderr. Fallbacks always show."""
    facts = session.describe()
    if facts["kernels_note"]:
        print(f"apr: compiled kernels not used: {facts['kernels_note']}", file=sys.stderr)
    if verbose:
        how = f"{facts['dtype']} on {facts['device']}, {facts['kernels']} kernels"
        print(f"apr: {how}; {facts['cache']}", file=sys.stderr)
    for note in session.opened.notes:
        print(f"apr: {note}", file=sys.stderr)


def show_merge_plan(summary: Mapping[str, Any], to_stderr: bool = False) -> None:
    """What a merge does, before it starts."""
    out = sys.stderr if to_stderr else sys.stdout
    models = ", ".join(summary["models"])
    print(f"{summary['method']} of {models}", file=out)
    print(
        f"{summary['tensors']} tensors, {summary['parameters'] / 1e6:,.1f} million parameters in"
        f" {', '.join(summary['dtypes'])}: reads {summary['read_bytes'] / 1e6:,.0f} MB, writes"
        f" {summary['output_bytes'] / 1e6:,.0f} MB, peak memory about"
        f" {summary['peak_memory_bytes'] / 1e6:,.0f} MB with {summary['threads']} threads",
        file=out,
    )
    for note in summary["notes"]:
        print(f"note: {note}", file=out)


def show_merge(result: Mapping[str, Any]) -> None:
    """What a merge wrote, and how it did in its check."""
    print(result["folder"])
    check = result.get("check")
    if check:
        for row in check["perplexity"]:
            print(f"perplexity on Python: {number_text(row['perplexity'])}  {row['model']}")
        print(f"HumanEval, first {check['tasks']} tasks: {check['passed']} passed")
        if check["verdict"] == "broken":
            print("this merge is broken: its perplexity is above ten times the worst input's")


def number_text(value: float | None, digits: int = 3) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def only_flags(context: typer.Context, allowed: Collection[str], mode: str) -> None:
    """Raises UsageError where a flag was given that means nothing in this mode of a verb."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in allowed:
            raise UsageError(f"{parameter.opts[0]} has no meaning {mode}")


def show_extraction(result: Mapping[str, Any]) -> None:
    """What an extracted adapter holds, and what it does not."""
    print(result["folder"])
    errors = sorted(result["layers"], key=lambda layer: -layer["error"])
    print(
        f"rank {result['rank']}: {100 * result['energy']:.1f} % of the change's energy in"
        f" {len(errors)} layers, {result['nbytes'] / 1e6:,.1f} MB"
    )
    for layer in errors[:3]:
        print(f"relative error {layer['error']:.3f}  {layer['name']}")
    if result["energy"] < 0.5:
        print("note: less than half of the change is kept; a higher --rank keeps more")
    for name, change in result["left_out"][:5]:
        print(f"note: not in the adapter: {name}, changed by {100 * change:.2g} %")
    if len(result["left_out"]) > 5:
        print(f"note: and {len(result['left_out']) - 5} more tensors that no LoRA holds")


def merge_report_table(found: MergeDiagnosis) -> Table:
    """One row per part of the model; with several pairs of models, their range."""

    from rich.table import Table

    models = ", ".join(found.models)
    table = Table(title=f"{models} against {found.base}", title_justify="left")
    for column in ("", "params", "change", "zero", "cosine", "conflicts"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for group in found.groups:
        table.add_row(
            group.name,
            f"{group.parameters / 1e6:,.1f}M",
            _span(group.change, percent=True),
            _span(group.zeros, percent=True),
            _span(group.cosines),
            _span(group.conflicts, percent=True),
        )
    return table


def _span(values: tuple[float, ...], percent: bool = False) -> str:
    if not values:
        return ""
    ends = [f"{100 * v:.0f}" if percent else f"{v + 0.0:.2f}" for v in (min(values), max(values))]
    return (ends[0] if ends[0] == ends[1] else "–".join(ends)) + (" %" if percent else "")
