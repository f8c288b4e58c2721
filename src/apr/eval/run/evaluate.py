"""Model → completions → programs → verdicts → scores, resumable at every sample."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from apr.checkpoint.model_folder import MANIFEST_NAME
from apr.common.errors import AprError
from apr.common.files import write_whole
from apr.common.record import run_manifest
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Benchmark, PromptStyle
from apr.eval.code.thoughts import Said, without_thoughts
from apr.eval.generators import (
    PROMPT_TOO_LONG,
    Answer,
    Ask,
    Model,
    Source,
    Submission,
    Submissions,
)
from apr.eval.generators.model import find_model
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.identity import check, folder_of, identity_of, style_of
from apr.eval.run.result import Result, natural
from apr.eval.run.scoring import judge_and_score, open_sandbox
from apr.eval.run.store import Generation, Store
from apr.eval.strategies.turns import notes_on, with_turns


class Interrupted(AprError):
    """Ctrl-C, with what is needed to go on."""

    exit_code = 130


def evaluate(settings: EvalSettings, model: Model | None = None) -> tuple[Result, Path]:
    """Run or resume an evaluation; the result and its folder.

    model: for tests and other sources of answers; default: `settings.model`.
    """
    check(settings)
    benchmark = load_benchmark(settings.benchmark, settings.data, settings.dates, settings.split)
    if settings.max_tokens is None:
        extra = settings.strategy.extra_tokens
        settings = replace(settings, max_tokens=benchmark.max_tokens + extra)
    with open_sandbox(benchmark, settings) as (sandbox, interpreter):
        if model is None:
            model = find_model(settings)
        style = style_of(settings, benchmark, model)
        identity = identity_of(settings, benchmark, model, style)
        if benchmark.references or settings.python:
            identity["interpreter"] = interpreter.fingerprint
        out = settings.out or folder_of(settings, model, identity)
        store = Store(out / "run.sqlite", identity, settings.fresh)
        run = ModelRun(settings, benchmark, model, style, identity, store)
        try:
            result = judge_and_score(benchmark, run, settings, sandbox, interpreter, store)
            _write(out, result, store, settings, benchmark)
        except AprError:
            if not store.generated():  # the request was wrong, or no server answered: no run yet
                store.discard()
            raise
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {len(store.generated())} of {run.total} samples are stored in {out}",
                "the same command goes on from there",
            ) from None
        finally:
            store.close()
    return result, out


class ModelRun(Source):
    """Samples of a model as a `Source`: those that the store has, then those that are missing,
    each stored as soon as it is made. The model is loaded if any is missing.
    """

    def __init__(
        self,
        settings: EvalSettings,
        benchmark: Benchmark,
        model: Model,
        style: PromptStyle,
        identity: Mapping[str, Any],
        store: Store,
    ) -> None:
        self._settings, self._benchmark = settings, benchmark
        self._model, self._style, self._store = model, style, store
        self._asked = list(benchmark.tasks.values())[: settings.limit]
        self.name, self.identity = model.name, identity
        self.tasks = sorted(self._asked, key=lambda task: task.task_id)
        self._places = {(t.task_id, i) for t in self._asked for i in range(settings.n_samples)}
        self._have = store.generated() & self._places
        self.total, self.ready = len(self._places), len(self._have)

    def samples(self, made: Callable[[int], None]) -> Submissions:
        yield from map(self._submission, self._stored())
        if self.ready == self.total:
            return
        benchmark, settings, style, store = (
            self._benchmark, self._settings, self._style, self._store,
        )  # fmt: skip
        loaded = self._model.load(benchmark, style, settings)
        with with_turns(loaded, settings, benchmark, style) as generator:
            store.set_fact("model", dict(generator.description))
            for answer in _timed(generator(self._asks()), store):
                task = benchmark.tasks[answer.task_id]
                completion = benchmark.completion(task, self._said(answer.text).text, style)
                generation = Generation(completion=completion, **asdict(answer))
                store.add_generation(generation)
                made(answer.tokens)
                yield self._submission(generation)
            store.set_fact("model", dict(generator.description))  # a server tells more later

    def generation(self, counted: Sequence[Submission]) -> dict[str, Any]:
        places = {sample.place for sample in counted}
        found = [g for g in self._stored() if (g.task_id, g.sample) in places]
        tokens, seconds = self._store.facts().get("speed", (0, 0.0))
        endings = Counter(g.finish_reason for g in found)
        return {
            "tokens_generated": sum(g.tokens for g in found),
            "cut_at_max_tokens": endings["length"],
            "cut_while_thinking": sum(self._said(g.text).unfinished for g in found),
            PROMPT_TOO_LONG: endings[PROMPT_TOO_LONG],
            **self._benchmark.measure([(g.task_id, g.completion) for g in found]),
            "generation_seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        }

    def description(self) -> Mapping[str, Any]:
        return self._store.facts().get("model", {})

    def notes(self) -> Sequence[str]:
        settings = self._settings
        return [
            *notes_on(settings.strategy, self._benchmark, self._asked),
            *trained_on(self._benchmark.name, settings.model, settings.adapter),
        ]

    def _stored(self) -> list[Generation]:
        found = self._store.generations()
        return [g for g in found if (g.task_id, g.sample) in self._places]

    def _asks(self) -> Iterator[Ask]:
        strategy, count = self._settings.strategy, self._settings.n_samples
        for task in self._asked:
            name = task.task_id
            missing = tuple(i for i in range(count) if (name, i) not in self._have)
            if missing:
                prompt = strategy.prompt(self._benchmark, task, self._style)
                yield Ask(name, prompt, missing, sample_seed(self._settings.seed, name))

    def _submission(self, generation: Generation) -> Submission:
        g, benchmark = generation, self._benchmark
        program = benchmark.program(benchmark.tasks[g.task_id], {"completion": g.completion})
        said = self._said(g.text).text
        return Submission(
            *(g.task_id, g.sample, program, g.completion, g.mean_logprob), said, g.finish_reason
        )

    def _said(self, text: str) -> Said:
        """An answer without its thoughts. A base model's text is all answer."""
        return without_thoughts(text) if self._style.mode == "chat" else Said(text)


def trained_on(benchmark: str, *references: str | None) -> list[str]:
    """What is to be said of models, by folder, that learned from rows made from a benchmark."""
    notes = []
    for folder in (Path(one).expanduser() for one in references if one):
        try:
            manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            rows = manifest["settings"]["result"]["data"]["benchmarks"]
            found = sum(n for name, n in rows.items() if _family(name) == _family(benchmark))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # no record of training: nothing is known
        if found:
            notes.append(f"{folder} was trained on {found} rows that were made from this benchmark")
    return notes


def _family(benchmark: str) -> str:
    return benchmark.partition("@")[0].rstrip("+")


def sample_seed(seed: int, task_id: str) -> int:
    """The seed of a task's request: differs between tasks, the same in every run."""
    return (seed << 32) + zlib.crc32(task_id.encode())


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
        **benchmark.export((g.task_id, g.completion, g.text) for g in rows),
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
