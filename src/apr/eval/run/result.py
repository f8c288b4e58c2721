"""What an evaluation found, its scores (pass@k and their uncertainty), and both as JSON."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.common.errors import AprError, UsageError
from apr.common.record import versions
from apr.eval.benchmarks.task import Benchmark
from apr.eval.run.store import StoredVerdict

if TYPE_CHECKING:
    from apr.eval.rerank.choose import Choice

DEFAULT_KS = (1, 10, 100)
RESAMPLES = 2000
MISSING = re.compile(r"No module named '([\w.]+)'")


@dataclass(frozen=True)
class Record:
    """What was generated and judged.

    subject: the model, or the file of samples. verdicts: of all samples that count. settings: what
    decides the samples. generation: how they came to be. model: how it ran (dtype, device,
    kernels). isolation_note: why no stronger isolation. references: as `References.to_json` gives
    it. suspects: (task, sample) -> reasons to look at it, which change nothing. repeated: as
    `repeated_references` gives it. time: how fast the machine was, as `time_facts` gives it.
    imports: what programs see, as `Interpreter.to_json` gives it. recorded: verdicts that came
    with the samples, as `compared` gives them.
    """

    benchmark: str
    subject: str
    verdicts: Sequence[StoredVerdict]
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    isolation_note: str = ""
    notes: Sequence[str] = ()
    references: Mapping[str, Any] = field(default_factory=dict)
    suspects: Mapping[tuple[str, int], Sequence[str]] = field(default_factory=dict)
    repeated: Mapping[str, Any] = field(default_factory=dict)
    time: Mapping[str, Any] = field(default_factory=dict)
    imports: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """A record with its scores. passes: k -> (pass@k, lower, upper), fractions, 95 % bootstrap.
    groups, parts: scores of groups of tasks, and with some of the tests only. reranked: by method.
    """

    passes: Mapping[int, tuple[float, float, float]]
    groups: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, Mapping[str, float]]
    reranked: Mapping[str, Mapping[str, Any]]

    @property
    def per_task(self) -> dict[str, list[StoredVerdict]]:
        tasks: dict[str, list[StoredVerdict]] = {}
        for verdict in self.verdicts:
            tasks.setdefault(verdict.task_id, []).append(verdict)
        return dict(sorted(tasks.items(), key=lambda item: natural(item[0])))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"benchmark": self.benchmark, "subject": self.subject}
        for k, (score, low, high) in self.passes.items():
            value[f"pass@{k}"] = score
            value[f"pass@{k}_ci95"] = [low, high]
        tasks = self.per_task
        return {
            **value,
            "groups": {name: dict(scores) for name, scores in self.groups.items()},
            **({"parts": {name: dict(s) for name, s in self.parts.items()}} if self.parts else {}),
            **({"reranked": dict(self.reranked)} if self.reranked else {}),
            "notes": list(self.notes),
            **({"reference_solutions": dict(self.references)} if self.references else {}),
            "tasks": len(tasks),
            "samples": len(self.verdicts),
            "passed_samples": sum(v.verdict == "passed" for v in self.verdicts),
            "verdicts": dict(Counter(v.verdict for v in self.verdicts)),
            "isolation": sorted({v.level for v in self.verdicts}),
            "isolation_note": self.isolation_note,
            "judges": dict(Counter(v.judge for v in self.verdicts)),
            "judged_again_alone": sum(v.retried for v in self.verdicts),
            "suspect_samples": len(self.suspects),
            **({"recorded_verdicts": dict(self.recorded)} if self.recorded else {}),
            **({"repeats_of_references": dict(self.repeated)} if self.repeated else {}),
            "close_to_time_limit": sum(v.close for v in self.verdicts),
            **({"time": dict(self.time)} if self.time else {}),
            **({"programs_may_import": dict(self.imports)} if self.imports else {}),
            "program_cpu_seconds": round(sum(map(_spent, self.verdicts)), 3),
            "settings": dict(self.settings),
            "generation": dict(self.generation),
            "model": dict(self.model),
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}",
            "per_task": {task: [self._sample(v) for v in vs] for task, vs in tasks.items()},
        }

    def _sample(self, v: StoredVerdict) -> dict[str, Any]:
        reasons = self.suspects.get((v.task_id, v.sample))
        found = {"sample": v.sample, "verdict": v.verdict, "detail": v.detail}
        found |= {part: "passed" if v.passed(part) else "failed" for part in self.parts}
        if v.close:
            found["close_to_time_limit"] = True
        return {**found, "suspect": list(reasons)} if reasons else found


def _spent(verdict: StoredVerdict) -> float:
    return verdict.cpu_seconds if verdict.spent_seconds is None else verdict.spent_seconds


def time_facts(speeds: Sequence[float], before: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements of a sandbox, with those of earlier sessions of the run (what this gave)."""
    if not speeds:
        return dict(before)
    return {
        "seconds_of_a_standard_second": round(speeds[-1], 3),
        "least": round(min(*speeds, before.get("least", speeds[0])), 3),
        "most": round(max(*speeds, before.get("most", speeds[0])), 3),
        "measured": len(speeds) + before.get("measured", 0),
    }


