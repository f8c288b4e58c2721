"""Model → completions → programs → verdicts → scores, resumable at every sample."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from apr.errors import AprError, UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.contamination import repeated_references
from apr.eval.interpreter import find_interpreter
from apr.eval.judging import Judging, judged_by_reference
from apr.eval.manifest import make_manifest
from apr.eval.model import PROMPT_TOO_LONG, Answer, Ask, Model, find_model
from apr.eval.progress import EvalProgress
from apr.eval.references import References, check_references
from apr.eval.rerank.behaviour import Behaviour, Candidate
from apr.eval.rerank.choose import Choice, check_methods, choose_by
from apr.eval.result import Result, make_result, natural, write_atomically
from apr.eval.sandbox import Outcome, Sandbox
from apr.eval.settings import EvalSettings
from apr.eval.store import Generation, Store, StoredVerdict
from apr.eval.strategies.turns import notes_on, prompts_of_task, with_turns
from apr.eval.suspect import suspects
from apr.eval.task import (
    Benchmark,
    Mode,
    Newline,
    Prompt,
    PromptStyle,
    Task,
    measured,
    prepare,
    traits_of,
)


def shown_prompts(settings: EvalSettings, model: Model | None = None) -> list[Prompt]:
    """What the model would be asked of the first task, with <words> for what is not known yet.
    Raises AprError for what `evaluate` would refuse before it begins.
    """
    check(settings)
    benchmark = load_benchmark(settings.benchmark, settings.data, settings.window, settings.split)
    style = _style(settings, benchmark, model or find_model(settings))
    task = next(iter(benchmark.tasks.values()))
    return prompts_of_task(settings.strategy, benchmark, task, style)


class Interrupted(AprError):
    """Ctrl-C, with what is needed to go on."""

    exit_code = 130


def evaluate(settings: EvalSettings, model: Model | None = None) -> tuple[Result, Path]:
    """Run or resume an evaluation; the result and its folder.

    model: for tests and other sources of samples; default: `settings.model`.
    """
    check(settings)
    benchmark = load_benchmark(settings.benchmark, settings.data, settings.window, settings.split)
    traits = traits_of(benchmark)
    if settings.max_tokens is None:
        extra = settings.strategy.extra_tokens
        settings = replace(settings, max_tokens=traits.max_tokens + extra)
    interpreter = find_interpreter(settings.python)
    with Sandbox(
        workers=settings.workers,
        level=settings.level,
        allow_weak=settings.allow_weak,
        python=interpreter.path,
        preload=traits.preload,
    ) as sandbox:
        if model is None:
            model = find_model(settings)
        style = _style(settings, benchmark, model)
        identity = _identity(settings, benchmark, model, style)
        if traits.references or settings.python:
            identity["interpreter"] = interpreter.fingerprint
        references = check_references(
            benchmark,
            sandbox,
            interpreter,
            _tasks(settings, benchmark),
            settings.exclude_broken,
            progress=settings.progress,
        )
        prepare(benchmark, sandbox, interpreter, _tasks(settings, benchmark), settings.progress)
        out = settings.out or _folder(settings, model, identity)
        store = Store(out / "run.sqlite", identity, settings.fresh)
        try:
            _fill(settings, benchmark, model, style, sandbox, store, references)
            chosen = _rerank(settings, benchmark, store, sandbox, references)
            result = _result(
                settings, benchmark, model, identity, store, sandbox, references, chosen
            )
            _write(out, result, store, settings, benchmark)
        except AprError:
            if not store.generated():  # the request was wrong, or no server answered: no run yet
                store.discard()
            raise
        except KeyboardInterrupt:
            done, total = len(store.generated()), len(_chosen(settings, benchmark))
            raise Interrupted(
                f"interrupted; {done} of {total} samples are stored in {out}",
                "the same command goes on from there",
            ) from None
        finally:
            store.close()
    return result, out


def sample_seed(seed: int, task_id: str) -> int:
    """The seed of a task's request: differs between tasks, the same in every run."""
    return (seed << 32) + zlib.crc32(task_id.encode())


