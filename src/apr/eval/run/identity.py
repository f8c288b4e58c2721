"""Before an evaluation runs: whether its settings make sense, how tasks are put to the model, and
what tells its run from others.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Benchmark, Prompt, PromptStyle
from apr.eval.generators import Model
from apr.eval.generators.model import find_model
from apr.eval.rerank.choose import check_methods
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.strategies.turns import prompts_of_task


def shown_prompts(settings: EvalSettings, model: Model | None = None) -> list[Prompt]:
    """What the model would be asked of the first task, with <words> for what is not known yet.
    Raises AprError for what `evaluate` would refuse before it begins.
    """
    check(settings)
    benchmark = load_benchmark(settings.benchmark, settings.data, settings.dates, settings.split)
    style = style_of(settings, benchmark, model or find_model(settings))
    task = next(iter(benchmark.tasks.values()))
    return prompts_of_task(settings.strategy, benchmark, task, style)


def check(settings: EvalSettings) -> None:
    """Raises UsageError for settings that do not go together."""
    n_samples, temperature = settings.n_samples, settings.sampling.temperature
    for k in settings.ks or ():
        if k > n_samples or k < 1:
            raise UsageError(
                f"`ks` {k} with `n_samples` {n_samples}",
                "pass@k needs k of 1 or more and at least k samples of each task",
            )
    check_methods(settings.rerank, n_samples)
    if n_samples > 1 and settings.sampling.greedy:
        raise UsageError(
            f"`n_samples` {n_samples} at `temperature` {temperature:g} gives the same sample every"
            " time",
            "`temperature` 0.8, say",
        )
    _ = settings.strategy  # raises for one that is none


def style_of(settings: EvalSettings, benchmark: Benchmark, model: Model) -> PromptStyle:
    """How tasks are put to the model: as asked for, else as usual."""
    can_chat = model.remote or model.chat_template is not None
    usual = "chat" if "chat" in benchmark.modes and can_chat else benchmark.modes[0]
    mode = settings.mode or usual
    if mode not in benchmark.modes:
        known = ", ".join(benchmark.modes)
        raise UsageError(f"`mode` {mode} is not for {benchmark.name}", f"one of {known}")
    if mode in ("psm", "spm") and model.remote:
        raise UsageError(
            f"`endpoint` with {benchmark.name}: servers take no fill-in-the-middle prompts",
            "`mode` prefix gives the left-to-right baseline",
        )
    if mode in ("psm", "spm") and mode not in model.fim_orders:
        known = ", ".join(model.fim_orders).upper()
        raise UsageError(
            f"{model.name} "
            + (f"was trained on {known} only" if known else "has no fill-in-the-middle tokens"),
            "use a model that has them, or `fim_tokens` for one trained with others;"
            " `mode` prefix gives the left-to-right baseline",
        )
    usual_prefill = not model.remote and not model.thinks  # code is no part of a thought
    wanted = usual_prefill if settings.prefill is None else settings.prefill
    prefill = wanted and benchmark.prefill
    style = settings.strategy.style(
        PromptStyle(mode, settings.newline or benchmark.newline, prefill)
    )
    # Prompts that cannot be made are refused before work begins.
    first = settings.strategy.prompt(benchmark, next(iter(benchmark.tasks.values())), style)
    has_system = first.messages is not None and first.messages[0]["role"] == "system"
    return replace(style, merge_system=has_system and not model.takes_system)


def identity_of(
    settings: EvalSettings, benchmark: Benchmark, model: Model, style: PromptStyle
) -> dict[str, Any]:
    """Everything that decides what is generated. n_samples, limit and k may grow in one run."""
    identity: dict[str, Any] = {
        "model": model.fingerprint,
        "benchmark": benchmark.version,
        "data": benchmark.data_sha256[:16],
        "prompt": style.describe(),
        "sampling": asdict(settings.sampling),
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
    }
    if not model.remote:
        identity |= {"dtype": settings.dtype, "device": settings.device}
        if settings.max_context is not None:
            identity["max_context"] = settings.max_context
    if settings.fim_tokens:
        identity["fim_tokens"] = list(settings.fim_tokens)
    if settings.strategy.describe():
        identity["strategy"] = settings.strategy.describe()
    if style.mode == "chat" and not model.remote:
        template = (model.chat_template or "").encode()
        identity["chat_template"] = hashlib.sha256(template).hexdigest()[:16]
    return identity


def folder_of(settings: EvalSettings, model: Model, identity: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", Path(model.name).name).strip("-")
    return Path("runs") / f"{Path(settings.benchmark).name}-{name}-{digest}"
