"""Model → completions → programs → verdicts → scores, resumable at every sample."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from apr.common.errors import AprError
from apr.common.files import write_whole
from apr.common.progress import EvalProgress
from apr.common.record import run_manifest
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import (
    Benchmark,
    PromptStyle,
    Task,
    measured,
    prepare,
    traits_of,
)
from apr.eval.generators.model import PROMPT_TOO_LONG, Answer, Ask, Model, find_model
from apr.eval.rerank.behaviour import Behaviour, Candidate
from apr.eval.rerank.choose import Choice, choose_by
from apr.eval.run.contamination import repeated_references
from apr.eval.run.judging import Judging, judged_by_reference
from apr.eval.run.references import References, check_references
from apr.eval.run.request import check, folder_of, identity_of, style_of
from apr.eval.run.result import Result, make_result, natural
from apr.eval.run.settings import EvalSettings
from apr.eval.run.store import Generation, Store, StoredVerdict
from apr.eval.run.suspect import suspects
from apr.eval.strategies.turns import notes_on, with_turns
from apr.sandbox import Outcome, Sandbox
from apr.sandbox.interpreter import find_interpreter


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
        style = style_of(settings, benchmark, model)
        identity = identity_of(settings, benchmark, model, style)
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
        out = settings.out or folder_of(settings, model, identity)
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
    manifest = run_manifest(
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
        write_whole(out / name, text)


def _lines(generations: Iterable[Generation]) -> str:
    """JSON lines that the official scorers read."""
    rows = ({"task_id": g.task_id, "completion": g.completion} for g in generations)
    return "".join(json.dumps(row) + "\n" for row in rows)


def _plain(value: Any) -> Any:
    """A setting as JSON holds it."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    return str(value) if isinstance(value, Path | datetime) else value
