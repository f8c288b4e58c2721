"""The command line's short form of merge settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.merge.methods import Method, method_named
from apr.merge.recipe import MergeSettings, make_settings, read_settings

# Where MergeKit departs from the papers (docs/merging.md), its choice.
MERGEKIT = {"rescale_norm": "l1", "zero_small_tensors": True}
YAML_SUFFIXES = (".yml", ".yaml")


def settings_from_flags(
    models: Sequence[str],
    *,
    strategy: str | None = None,
    base_model: str | None = None,
    weights: str | None = None,
    density: str | None = None,
    lambda_: float | None = None,
    t: str | None = None,
    parameters: Sequence[str] = (),
    rescale_norm: str | None = None,
    like_mergekit: bool = False,
    dtype: str | None = None,
    tokenizer_source: str | None = None,
) -> MergeSettings:
    """Settings of a YAML file (the only model, then) or of flags. Raises UsageError naming a flag.

    weights, density: one number or one per model; without weights, every model counts the same.
    parameters: "key=value". The flags for dtype, tokenizer and MergeKit's ways also change a file.
    """
    given: dict[str, Any] = {}
    for key, text in (("weight", weights), ("density", density)):
        if text is not None:
            given[key] = _numbers(f"--{'weights' if key == 'weight' else key}", text)
    if lambda_ is not None:
        given["lambda"] = lambda_
    if t is not None:
        curve = _numbers("--t", t)
        given["t"] = curve if len(curve) > 1 else curve[0]
    if rescale_norm is not None:
        if rescale_norm not in ("density", "l1"):
            raise UsageError(f"--rescale-norm {rescale_norm} is unknown", "density or l1")
        given["rescale_norm"] = rescale_norm
    given |= dict(_pair(text) for text in parameters)
    general = {
        key: value
        for key, value in (("dtype", dtype), ("tokenizer_source", tokenizer_source))
        if value is not None
    }
    if len(models) == 1 and Path(models[0]).suffix in YAML_SUFFIXES:
        if strategy or base_model or set(given) - {"rescale_norm"}:
            raise UsageError(
                f"{models[0]} says how to merge", "leave out --strategy, --base-model and the like"
            )
        return _from_file(Path(models[0]), general, given, like_mergekit)
    if strategy is None:
        raise UsageError("no --strategy", "e.g. --strategy linear; apr merge --help lists them")
    name, method = method_named(strategy)
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
    settings = read_settings(path)
    _, method = method_named(settings.merge_method)
    extra = {**(_mergekit(method) if like_mergekit else {}), **given}
    changed = settings.model_copy(update=general)
    return make_settings(
        {
            **changed.model_dump(exclude_defaults=True),
            "parameters": {**extra, **changed.model_dump()["parameters"]},
        },
        str(path),
    )


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
                flag = "--weights" if key == "weight" else f"--{key}"
                raise UsageError(
                    f"{flag} has {len(values)} numbers for {len(merged)} models",
                    "one for each model that is merged, in their order",
                )
            own[key] = values[i % len(values)]
        entries.append({"model": model, "parameters": own})
    return entries


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text} is not a list of numbers", "e.g. 0.7,0.3") from None


def _pair(text: str) -> tuple[str, Any]:
    """key=value; numbers, lists of numbers and true/false are read as such."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise UsageError(f"--parameter {text}", "expected key=value")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        return key, value
    return key, numbers if len(numbers) > 1 else numbers[0]
