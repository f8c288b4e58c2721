"""What an evaluation found: as an object, as JSON, as a table."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apr.common.errors import AprError
from apr.common.record import versions
from apr.eval.run.scoring import benchmark_pass_at_k, confidence_interval
from apr.eval.run.store import StoredVerdict

if TYPE_CHECKING:
    from rich.table import Table

    from apr.eval.rerank.choose import Choice

DEFAULT_KS = (1, 10, 100)
NAMED = 10  # suspect samples that the table names


@dataclass(frozen=True)
class Result:
    """Scores of one run. passes: k -> (pass@k, lower, upper), fractions, 95 % bootstrap."""

    benchmark: str
    subject: str  # the model, or the file of samples
    verdicts: Sequence[StoredVerdict]
    passes: Mapping[int, tuple[float, float, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)  # how it ran: dtype, device, kernels
    isolation_note: str = ""  # why no stronger isolation
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # scores of each
    notes: Sequence[str] = ()
    references: Mapping[str, Any] = field(default_factory=dict)  # what References.to_json gives
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # scores with some tests
    reranked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method
    suspects: Mapping[tuple[str, int], Sequence[str]] = field(default_factory=dict)  # suspect.py
    repeated: Mapping[str, Any] = field(default_factory=dict)  # contamination.repeated_references

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
            **({"repeats_of_references": dict(self.repeated)} if self.repeated else {}),
            "program_cpu_seconds": round(sum(v.cpu_seconds for v in self.verdicts), 3),
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
        return {**found, "suspect": list(reasons)} if reasons else found


def make_result(
    benchmark: str,
    subject: str,
    verdicts: Iterable[StoredVerdict],
    ks: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    isolation_note: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
    references: Mapping[str, Any] | None = None,
    parts: Sequence[str] = (),
    chosen: Mapping[str, Mapping[str, Choice]] | None = None,
    suspects: Mapping[tuple[str, int], Sequence[str]] | None = None,
    repeated: Mapping[str, Any] | None = None,
) -> Result:
    """Score verdicts. ks: which pass@k; default 1, and 10 and 100 where every task has as many.
    groups: task id -> groups of tasks that get scores of their own. parts: of the tests, that get
    scores of their own. chosen: way of reranking -> task -> number of the sample taken.
    suspects: (task, sample) -> reasons to look at it, which change nothing. repeated: as
    `repeated_references` gives it.

    Raises AprError if the sandbox itself failed on a sample: that is never counted as a fail.
    """
    found = list(verdicts)
    broken = [v for v in found if v.verdict == "sandbox-error"]
    if broken:
        raise AprError(
            f"the sandbox failed on {len(broken)} samples, first {broken[0].task_id}:"
            f" {broken[0].detail}",
            "run the command again; apr doctor shows what this machine offers",
        )
    counts = _counts(found)
    fewest = min(n for n, _ in counts.values())
    wanted = ks if ks is not None else [k for k in DEFAULT_KS if k <= fewest]
    passes = {k: (benchmark_pass_at_k(counts, k), *confidence_interval(counts, k)) for k in wanted}
    return Result(
        benchmark,
        subject,
        found,
        passes,
        settings or {},
        generation or {},
        model or {},
        isolation_note,
        _group_scores(counts, groups or {}, wanted),
        notes,
        references or {},
        {
            part: {f"pass@{k}": benchmark_pass_at_k(_counts(found, part), k) for k in wanted}
            for part in parts
        },
        {method: _reranked(found, taken) for method, taken in (chosen or {}).items()},
        suspects or {},
        repeated or {},
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


def summary_table(result: Result) -> Table:
    """Scores, counts of verdicts, and how they were found."""
    from rich.table import Table

    tasks = result.per_task
    table = Table(title=f"{result.benchmark}: {result.subject}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for k, (score, low, high) in result.passes.items():
        text = f"{100 * score:.1f} %   (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        table.add_row(f"pass@{k}", text)
    for method, found in result.reranked.items():
        low, high = found["pass@1_ci95"]
        reasons = ", ".join(f"{reason} {n}" for reason, n in found["decided_by"].items())
        table.add_row(
            f"by {method}",
            f"{100 * found['pass@1']:.1f} %   (95 % interval {100 * low:.1f} to {100 * high:.1f};"
            f" the best of all samples {100 * found['best_of_all']:.1f} %)\n"
            f"decided by {reasons}",
        )
    for part, scores in result.parts.items():
        shown = [f"{k} {100 * value:.1f} %" for k, value in scores.items()]
        table.add_row(f"{part} tests only", ", ".join(shown))
    for group, scores in result.groups.items():
        shown = [f"{k} {100 * value:.1f} %" for k, value in scores.items() if k != "tasks"]
        table.add_row(group, f"{', '.join(shown)} of {scores['tasks']:.0f} tasks")
    for note in result.notes:
        table.add_row("note", note)
    if result.references:
        found = result.references
        table.add_row("references", f"{found['passed']} of {found['tasks']} pass here")
        table.add_row("interpreter", f"Python {found['python']}, {found['python_path']}")
    passed = sum(v.verdict == "passed" for v in result.verdicts)
    table.add_row("passed", f"{passed} of {len(result.verdicts)} samples, {len(tasks)} tasks")
    others = Counter(v.verdict for v in result.verdicts if v.verdict != "passed")
    if others:
        table.add_row("other", ", ".join(f"{name} {n}" for name, n in others.most_common()))
    # A count of none is no news, a share of none is a result.
    counted = {n: v for n, v in result.generation.items() if v or isinstance(v, float)}
    for name, value in {**result.settings, **counted}.items():
        table.add_row(name.replace("_", " "), shown_setting(value))
    if "server" in result.model:
        left = result.model.get("left_to_the_server")
        table.add_row("server", result.model["server"] + (f"; its own {left}" if left else ""))
    if result.suspects:
        table.add_row("suspect", _shown_suspects(result.suspects))
    if result.repeated.get("samples"):
        told = "{samples} of {of} samples repeat a reference solution word for word: ".format(
            **result.repeated
        )
        table.add_row("contamination", told + ", ".join(result.repeated["tasks"][:NAMED]))
    levels = ", ".join(sorted({v.level for v in result.verdicts}))
    judges = ", ".join(sorted({v.judge for v in result.verdicts}))
    table.add_row("isolation", f"{levels}; verdict by {judges}")
    if result.isolation_note:
        table.add_row("not stronger", result.isolation_note)
    return table


def _shown_suspects(suspects: Mapping[tuple[str, int], Sequence[str]]) -> str:
    """How many, and the first of them by name with their reasons."""
    found = sorted(suspects.items(), key=lambda item: (natural(item[0][0]), item[0][1]))
    lines = [f"{len(found)} samples to look at; no score depends on it"]
    for (task, sample), reasons in found[:NAMED]:
        lines.append(f"{task} sample {sample}: {'; '.join(reasons)}")
    if len(found) > NAMED:
        lines.append(f"and {len(found) - NAMED} more, all in results.json")
    return "\n".join(lines)


def task_table(result: Result) -> Table:
    """One row a task: passed of samples, and the first failure."""
    from rich.table import Table

    table = Table("task", "passed", "first failure")
    for task, verdicts in result.per_task.items():
        passed = sum(v.verdict == "passed" for v in verdicts)
        failure = next((v.detail for v in verdicts if v.verdict != "passed"), "")
        table.add_row(task, f"{passed}/{len(verdicts)}", failure[:80])
    return table


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
