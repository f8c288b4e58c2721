"""Preference pairs from runs: what passed a task's tests, and what failed them."""

from __future__ import annotations

import difflib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apr.common.errors import AprError, UsageError
from apr.common.rows import row_writer
from apr.data.pair_settings import PairSettings
from apr.eval.benchmarks.task import Prompt
from apr.eval.code.prefixes import parse
from apr.eval.history.asked import prompts_of
from apr.eval.history.read import JudgedSample, Run, read_run, whole_programs

_WORDS = re.compile(r"\w+|[^\w\s]|\s+")


@dataclass
class PairCounts:
    """tasks: of all runs. one_sided: tasks whose samples all passed, or all failed. near: pairs
    left out for being alike. unknown: samples without a verdict; suspect: left out for that.
    failures: kinds of failure of the rejected answers.
    """

    runs: int = 0
    tasks: int = 0
    samples: int = 0
    one_sided: int = 0
    unknown: int = 0
    suspect: int = 0
    near: int = 0
    pairs: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "failures": dict(self.failures)}


def write_pairs(folders: Sequence[Path], output: Path, settings: PairSettings) -> PairCounts:
    """Rows {prompt, chosen, rejected, benchmark, task_id, failure, ...} of runs of `apr eval`.

    prompt is as the model was asked, text or messages, so that trl and `apr align` read the rows.
    Raises UsageError for folders that hold no such run, AprError where there is no pair.
    """
    counts = PairCounts()
    with row_writer(output) as write:
        for folder in folders:
            counts.runs += 1
            for row in pairs_of_run(read_run(folder), settings, counts):
                counts.pairs += 1
                counts.failures[row["failure"]] += 1
                write(row)
        if not counts.pairs:
            raise AprError(
                f"no pair: {counts.one_sided} of {counts.tasks} tasks have samples of one kind",
                "more samples of a task, as apr eval --n-samples 10 --temperature 0.8, or others",
            )
    return counts


def pairs_of_run(run: Run, settings: PairSettings, counts: PairCounts) -> Iterator[dict[str, Any]]:
    """The rows of one run, task by task."""
    written = run.written()
    if not written:
        raise UsageError(
            f"{run.path} does not hold what was written", "name the folder that apr eval wrote"
        )
    prompt, program = prompts_of(run), whole_programs(run)
    by_task: dict[str, list[JudgedSample]] = {}
    for sample in run.samples():
        by_task.setdefault(sample.task_id, []).append(sample)
    for task_id, samples in by_task.items():
        counts.tasks += 1
        counts.samples += len(samples)
        known = [
            s for s in samples if s.verdict != "sandbox-error" and (task_id, s.sample) in written
        ]
        counts.unknown += len(samples) - len(known)
        trusted = [s for s in known if settings.suspect or not s.suspect]
        counts.suspect += len(known) - len(trusted)
        answers = {s.sample: written[task_id, s.sample] for s in trusted}
        kinds = {
            s.sample: failure_of(s, program(task_id, answers[s.sample].completion))
            for s in trusted
            if not s.passed
        }
        passed = [s.sample for s in trusted if s.passed]
        failed = [i for i, kind in kinds.items() if kind in settings.failures]
        if not passed or not failed:
            counts.one_sided += 1
            continue
        texts = {i: answer.text for i, answer in answers.items()}
        chosen, near = choose_pairs(texts, passed, failed, settings, f"{settings.seed} {task_id}")
        counts.near += near
        asked = prompt(task_id)
        for good, bad in chosen:
            yield {
                **_row(asked, texts[good], texts[bad]),
                "benchmark": run.benchmark,
                "task_id": task_id,
                "failure": kinds[bad],
                "samples": [good, bad],
                "model": run.subject,
            }


def failure_of(sample: JudgedSample, program: str | None) -> str:
    """One of `FAILURES`. program: what was judged, None where it is not known."""
    if sample.verdict == "timeout":
        return "timeout"
    if sample.verdict != "failed":
        return "resources"
    if program is not None and parse(program) is None:
        return "no-code"
    # A failed assertion without words leaves nothing behind the colon, as in HumanEval's scorer.
    reason = sample.detail.partition(":")[2].strip()
    wrong = not reason or any(word in reason for word in ("assert", "Assert", "expected"))
    return "assertion" if wrong else "exception"


def choose_pairs(
    texts: Mapping[int, str],
    passed: Sequence[int],
    failed: Sequence[int],
    settings: PairSettings,
    seed: str,
) -> tuple[list[tuple[int, int]], int]:
    """((passing, failing) samples of one task, pairs left out for being alike)."""
    words = {i: _WORDS.findall(texts[i]) for i in (*passed, *failed)}
    alike = {
        (good, bad): difflib.SequenceMatcher(None, words[good], words[bad], autojunk=False).ratio()
        for good in passed
        for bad in failed
    }
    kept = [pair for pair, ratio in alike.items() if ratio <= settings.near]
    near = len(alike) - len(kept)
    # The same text twice gives the same pair twice.
    kept = list({(texts[good], texts[bad]): (good, bad) for good, bad in reversed(kept)}.values())
    kept.sort()
    random.Random(seed).shuffle(kept)
    if settings.minimal_edit:
        kept.sort(key=lambda pair: -alike[pair])
    if settings.selection == "balanced":
        kept = list(_once(kept))
    return kept[: settings.per_task], near


def _once(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Pairs in their order, less those with a sample that has been in one."""
    seen: set[int] = set()
    for pair in pairs:
        if not seen & set(pair):
            seen |= set(pair)
            yield pair


def _row(asked: Prompt, good: str, bad: str) -> dict[str, Any]:
    good, bad = asked.prefill + good, asked.prefill + bad
    if asked.messages is None:
        return {"prompt": asked.text, "chosen": good, "rejected": bad}
    sides = ([{"role": "assistant", "content": text}] for text in (good, bad))
    return {"prompt": asked.messages, **dict(zip(("chosen", "rejected"), sides, strict=True))}
