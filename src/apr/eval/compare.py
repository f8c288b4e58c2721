"""Two runs on one benchmark, task by task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apr.errors import UsageError
from apr.eval.history import Run
from apr.eval.result import natural
from apr.eval.significance import mcnemar, paired_interval, paired_permutation

if TYPE_CHECKING:
    from rich.table import Table

# Settings that have to be the same, or scores mean different things; others are told.
_SAME = ("data",)


@dataclass(frozen=True)
class Comparison:
    """Of run B with run A. fixed, broken: tasks that only B, or only A, passes with every sample
    (of one sample: passes). flaky: tasks whose samples differ among themselves in either run.
    difference: of pass@1, with its 95 % interval. p_value: of a difference as large by chance;
    test: which one gave it. differing: settings that differ -> (A's, B's). missing: tasks that
    only one of them has, which are left out.
    """

    a: str
    b: str
    scores: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p_value: float
    test: str
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    flaky: tuple[str, ...]
    both_pass: int
    both_fail: int
    differing: dict[str, tuple[Any, Any]]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "pass@1": list(self.scores),
            "difference": self.difference,
            "difference_ci95": list(self.interval),
            "p_value": self.p_value,
            "test": self.test,
            "fixed": list(self.fixed),
            "broken": list(self.broken),
            "flaky": list(self.flaky),
            "both_pass": self.both_pass,
            "both_fail": self.both_fail,
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
    settings = [run.results.get("settings", {}) for run in (a, b)]
    differing = {
        name: (settings[0].get(name), settings[1].get(name))
        for name in {**settings[0], **settings[1]}
        if settings[0].get(name) != settings[1].get(name)
    }
    for name in _SAME:
        if name in differing:
            raise UsageError(
                f"{name} of the two runs differs: {differing[name][0]} and {differing[name][1]}",
                "score both with the same version of the benchmark's file",
            )
    passes_a, passes_b = a.passes(), b.passes()
    tasks = sorted(passes_a.keys() & passes_b.keys(), key=natural)
    if not tasks:
        raise UsageError(f"{a.path} and {b.path} have no task in common")
    rates_a = [_mean(passes_a[task]) for task in tasks]
    rates_b = [_mean(passes_b[task]) for task in tasks]
    pairs = list(zip(tasks, rates_a, rates_b, strict=True))
    fixed = tuple(task for task, x, y in pairs if x < 1 and y == 1)
    broken = tuple(task for task, x, y in pairs if x == 1 and y < 1)
    single = all(rate in (0.0, 1.0) for rate in (*rates_a, *rates_b))
    score_a, score_b = _mean(rates_a), _mean(rates_b)
    if single:
        p_value = mcnemar(len(fixed), len(broken))
    else:
        p_value = paired_permutation(rates_a, rates_b)
    return Comparison(
        a=str(a.path),
        b=str(b.path),
        scores=(score_a, score_b),
        difference=score_b - score_a,
        interval=paired_interval(rates_a, rates_b),
        p_value=p_value,
        test="McNemar, exact" if single else "paired permutation of tasks",
        fixed=fixed,
        broken=broken,
        flaky=tuple(task for task, x, y in pairs if 0 < x < 1 or 0 < y < 1),
        both_pass=sum(x == 1 and y == 1 for _, x, y in pairs),
        both_fail=sum(x == 0 and y == 0 for _, x, y in pairs),
        differing=dict(sorted(differing.items())),
        missing=tuple(sorted(passes_a.keys() ^ passes_b.keys(), key=natural)),
    )


def _mean(values: list[bool] | list[float]) -> float:
    return sum(values) / len(values)


def comparison_table(found: Comparison) -> Table:
    from rich.table import Table

    table = Table(title=f"A {found.a}\nB {found.b}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("pass@1", f"A {100 * found.scores[0]:.1f} %, B {100 * found.scores[1]:.1f} %")
    low, high = found.interval
    interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    table.add_row("B - A", f"{100 * found.difference:+.1f} points   ({interval})")
    chance = "below 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
    table.add_row("by chance", f"p = {chance} ({found.test})")
    table.add_row("both", f"pass {found.both_pass}, fail {found.both_fail}")
    for name, tasks in (("fixed", found.fixed), ("broken", found.broken), ("flaky", found.flaky)):
        table.add_row(name, f"{len(tasks)}: {', '.join(tasks)}" if tasks else "none")
    for name, (x, y) in found.differing.items():
        table.add_row(f"{name} differs", f"A {x}\nB {y}")
    if found.missing:
        table.add_row("in one only", f"{len(found.missing)} tasks, left out")
    return table
