"""Two runs on one benchmark, task by task, and whether they differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.common.errors import UsageError
from apr.eval.history.read import Run, Written, select
from apr.eval.history.table import shown_samples
from apr.eval.run.result import mean_interval, natural, pass_at_k, percent

if TYPE_CHECKING:
    from rich.table import Table


# Follow from the model or the file that was scored, so they are no news of their own.
_OF_THE_SUBJECT = ("model", "chat_template", "samples")


@dataclass(frozen=True)
class Difference:
    """Of pass@k: A's, B's, B - A with its 95 % bootstrap interval over tasks."""

    a: float
    b: float
    low: float
    high: float

    @property
    def points(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """Of run B with run A; every common task is in one of five groups.

    fixed, broken: all samples fail in A and pass in B, and the reverse. flaky: samples of one run
    differ among themselves, or the same completion got two verdicts: task -> share that passes in
    A, in B. scores: k -> difference of pass@k. p_value: of a difference of pass@1 as large by
    chance; test: which one gave it. differing: settings that differ -> (A's, B's), None where
    unknown. missing: tasks that only one of them has, which are left out.
    """

    a: str
    b: str
    scores: dict[int, Difference]
    p_value: float
    test: str
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    flaky: dict[str, tuple[float, float]]
    both_pass: tuple[str, ...]
    both_fail: tuple[str, ...]
    differing: dict[str, tuple[Any, Any]]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "scores": {
                f"pass@{k}": {
                    "a": d.a,
                    "b": d.b,
                    "difference": d.points,
                    "difference_ci95": [d.low, d.high],
                }
                for k, d in self.scores.items()
            },
            "p_value": self.p_value,
            "test": self.test,
            "fixed": list(self.fixed),
            "broken": list(self.broken),
            "flaky": {task: list(rates) for task, rates in self.flaky.items()},
            "both_pass": list(self.both_pass),
            "both_fail": list(self.both_fail),
            "differing_settings": {name: list(pair) for name, pair in self.differing.items()},
            "tasks_in_one_only": list(self.missing),
        }


def compare(a: Run, b: Run) -> Comparison:
    """Raises UsageError for runs that cannot be compared: other benchmarks, data or tasks."""
    if a.benchmark != b.benchmark:
        raise UsageError(
            f"{a.path} is a run of {a.benchmark}, {b.path} of {b.benchmark}",
            "compare runs of one benchmark",
        )
    differing = _differing(a, b)
    if "data" in differing:
        raise UsageError(
            f"data of the two runs differs: {' and '.join(map(str, differing['data']))}",
            "score both with the same version of the benchmark's file",
        )
    passes_a, passes_b = a.passes(), b.passes()
    tasks = sorted(passes_a.keys() & passes_b.keys(), key=natural)
    for run, passes in ((a, passes_a), (b, passes_b)):
        if not passes:
            raise UsageError(f"{run.path} has no verdicts yet", "the same apr eval goes on there")
    if not tasks:
        raise UsageError(f"{a.path} and {b.path} have no task in common")
    groups = _groups(tasks, passes_a, passes_b, _unsteady(a, b))
    if groups["flaky"]:
        p_value = permutation_p([_rate(passes_b[t]) - _rate(passes_a[t]) for t in tasks])
    else:
        p_value = mcnemar(len(groups["fixed"]), len(groups["broken"]))
    return Comparison(
        a=str(a.path),
        b=str(b.path),
        scores=_scores([passes_a[t] for t in tasks], [passes_b[t] for t in tasks]),
        p_value=p_value,
        test="paired permutation of tasks, exact" if groups["flaky"] else "McNemar, exact",
        fixed=tuple(groups["fixed"]),
        broken=tuple(groups["broken"]),
        flaky={t: (float(_rate(passes_a[t])), float(_rate(passes_b[t]))) for t in groups["flaky"]},
        both_pass=tuple(groups["both_pass"]),
        both_fail=tuple(groups["both_fail"]),
        differing=differing,
        missing=tuple(sorted(passes_a.keys() ^ passes_b.keys(), key=natural)),
    )


def _differing(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """Settings and circumstances that differ, except what has to when the models do."""
    first, second = ({**run.results.get("settings", {})} for run in (a, b))
    for found, run in ((first, a), (second, b)):
        found["isolation"] = run.results.get("isolation")
    same_subject = first.get("model") == second.get("model")
    return {
        name: (first.get(name), second.get(name))
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name) and (same_subject or name not in _OF_THE_SUBJECT)
    }


def _rate(passes: Sequence[bool]) -> Fraction:
    return Fraction(sum(passes), len(passes))


def _unsteady(a: Run, b: Run) -> set[str]:
    """Tasks with a completion that passed and failed: the verdict depends on more than it."""
    verdicts: dict[tuple[str, str], set[bool]] = {}
    for run in (a, b):
        written: dict[tuple[str, int], Written] = run.written()
        for sample in run.samples():
            found = written.get((sample.task_id, sample.sample))
            if found is not None:
                passed = verdicts.setdefault((sample.task_id, found.completion), set())
                passed.add(sample.passed)
    return {task for (task, _), found in verdicts.items() if len(found) > 1}


def _groups(
    tasks: Sequence[str],
    a: dict[str, list[bool]],
    b: dict[str, list[bool]],
    unsteady: set[str],
) -> dict[str, list[str]]:
    kinds = {
        (True, True): "both_pass",
        (False, False): "both_fail",
        (False, True): "fixed",
        (True, False): "broken",
    }
    groups: dict[str, list[str]] = {name: [] for name in (*kinds.values(), "flaky")}
    for task in tasks:
        steady = len({*a[task]}) == 1 == len({*b[task]}) and task not in unsteady
        groups[kinds[a[task][0], b[task][0]] if steady else "flaky"].append(task)
    return groups


def _scores(a: list[list[bool]], b: list[list[bool]]) -> dict[int, Difference]:
    """pass@k for the usual k that all tasks have samples for."""
    fewest = min(map(len, [*a, *b]))
    scores = {}
    for k in (k for k in (1, 10, 100) if k <= fewest):
        values = [[pass_at_k(len(p), sum(p), k) for p in passes] for passes in (a, b)]
        low, high = mean_interval([y - x for x, y in zip(*values, strict=True)])
        score_a, score_b = (sum(found) / len(found) for found in values)
        scores[k] = Difference(score_a, score_b, low, high)
    return scores


def chance(p_value: float) -> str:
    """A p-value in words that fit any."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def comparison_table(found: Comparison) -> Table:
    from rich.table import Table

    table = Table(title=f"A {found.a}\nB {found.b}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for k, d in found.scores.items():
        table.add_row(f"pass@{k}", f"A {percent(d.a)}, B {percent(d.b)}")
        interval = f"95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}"
        table.add_row("B - A", f"{100 * d.points:+.1f} points   ({interval})")
    verdict = "" if found.p_value < 0.05 else ": no difference is shown"
    table.add_row("by chance", f"{chance(found.p_value)} ({found.test}){verdict}")
    table.add_row("both pass", str(len(found.both_pass)))
    table.add_row("both fail", str(len(found.both_fail)))
    flaky = tuple(f"{t} ({100 * x:.0f} → {100 * y:.0f} %)" for t, (x, y) in found.flaky.items())
    for name, tasks in (("fixed", found.fixed), ("broken", found.broken), ("flaky", flaky)):
        table.add_row(name, f"{len(tasks)}: {', '.join(tasks)}" if tasks else "none")
    for name, (x, y) in found.differing.items():
        table.add_row(f"{name} differs", f"A {_told(x)}\nB {_told(y)}")
    if found.missing:
        table.add_row("in one only", f"{len(found.missing)} tasks, left out")
    return table


SHOWN = ("fixed", "broken", "flaky")


def shown_tasks(found: Comparison, a: Run, b: Run, group: str) -> str:
    """What both runs wrote for each task of a group (one of SHOWN), with verdicts and reasons."""
    return "\n".join(
        f"##### {name}\n{shown_samples(run, select(run, task))}"
        for task in getattr(found, group)
        for name, run in (("A", a), ("B", b))
    )


def _told(value: Any) -> str:
    return "unknown" if value is None else str(value)


FINEST = 2520  # parts of a pass: exact for every mix of 1 to 10 samples a task


def mcnemar(fixed: int, broken: int) -> float:
    """McNemar's exact test, two-sided: the chance that `fixed + broken` fair coins fall at least
    as unevenly. 1 when nothing changed. McNemar 1947; exact form as in Agresti 2002, 10.1.4.
    """
    n = fixed + broken
    tail = sum(comb(n, i) for i in range(min(fixed, broken) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def permutation_p(differences: Sequence[Fraction]) -> float:
    """Two-sided paired permutation test of a mean of zero; one difference of pass rates a task.

    If the runs do not differ, each task's difference is as likely to have the other sign. All
    sign patterns are counted, so the result is exact, and for one sample a task it is McNemar's
    test. Rates with a common denominator above FINEST are rounded to that.
    Fisher 1935, The Design of Experiments, section 21; counted as Pagano and Tritchler 1983 do.
    """
    scale = min(lcm(*(d.denominator for d in differences)), FINEST)
    steps = [round(d * scale) for d in differences]
    chance = np.ones(1)  # of each sum, from the lowest to the highest, over the tasks so far
    for step in filter(None, map(abs, steps)):
        wider = np.zeros(len(chance) + 2 * step)
        wider[: len(chance)] += chance / 2
        wider[2 * step :] += chance / 2
        chance = wider
    reach = len(chance) // 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(sum(steps))
    return min(1.0, float(chance[far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several, in the order given (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted
