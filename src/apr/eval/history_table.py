"""Runs and failures as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apr.eval.history import Failure, Run

if TYPE_CHECKING:
    from rich.table import Table


def history_table(runs: Sequence[Run]) -> Table:
    """A row a run."""
    from rich.table import Table

    table = Table("finished", "benchmark", "model", "prompt", "samples", "pass@1", "more", "folder")
    for run in runs:
        found, settings = run.results, run.results.get("settings", {})
        low, high = found.get("pass@1_ci95", (0.0, 0.0))
        score = f"{100 * found['pass@1']:.1f} %  ({100 * low:.1f}-{100 * high:.1f})"
        prompt = str(settings.get("prompt", ""))
        if "strategy" in settings:
            prompt = f"{settings['strategy'].get('name', 'system')}, {prompt}"
        table.add_row(
            run.finished[:16].replace("T", " "),
            run.benchmark,
            run.subject.rpartition("/")[2],
            prompt,
            f"{found['samples']} of {found['tasks']}",
            score if "pass@1" in found else "",
            _more(run),
            str(run.path),
        )
    return table


def _more(run: Run) -> str:
    found = run.results
    parts = [f"{k} {100 * v:.1f}" for k, v in found.items() if _is_further_score(k)]
    parts += [f"{name} {100 * s['pass@1']:.1f}" for name, s in found.get("parts", {}).items()]
    parts += [f"by {name} {100 * s['pass@1']:.1f}" for name, s in found.get("reranked", {}).items()]
    return ", ".join(parts)


def _is_further_score(name: str) -> bool:
    return name.startswith("pass@") and name != "pass@1" and not name.endswith("_ci95")


def shown_failure(failure: Failure) -> str:
    """Task, reason, and what the model wrote."""
    head = f"--- {failure.task_id} sample {failure.sample}: {failure.verdict}: {failure.detail}"
    return f"{head}\n{failure.completion or failure.text}\n"