def check(settings: EvalSettings) -> None:
    """Raises UsageError for numbers that cannot be meant."""
    numbers = {
        "n-samples": settings.n_samples,
        "max-tokens": settings.max_tokens,
        "max-concurrency": settings.max_concurrency,
        "workers": settings.workers,
        "limit": settings.limit,
    }
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}", "it must be 1 or more")
    for k in settings.ks or ():
        if k > settings.n_samples or k < 1:
            raise UsageError(
                f"--k {k} with --n-samples {settings.n_samples}",
                "pass@k needs k of 1 or more and at least k samples a task",
            )
    check_methods(settings.rerank, settings.n_samples)
    if settings.n_samples > 1 and settings.sampling.greedy:
        raise UsageError(
            f"--n-samples {settings.n_samples} at temperature {settings.sampling.temperature:g}"
            " gives the same sample every time",
            "add --temperature 0.8, say",
        )


def _style(settings: EvalSettings, benchmark: Benchmark, model: Model) -> PromptStyle:
    """How tasks are put to the model: as asked for, else as usual."""
    modes: tuple[Mode, ...] = getattr(benchmark, "modes", ("base", "chat"))
    can_chat = model.remote or model.chat_template is not None
    usual = "chat" if "chat" in modes and can_chat else modes[0]
    mode = settings.mode or usual
    if mode not in modes:
        raise UsageError(f"--mode {mode} is not for {benchmark.name}", f"one of {', '.join(modes)}")
    if mode in ("psm", "spm") and model.remote:
        raise UsageError(
            f"--endpoint with {benchmark.name}: servers take no fill-in-the-middle prompts",
            "--mode prefix gives the left-to-right baseline",
        )
    if mode in ("psm", "spm") and mode not in model.fim_orders:
        known = ", ".join(model.fim_orders).upper()
        raise UsageError(
            f"{model.name} "
            + (f"was trained on {known} only" if known else "has no fill-in-the-middle tokens"),
            "use a model that has them, or --fim-tokens for one trained with others;"
            " --mode prefix gives the left-to-right baseline",
        )
    newline: Newline = getattr(benchmark, "newline", "strip")
    wanted = not model.remote if settings.prefill is None else settings.prefill
    prefill = wanted and traits_of(benchmark).prefill
    style = settings.strategy.style(PromptStyle(mode, settings.newline or newline, prefill))
    # Prompts that cannot be made are refused before work begins.
    first = settings.strategy.prompt(benchmark, next(iter(benchmark.tasks.values())), style)
    has_system = first.messages is not None and first.messages[0]["role"] == "system"
    return replace(style, merge_system=has_system and not model.takes_system)


