"""Runs and their samples as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from apr.common.foreign import bounded, printable
from apr.eval.history.read import JudgedSample, Run, whole_programs
from apr.eval.run.result import natural, percent, shown_setting

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 80  # characters of a reason in a table
WIDE = 130  # columns of a terminal that all of a run's facts fit side by side in
FOR_WIDE = ("finished", "prompt", "sampling", "samples", "more", "tokens/s", "isolation")


def history_table(runs: Sequence[Run], width: int = WIDE) -> Table:
    """A row a run. width: of the terminal; a narrow one gets what tells runs apart at a glance."""
    from rich.table import Table

    rows = [_history_row(run) for run in runs]
    columns = [name for name in rows[0] if width >= WIDE or name not in FOR_WIDE]
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    if width < WIDE:
        told = f"{', '.join(FOR_WIDE)}: {WIDE} columns are needed, or --json"
        table.caption, table.caption_justify = told, "left"
    return table


def _history_row(run: Run) -> dict[str, str]:
    found = run.results
    settings = found.get("settings", {})
    return {
        "finished": run.finished[:16].replace("T", " ") if run.complete else "",
        "benchmark": run.benchmark,
        "model": run.subject.rpartition("/")[2],
        "prompt": _prompt(settings),
        "sampling": shown_setting(settings["sampling"]) if "sampling" in settings else "",
        "samples": f"{found['samples']} of {found['tasks']} tasks",
        "pass@1": _score(found) if run.complete else "not finished",
        "more": more_scores(run),
        "tokens/s": f"{run.speed:,.0f}" if run.speed else "",
        "isolation": ", ".join(found.get("isolation", ())),
        "folder": str(run.path),
    }


def run_table(run: Run) -> Table:
    """What identifies a run, and a row for each task."""
    from rich.table import Table

    found = run.results
    facts = {
        "folder": run.path,
        "finished": run.finished if run.complete else "no: the same apr eval command goes on",
        "pass@1": _score(found),
        "more": more_scores(run),
        **{name: shown_setting(value) for name, value in found.get("settings", {}).items()},
        "tokens/s": run.speed,
        "isolation": ", ".join(found.get("isolation", ())),
    }
    told = "\n".join(
        f"{name}: {value}"
        for name, value in [*facts.items(), *(("note", note) for note in found.get("notes", ()))]
        if value
    )
    table = Table("task", "passed", "first failure", "suspect", caption=told)
    table.caption_justify = "left"
    table.title = f"{run.benchmark}: {run.subject}"
    tasks: dict[str, list[JudgedSample]] = {}
    for sample in run.samples():
        tasks.setdefault(sample.task_id, []).append(sample)
    for task in sorted(tasks, key=natural):
        samples = tasks[task]
        failure = next((s.detail for s in samples if not s.passed), "")
        reasons = dict.fromkeys(reason for s in samples for reason in s.suspect)
        passed = sum(s.passed for s in samples)
        table.add_row(task, f"{passed}/{len(samples)}", shown_detail(failure), "; ".join(reasons))
    return table


def shown_detail(detail: str) -> str:
    """A reason as a table's cell: short, and nothing in it that a terminal would obey."""
    return printable(bounded(detail, SHOWN))


def shown_samples(run: Run, samples: Sequence[JudgedSample]) -> str:
    """Of each: task, verdict and its reason, the program, and what the model wrote if that is
    more.
    """
    return "\n".join(_shown(found) for found in samples_json(run, samples))


def samples_json(run: Run, samples: Sequence[JudgedSample]) -> list[dict[str, Any]]:
    """Of each what its verdict is and what was written. program, completion, text: None where they
    are not at hand.
    """
    written, program = run.written(), whole_programs(run)
    found = []
    for sample in samples:
        here = written.get((sample.task_id, sample.sample))
        found.append(
            {
                **asdict(sample),
                "program": program(sample.task_id, here.completion) if here else None,
                "completion": here.completion if here else None,
                "text": here.text if here else None,
            }
        )
    return found


def _shown(sample: dict[str, Any]) -> str:
    parts = [f"=== {sample['task_id']} sample {sample['sample']}: {sample['verdict']}"]
    if sample["detail"] not in ("", "passed"):
        parts.append(sample["detail"])
    parts += [f"suspect: {reason}" for reason in sample["suspect"]]
    if sample["completion"] is None:
        return "\n".join([*parts, "(the program is not stored here)\n"])
    if sample["program"] is None:
        parts += ["--- completion", sample["completion"]]
    else:
        parts += ["--- program", sample["program"]]
    if sample["text"] != sample["completion"]:
        parts += ["--- what the model wrote", sample["text"]]
    return "\n".join([*parts, ""])


def _prompt(settings: dict[str, Any]) -> str:
    prompt = str(settings.get("prompt", ""))
    if "strategy" in settings:
        prompt = f"{settings['strategy'].get('name', 'system')}, {prompt}"
    return prompt


def _score(found: Any) -> str:
    if "pass@1" not in found:
        return ""
    low, high = found["pass@1_ci95"]
    return f"{percent(found['pass@1'])}  ({100 * low:.1f}-{100 * high:.1f})"


def more_scores(run: Run) -> str:
    """Its further scores, in percent, and how many samples are suspect."""
    found = run.results
    parts = [f"{k} {100 * v:.1f}" for k, v in found.items() if _is_further_score(k)]
    parts += [f"{name} {100 * s['pass@1']:.1f}" for name, s in found.get("parts", {}).items()]
    parts += [f"by {name} {100 * s['pass@1']:.1f}" for name, s in found.get("reranked", {}).items()]
    if found.get("suspect_samples"):
        parts.append(f"{found['suspect_samples']} suspect")
    return ", ".join(parts)


def _is_further_score(name: str) -> bool:
    return name.startswith("pass@") and name != "pass@1" and not name.endswith("_ci95")
