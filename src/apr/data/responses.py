"""Supervised data from runs: what a teacher wrote, behind the prompt it was asked with (sequence
distillation, Kim & Rush 2016; with reasoning, OpenCodeReasoning, arXiv:2504.01943).

That paper found that keeping only answers that pass made its students worse: problems that are
hard, and the reasoning about them, are worth more than a right end. `keep` says which are kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import AprError, UsageError
from apr.common.rows import row_writer
from apr.data.response_settings import ResponseSettings
from apr.eval.benchmarks.task import Prompt
from apr.eval.code.thoughts import without_thoughts
from apr.eval.history.asked import prompts_of
from apr.eval.history.read import JudgedSample, Run, read_run


@dataclass
class ResponseCounts:
    """answers: rows written. same: left out, the text was there already; empty: nothing behind the
    thought; failed, unknown: left out for their verdict; over: beyond `per_task`.
    """

    runs: int = 0
    samples: int = 0
    answers: int = 0
    failed: int = 0
    unknown: int = 0
    empty: int = 0
    same: int = 0
    over: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_responses(
    folders: Sequence[Path], output: Path, settings: ResponseSettings
) -> ResponseCounts:
    """Rows {messages} or {prompt, completion} with benchmark, task_id, sample, verdict and model.

    Raises UsageError for folders that hold no run of apr eval, AprError where nothing is left.
    """
    counts = ResponseCounts()
    with row_writer(output) as write:
        for folder in folders:
            counts.runs += 1
            for row in responses_of_run(read_run(folder), settings, counts):
                counts.answers += 1
                write(row)
        if not counts.answers:
            raise AprError(
                f"no answer is left of {counts.samples}: {counts.failed} failed,"
                f" {counts.unknown} without a verdict, {counts.empty} empty",
                "`keep` failed-too or all, or a better teacher",
            )
    return counts


def responses_of_run(
    run: Run, settings: ResponseSettings, counts: ResponseCounts
) -> Iterator[dict[str, Any]]:
    written = run.written()
    if not written:
        raise UsageError(
            f"{run.path} does not hold what was written", "name the folder that apr eval wrote"
        )
    prompt = prompts_of(run)
    by_task: dict[str, list[JudgedSample]] = {}
    for sample in run.samples():
        by_task.setdefault(sample.task_id, []).append(sample)
    for task_id, samples in by_task.items():
        counts.samples += len(samples)
        texts: dict[str, JudgedSample] = {}
        for sample in samples:
            if not _kept(sample, settings, counts):
                continue
            known = written.get((task_id, sample.sample))
            said = without_thoughts(known.text) if known is not None else None
            if known is None or said is None or said.unfinished or not said.text.strip():
                counts.empty += 1
                continue
            text = said.text if settings.thoughts == "drop" else known.text
            counts.same += text in texts
            texts.setdefault(text, sample)
        kept = list(texts.items())
        random.Random(f"{settings.seed} {task_id}").shuffle(kept)
        limit = len(kept) if settings.per_task is None else settings.per_task
        counts.over += len(kept[limit:])
        asked = prompt(task_id)
        for text, sample in kept[:limit]:
            yield {
                **_row(asked, text),
                "benchmark": run.benchmark,
                "task_id": task_id,
                "sample": sample.sample,
                "verdict": sample.verdict,
                "model": run.subject,
            }


def _kept(sample: JudgedSample, settings: ResponseSettings, counts: ResponseCounts) -> bool:
    if sample.verdict == "sandbox-error":
        counts.unknown += settings.keep != "all"
        return settings.keep == "all"
    counts.failed += settings.keep == "passed" and not sample.passed
    return settings.keep != "passed" or sample.passed


def _row(asked: Prompt, text: str) -> dict[str, Any]:
    text = asked.prefill + text
    if asked.messages is None:
        return {"prompt": asked.text, "completion": text}
    return {"messages": [*asked.messages, {"role": "assistant", "content": text}]}