def _identity(
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
    if settings.fim_tokens:
        identity["fim_tokens"] = list(settings.fim_tokens)
    if settings.strategy.describe():
        identity["strategy"] = settings.strategy.describe()
    if style.mode == "chat" and not model.remote:
        template = (model.chat_template or "").encode()
        identity["chat_template"] = hashlib.sha256(template).hexdigest()[:16]
    return identity


def _folder(settings: EvalSettings, model: Model, identity: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", Path(model.name).name).strip("-")
    return Path("runs") / f"{Path(settings.benchmark).name}-{name}-{digest}"


def _tasks(settings: EvalSettings, benchmark: Benchmark) -> list[Task]:
    return list(benchmark.tasks.values())[: settings.limit]


def _fill(
    settings: EvalSettings,
    benchmark: Benchmark,
    model: Model,
    style: PromptStyle,
    sandbox: Sandbox,
    store: Store,
    references: References,
) -> None:
    """Generate and judge what is missing. A program is judged while others are generated."""
    tasks = _tasks(settings, benchmark)
    have = store.generated()
    wanted = []
    for task in tasks:
        missing = [i for i in range(settings.n_samples) if (task.task_id, i) not in have]
        if missing:
            wanted.append((task, missing))
    total = len(tasks) * settings.n_samples
    missing_count = sum(len(samples) for _, samples in wanted)
    progress = EvalProgress(total, total - missing_count, settings.progress)
    wanted_ids = _chosen(settings, benchmark)

    def submit(generation: Generation) -> None:
        seconds = references.seconds.get(generation.task_id, 0.0)
        judging.submit(benchmark.job(*_to_judge(benchmark, generation), seconds))

    def keep(outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            task_id, _, sample = outcome.job_id.rpartition("#")
            store.add_verdict(StoredVerdict.of(task_id, int(sample), outcome))
            progress.verdict(outcome.passed)

    try:
        with Judging(sandbox) as judging, ExitStack() as stack:
            for generation in store.unjudged(sandbox.level):
                if (generation.task_id, generation.sample) in wanted_ids:
                    submit(generation)
            if wanted:
                loaded = model.load(benchmark, style, settings)
                generator = stack.enter_context(with_turns(loaded, settings, benchmark, style))
                store.set_fact("model", dict(generator.description))
                asks = (
                    Ask(
                        task.task_id,
                        settings.strategy.prompt(benchmark, task, style),
                        tuple(samples),
                        sample_seed(settings.seed, task.task_id),
                    )
                    for task, samples in wanted
                )
                for answer in _timed(generator(asks), store):
                    task = benchmark.tasks[answer.task_id]
                    completion = benchmark.completion(task, answer.text, style)
                    generation = Generation(completion=completion, **asdict(answer))
                    store.add_generation(generation)
                    progress.sample(answer.tokens)
                    submit(generation)
                    keep(judging.ready())
                store.set_fact("model", dict(generator.description))  # a server tells more later
            keep(judging.rest())
        keep(judged_by_reference(benchmark, sandbox, _late(benchmark, store, wanted_ids)))
    finally:
        progress.close()


def _timed(answers: Iterable[Answer], store: Store) -> Iterator[Answer]:
    """The answers; the store is told how many tokens came in how many seconds, over all sessions.

    Wall time from the first request on, loading not included, up to the latest answer: the time
    of what a kill loses is lost with it.
    """
    tokens, seconds = store.facts().get("speed", (0, 0.0))
    start = perf_counter()
    for answer in answers:
        tokens += answer.tokens
        store.set_fact("speed", (tokens, seconds + perf_counter() - start))
        yield answer


def _to_judge(benchmark: Benchmark, generation: Generation) -> tuple[Task, str, str]:
    """Task, program and job id of a sample."""
    task = benchmark.tasks[generation.task_id]
    program = benchmark.program(task, {"completion": generation.completion})
    return task, program, f"{generation.task_id}#{generation.sample}"


def _late(
    benchmark: Benchmark, store: Store, wanted: set[tuple[str, int]]
) -> list[tuple[Task, str, str]]:
    """What ran out of time."""
    late = {(v.task_id, v.sample) for v in store.verdicts() if v.verdict == "timeout"} & wanted
    return [
        _to_judge(benchmark, generation)
        for generation in store.generations()
        if (generation.task_id, generation.sample) in late
    ]


def _chosen(settings: EvalSettings, benchmark: Benchmark) -> set[tuple[str, int]]:
    return {
        (task.task_id, i) for task in _tasks(settings, benchmark) for i in range(settings.n_samples)
    }


def _rerank(
    settings: EvalSettings,
    benchmark: Benchmark,
    store: Store,
    sandbox: Sandbox,
    references: References,
) -> dict[str, dict[str, Choice]]:
    """Way of reranking -> task -> the sample taken. What it is taken by is stored."""
    wanted = {c for c in _chosen(settings, benchmark) if references.counts(c[0])}
    candidates = [
        Candidate(g.task_id, g.sample, _to_judge(benchmark, g)[1], g.mean_logprob)
        for g in store.generations()
        if settings.rerank and (g.task_id, g.sample) in wanted
    ]
    known = {
        place: (calls, Behaviour(answers, shown))
        for place, calls, answers, shown in store.behaviours()
    }
    found = choose_by(
        settings.rerank,
        benchmark.tasks,
        candidates,
        sandbox,
        settings.seed,
        known,
        lambda place, calls, did: store.add_behaviour(place, calls, did.answers, did.shown),
        settings.progress,
    )
    for method, taken in found.items():
        store.set_fact(f"chosen by {method}", {t: choice.sample for t, choice in taken.items()})
    return found


def _result(
    settings: EvalSettings,
    benchmark: Benchmark,
    model: Model,
    identity: dict[str, Any],
    store: Store,
    sandbox: Sandbox,
    references: References,
    taken: Mapping[str, Mapping[str, Choice]],
) -> Result:
    chosen = {c for c in _chosen(settings, benchmark) if references.counts(c[0])}
    generations = [g for g in store.generations() if (g.task_id, g.sample) in chosen]
    tokens, seconds = store.facts().get("speed", (0, 0.0))
    endings = Counter(g.finish_reason for g in generations)
    verdicts = [v for v in store.verdicts() if (v.task_id, v.sample) in chosen]
    programs = {
        (g.task_id, g.sample): (g.completion, _to_judge(benchmark, g)[1]) for g in generations
    }
    whole = {key: program for key, (_, program) in programs.items()}
    return make_result(
        benchmark=benchmark.name,
        subject=model.name,
        verdicts=verdicts,
        ks=settings.ks,
        settings=identity,
        generation={
            "tokens_generated": sum(g.tokens for g in generations),
            "cut_at_max_tokens": endings["length"],
            PROMPT_TOO_LONG: endings[PROMPT_TOO_LONG],
            **measured(benchmark, [(g.task_id, g.completion) for g in generations]),
            "generation_seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        },
        model=store.facts().get("model", {}),
        isolation_note=sandbox.level_reason,
        groups=traits_of(benchmark).groups,
        notes=(
            *traits_of(benchmark).notes,
            *references.notes(),
            *notes_on(settings.strategy, benchmark, _tasks(settings, benchmark)),
        ),
        references=references.to_json(),
        parts=traits_of(benchmark).parts,
        chosen=taken,
        suspects=suspects(benchmark, verdicts, programs),
        repeated=repeated_references(benchmark, whole),
    )


def _write(
    out: Path, result: Result, store: Store, settings: EvalSettings, benchmark: Benchmark
) -> None:
    """results.json, samples.jsonl in the official form, and last the manifest."""
    scored = {(v.task_id, v.sample) for v in result.verdicts}
    rows = sorted(
        (g for g in store.generations() if (g.task_id, g.sample) in scored),
        key=lambda g: (natural(g.task_id), g.sample),
    )
    files = {
        "samples.jsonl": _lines(rows),
        "results.json": json.dumps(result.to_json(), indent=1) + "\n",
        **{
            f"reranked-{method}.jsonl": _lines(
                g for g in rows if found["chosen"][g.task_id] == g.sample
            )
            for method, found in result.reranked.items()
        },
        **traits_of(benchmark).export((g.task_id, g.completion, g.text) for g in rows),
    }
    manifest = make_manifest(
        "eval",
        inputs={"model": result.settings["model"], "data": benchmark.data_sha256},
        settings={k: _plain(v) for k, v in asdict(settings).items()},
        model=result.model,
        isolation={
            "levels": sorted({v.level for v in result.verdicts}),
            "note": result.isolation_note,
        },
        files=files,
    )
    files["manifest.json"] = json.dumps(manifest, indent=1) + "\n"
    for name, text in files.items():
        write_atomically(out / name, text)


def _lines(generations: Iterable[Generation]) -> str:
    """JSON lines that the official scorers read."""
    rows = ({"task_id": g.task_id, "completion": g.completion} for g in generations)
    return "".join(json.dumps(row) + "\n" for row in rows)


def _plain(value: Any) -> Any:
    """A setting as JSON holds it."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    return str(value) if isinstance(value, Path | datetime) else value
