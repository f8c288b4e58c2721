"""The tables of evaluations: of a result, of its tasks, of several benchmarks, of contamination."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from apr.cli.options import number_text
from apr.common.foreign import printable

if TYPE_CHECKING:
    from rich.console import Console

    from apr.eval.benchmarks.task import Prompt
    from apr.eval.history.contamination import Contamination
    from apr.eval.history.sweep import SweepResult
    from apr.eval.run.result import Result
    from apr.eval.run.suite import SuiteResult

NAMED = 10  # suspect samples and contaminated tasks that a table names


def summary_table(result: Result) -> Table:
    """Scores, counts of verdicts, and how they were found."""
    from apr.eval.run.result import shown_setting

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
    from apr.eval.run.result import natural

    found = sorted(suspects.items(), key=lambda item: (natural(item[0][0]), item[0][1]))
    lines = [f"{len(found)} samples to look at; no score depends on it"]
    for (task, sample), reasons in found[:NAMED]:
        lines.append(f"{task} sample {sample}: {'; '.join(reasons)}")
    if len(found) > NAMED:
        lines.append(f"and {len(found) - NAMED} more, all in results.json")
    return "\n".join(lines)


def task_table(result: Result) -> Table:
    """One row a task: passed of samples, with all tests and with parts, and the first failure."""
    from apr.eval.history.table import shown_detail

    table = Table("task", "passed", *(f"{part} tests" for part in result.parts), "first failure")
    for task, verdicts in result.per_task.items():
        passed = sum(v.verdict == "passed" for v in verdicts)
        failure = next((v.detail for v in verdicts if v.verdict != "passed"), "")
        parts = [sum(v.passed(part) for v in verdicts) for part in result.parts]
        counts = [f"{count}/{len(verdicts)}" for count in (passed, *parts)]
        table.add_row(task, *counts, shown_detail(failure))
    return table


def suite_table(found: SuiteResult) -> Table:
    """One row a benchmark: its scores with their intervals, and where the run lies."""
    ks = sorted({k for result, _ in found.runs for k in result.passes})
    table = Table(title=found.runs[0][0].subject, title_justify="left")
    table.add_column("benchmark")
    for name in ("tasks", *(f"pass@{k}" for k in ks)):
        table.add_column(name, justify="right")
    table.add_column("folder", overflow="fold")
    for result, folder in found.runs:
        scores = [_score(result.passes[k]) if k in result.passes else "" for k in ks]
        table.add_row(result.benchmark, str(len(result.per_task)), *scores, str(folder))
        for part, of_part in result.parts.items():
            values = [f"pass@{k}" for k in ks]
            shown = [f"{100 * of_part[v]:.1f}" if v in of_part else "" for v in values]
            table.add_row(f"  {part} tests only", "", *shown, "")
    return table


def _score(score: tuple[float, float, float]) -> str:
    value, low, high = (100 * number for number in score)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def contamination_table(found: Contamination) -> Table:
    """Scores of tasks in the training data, and of the others."""
    from apr.eval.run.result import percent

    table = Table(title=found.run, caption=f"training data: {found.data}")
    names = [f"pass@{k}" for k in (found.scores_in_data or found.scores_of_others)]
    for name in ("", "tasks", *names):
        table.add_column(name, justify="right" if name == "tasks" else "left")
    for name, tasks, scores in (
        ("in the training data", found.in_data, found.scores_in_data),
        ("not found in it", found.others, found.scores_of_others),
    ):
        shown = [f"{percent(s)} ({100 * a:.1f} to {100 * b:.1f})" for s, a, b in scores.values()]
        table.add_row(name, str(len(tasks)), *shown)
    return table


def print_result(result: Result, per_task: bool) -> None:
    """The tables of a result on standard output."""
    console = _console()
    if per_task:
        console.print(task_table(result))
    console.print(summary_table(result))


def print_samples(folder: Path, count: int) -> None:
    """The first programs of a run."""
    if not count:
        return
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    for row in map(json.loads, lines):
        print(printable(f"--- {row['task_id']}\n{row['completion']}"))


def print_suite(found: SuiteResult, per_task: bool, samples: int) -> None:
    """The table of several benchmarks, and what was left out."""
    console = _console()
    for result, folder in found.runs:
        print_samples(folder, samples)
        if per_task:
            console.print(task_table(result))
    console.print(suite_table(found))
    for name, reason in found.left_out.items():
        print(f"not run: {name}: {reason}")


def print_sweep(found: SweepResult) -> None:
    """The table of a sweep, and where all of it is."""
    from apr.eval.history.sweep import sweep_table

    _console().print(sweep_table(found))
    print(f"all of it is in {found.path}")


def show_perplexity(result: Mapping[str, Any]) -> None:
    """What was measured on a text, and how."""
    tokens, text = result["tokens"], result["text"]
    print(f"perplexity     {number_text(result['perplexity'])}  {result['model']}")
    print(f"bits per byte  {number_text(result['bits_per_byte'], 4)}")
    print(f"predicted      {tokens} tokens, {result['bytes']} bytes of {text}")
    print(
        f"windows        {result['windows']} of {result['window']} tokens, stride"
        f" {result['stride']}; {result['dtype']} on {result['device']}"
    )
    if result["passed"] is False:
        print(f"above --threshold {result['threshold']:g}")


def print_table(table: Table) -> None:
    _console().print(table)


def _console() -> Console:
    """One that takes text for text: names and what programs say may hold [marks] and :names:."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def page(text: str) -> None:
    """Show a long text, page by page at a terminal. What does not print is spelled."""
    text = printable(text)
    console = _console()
    if console.is_terminal and text.count("\n") > console.height:
        with console.pager():
            console.print(text, highlight=False)
    else:
        print(text)


def print_prompts(prompts: Sequence[Prompt], as_json: bool) -> None:
    """Prompts as they are sent, one after the other: raw text, or messages in order."""
    if as_json:
        print(json.dumps({"prompts": [asdict(prompt) for prompt in prompts]}))
        return
    for number, prompt in enumerate(prompts):
        if number:
            print("\n=== then")
        if prompt.messages is None:
            print(prompt.text)
        for message in prompt.messages or ():
            print(f"--- {message['role']}\n{message['content']}")
        if prompt.prefill:
            print(f"--- assistant begins with\n{prompt.prefill}")