def _time_notes(verdicts: Sequence[StoredVerdict]) -> tuple[str, ...]:
    """Which verdicts might be others on another machine; nothing if none."""
    close = list(dict.fromkeys(v.task_id for v in verdicts if v.close))
    if not close:
        return ()
    shown = ", ".join(close[:8]) + (f" and {len(close) - 8} more" if len(close) > 8 else "")
    count = sum(v.close for v in verdicts)
    samples = "1 sample stays" if count == 1 else f"{count} samples stay"
    return (f"{samples} within a third of the time limit when run again alone: {shown}",)


def _import_notes(verdicts: Sequence[StoredVerdict]) -> tuple[str, ...]:
    """Which libraries failed samples wanted and did not find; nothing if none."""
    wanted = Counter(
        match[1].partition(".")[0]
        for v in verdicts
        if v.verdict == "failed" and (match := MISSING.search(v.detail))
    )
    if not wanted:
        return ()
    named = ", ".join(f"{name} ({count})" for name, count in wanted.most_common(8))
    samples = "1 sample fails" if wanted.total() == 1 else f"{wanted.total()} samples fail"
    return (
        f"{samples} for want of a module that programs do not see: {named};"
        " --python names an interpreter that has more",
    )


def notes_on(verdicts: Sequence[StoredVerdict]) -> tuple[str, ...]:
    """What people should know of them, in a few lines."""
    return (*_unknown_notes(verdicts), *_time_notes(verdicts), *_import_notes(verdicts))


def make_result(
    record: Record,
    benchmark: Benchmark,
    ks: Sequence[int] | None = None,
    chosen: Mapping[str, Mapping[str, Choice]] | None = None,
) -> Result:
    """Score verdicts. ks: which pass@k; default 1, and 10 and 100 where every task has as many.
    benchmark: says which groups of tasks and parts of the tests get scores of their own. chosen:
    way of reranking -> task -> the sample taken.

    A sample on which the sandbox itself failed is unknown: no fail, and in no score. Raises
    AprError if that is all of them.
    """
    verdicts = [v for v in record.verdicts if not v.unknown]
    if not verdicts:
        raise AprError(_unknown_notes(record.verdicts)[0], "apr doctor shows what works here")
    counts = _counts(verdicts)
    fewest = min(n for n, _ in counts.values())
    wanted = ks if ks is not None else [k for k in DEFAULT_KS if k <= fewest]
    return Result(
        **vars(record),
        passes={
            k: (benchmark_pass_at_k(counts, k), *confidence_interval(counts, k)) for k in wanted
        },
        groups=_group_scores(counts, benchmark.groups, wanted),
        parts={
            part: {f"pass@{k}": benchmark_pass_at_k(_counts(verdicts, part), k) for k in wanted}
            for part in benchmark.parts
        },
        reranked={
            method: _reranked(verdicts, taken)
            for method, taken in (chosen or {}).items()
            if any(taken[v.task_id].sample == v.sample for v in verdicts)
        },
    )


