"""A merge without a YAML file: a method, models and a few numbers. The flags of `apr merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apr.common.errors import UsageError
from apr.common.settings import check, option

if TYPE_CHECKING:
    from apr.merge.methods import Method
    from apr.merge.recipe import MergeSettings

# Where MergeKit departs from the papers (docs/merging.md), its choice.
MERGEKIT = {"rescale_norm": "l1"}
YAML_SUFFIXES = (".yml", ".yaml")
METHOD = "Method"


@dataclass(frozen=True)
class ShortForm:
    """weights, density: one number or one for each model; without weights all models count the
    same. parameters: "key=value". One YAML file as the only model says everything itself; dtype,
    tokenizer_source, rescale_norm and like_mergekit may change it.
    """

    models: tuple[str, ...] = option(
        ...,
        "The models (references, folders, .gguf; MODEL+ADAPTER for a LoRA adapter), or one YAML"
        " file in MergeKit's format.",
        argument=True,
        repeated=True,
    )
    strategy: str | None = option(
        None,
        "linear, slerp, multislerp, karcher, nuslerp, task-arithmetic, ties, dare-linear,"
        " dare-ties, breadcrumbs, breadcrumbs-ties, della, della-linear, model-stock, sce,"
        " arcee-fusion, nearswap, passthrough.",
        panel=METHOD,
    )
    base_model: str | None = option(
        None, "The model the others were fine-tuned from.", panel=METHOD
    )
    weights: tuple[float, ...] | None = option(
        None, "How much each model counts, as 0.7,0.3.", panel=METHOD
    )
    density: tuple[float, ...] | None = option(
        None,
        "Share of each model's changes that is kept: one number, or one for each model.",
        panel=METHOD,
    )
    lambda_: float | None = option(
        None, "Factor of the merged changes. [default: 1]", flag="lambda", panel=METHOD
    )
    t: tuple[float, ...] | None = option(
        None,
        "slerp: 0 is the first model, 1 the second; 0,0.5,1 runs over the layers. [default: 0.5]",
        panel=METHOD,
    )
    parameter: tuple[str, ...] = option(
        (),
        "Any other parameter of the method, as gamma=0.02.",
        metavar="KEY=VALUE",
        repeated=True,
        panel=METHOD,
    )
    rescale_norm: Literal["density", "l1"] | None = option(
        None,
        "What DARE and DELLA divide the kept changes by: density (the papers) or l1 (MergeKit).",
        panel=METHOD,
    )
    like_mergekit: bool = option(
        False, "Follow MergeKit where it departs from the papers.", panel=METHOD
    )
    dtype: str | None = option(
        None,
        "Number type to write: bf16, fp16 or fp32. [default: as the first model]",
        panel="Output",
    )
    tokenizer_source: str | None = option(
        None,
        "Where tokenizers differ, the one to write: base, union or one of the models.",
        panel="Output",
    )

    def __post_init__(self) -> None:
        check(self)

    def settings(self) -> MergeSettings:
        """Raises UsageError naming a field, or a key of the file."""
        return _settings(self)


def _settings(asked: ShortForm) -> MergeSettings:
    from apr.merge.methods import method_named
    from apr.merge.recipe import make_settings

    models, base_model, like_mergekit = asked.models, asked.base_model, asked.like_mergekit
    given: dict[str, Any] = {}
    for key, numbers in (("weight", asked.weights), ("density", asked.density)):
        if numbers is not None:
            given[key] = list(numbers)
    if asked.lambda_ is not None:
        given["lambda"] = asked.lambda_
    if asked.t is not None:
        given["t"] = list(asked.t) if len(asked.t) > 1 else asked.t[0]
    if asked.rescale_norm is not None:
        given["rescale_norm"] = asked.rescale_norm
    given |= dict(_pair(text) for text in asked.parameter)
    general = {
        key: value
        for key, value in (
            ("dtype", asked.dtype),
            ("tokenizer_source", asked.tokenizer_source),
        )
        if value is not None
    }
    if len(models) == 1 and Path(models[0]).suffix in YAML_SUFFIXES:
        if asked.strategy or base_model or set(given) - {"rescale_norm"}:
            raise UsageError(
                f"{models[0]} says how to merge", "leave out `strategy`, `base_model` and the like"
            )
        return _from_file(Path(models[0]), general, given, like_mergekit)
    if asked.strategy is None:
        raise UsageError("no `strategy`", "e.g. `strategy` linear; apr merge --help lists them")
    name, method = method_named(asked.strategy)
    if name == "slerp":
        given.setdefault("t", 0.5)
    if like_mergekit:
        given = {**_mergekit(method), **given}
    return make_settings(
        {
            "merge_method": name,
            "models": _entries(models, base_model, method, given),
            "base_model": _base(models, base_model, method),
            "parameters": {k: v for k, v in given.items() if k not in method.per_model},
            **general,
        },
        "apr merge",
    )


def _from_file(
    path: Path, general: dict[str, Any], given: dict[str, Any], like_mergekit: bool
) -> MergeSettings:
    from apr.merge.methods import method_named
    from apr.merge.recipe import make_settings, read_settings

    settings = read_settings(path)
    _, method = method_named(settings.merge_method)
    changed = settings.model_copy(update=general).model_dump(exclude_defaults=True)
    habits = _mergekit(method) if like_mergekit else {}
    parameters = {**habits, **changed.get("parameters", {}), **given}
    return make_settings({**changed, "parameters": parameters}, str(path))


def _mergekit(method: Method) -> dict[str, Any]:
    return {key: value for key, value in MERGEKIT.items() if key in method.settings}


def _base(models: Sequence[str], base_model: str | None, method: Method) -> str | None:
    # slerp goes from its base to the other model: the first one, where none is named.
    return base_model or (models[0] if method.base == "member" else None)


def _entries(
    models: Sequence[str], base_model: str | None, method: Method, given: dict[str, Any]
) -> list[dict[str, Any]]:
    """One entry per model, with its share of the parameters given per model."""
    merged = [m for m in models if m != base_model or method.base in ("member", "donor")]
    if "weight" in method.per_model and "weight" not in given:
        given["weight"] = [1.0]
    for key in given:
        if key not in method.per_model and key not in method.settings:
            known = ", ".join([*method.per_model, *method.settings]) or "none"
            raise UsageError(f"{key} is no parameter of this method", f"it has {known}")
    entries = []
    for i, model in enumerate(merged):
        own = {}
        for key in method.per_model:
            values = given.get(key)
            if values is None:
                continue
            values = values if isinstance(values, list) else [values]
            if len(values) not in (1, len(merged)):
                name = "weights" if key == "weight" else key
                raise UsageError(
                    f"`{name}` has {len(values)} numbers for {len(merged)} models",
                    "one for each model that is merged, in their order",
                )
            own[key] = values[i % len(values)]
        entries.append({"model": model, "parameters": own})
    return entries


def _pair(text: str) -> tuple[str, Any]:
    """key=value; numbers, lists of numbers and true/false are read as such."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise UsageError(f"`parameter` {text}", "expected key=value")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        return key, value
    return key, numbers if len(numbers) > 1 else numbers[0]