def _unknown_notes(verdicts: Sequence[StoredVerdict]) -> tuple[str, ...]:
    """On how many samples the sandbox failed, and why on the first; nothing if on none."""
    unknown = [v for v in verdicts if v.unknown]
    if not unknown:
        return ()
    first = unknown[0]
    count = f"{len(unknown)} of {len(verdicts)} samples"
    return (
        f"{count} could not be judged and are in no score, first {first.task_id} sample"
        f" {first.sample}: {first.detail}",
    )


def _reranked(verdicts: Sequence[StoredVerdict], taken: Mapping[str, Choice]) -> dict[str, Any]:
    """Scores of the samples taken, between those of any sample and of the best one (the oracle:
    with n samples of each task, pass@n). decided_by: how many tasks each kind of reason decided.
    """
    counts = {
        v.task_id: (1, int(v.passed())) for v in verdicts if taken[v.task_id].sample == v.sample
    }
    low, high = confidence_interval(counts, 1)
    best: dict[str, bool] = {}
    for v in verdicts:
        best[v.task_id] = best.get(v.task_id, False) or v.passed()
    return {
        "pass@1": benchmark_pass_at_k(counts, 1),
        "pass@1_ci95": [low, high],
        "best_of_all": sum(best.values()) / len(best),
        "decided_by": dict(Counter(choice.by for choice in taken.values()).most_common()),
        "chosen": {name: taken[name].sample for name in sorted(taken, key=natural)},
    }


def _counts(verdicts: Iterable[StoredVerdict], part: str = "") -> dict[str, tuple[int, int]]:
    """Task -> (samples, passed), with all tests or those of a part."""
    counts: dict[str, tuple[int, int]] = {}
    for v in verdicts:
        n, c = counts.get(v.task_id, (0, 0))
        counts[v.task_id] = n + 1, c + v.passed(part)
    return counts


def _group_scores(
    counts: Mapping[str, tuple[int, int]], groups: Mapping[str, Sequence[str]], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Group -> {"tasks", "pass@k"}, in the order the groups first occur."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    for task, group in ((task, group) for task, found in groups.items() for group in found):
        if task in counts:
            members.setdefault(group, {})[task] = counts[task]
    return {
        group: {
            "tasks": len(found),
            **{f"pass@{k}": benchmark_pass_at_k(found, k) for k in ks},
        }
        for group, found in members.items()
    }


def natural(task_id: str) -> tuple[str, int | str]:
    name, _, number = task_id.rpartition("/")
    return (name, int(number)) if number.isdigit() else (task_id, 0)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def shown_setting(value: Any) -> str:
    """A setting in few words: of sampling settings only those that are not off."""
    if not isinstance(value, Mapping):
        return str(value)
    off = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    on = {name: v for name, v in value.items() if off.get(name) != v}
    return ", ".join(f"{name} {v}" for name, v in on.items()) or "greedy"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes, c of n having passed.

    Chen et al. 2021 (arXiv:2107.03374) eq. 1, 1 - C(n-c, k) / C(n, k), as the product of figure 3,
    which neither overflows nor cancels. Raises UsageError when n < k.
    """
    if k < 1:
        raise UsageError(f"k is {k}", "pass@k needs k of 1 or more")
    if n < k:
        raise UsageError(
            f"pass@{k} needs {k} samples a task and there are {n}", "more samples, or a smaller k"
        )
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples passed")
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def benchmark_pass_at_k(counts: Mapping[str, tuple[int, int]], k: int) -> float:
    """Mean over tasks. counts: task -> (samples, passed)."""
    return float(np.mean([pass_at_k(n, c, k) for n, c in counts.values()]))


def confidence_interval(
    counts: Mapping[str, tuple[int, int]], k: int, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval over tasks, as fractions."""
    return mean_interval([pass_at_k(n, c, k) for n, c in counts.values()], level, seed)


def mean_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean (Efron 1979; percentiles), one value a task."""
    found = np.array(values)
    draws = np.random.default_rng(seed).integers(0, len(found), (RESAMPLES, len(found)))
    means = found[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
