"""Verdicts of whole benchmarks: the same with one worker and with several, three times over."""

from __future__ import annotations

import re

import pytest

from apr.eval.run.scoring import score_samples

from .shared import completions, shared_data

# Benchmark, its data, recorded completions. Each has another way of judging: assert statements,
# calls with expected answers, unittest, standard input and functions with JSON.
RECORDED = [
    ("humaneval", None, "humaneval_qwen2.5-coder-1.5b-base"),
    ("humaneval+", "evalplus/HumanEvalPlus-v0.1.9", "humaneval_qwen2.5-coder-1.5b-base"),
    ("mbpp+", "evalplus/MbppPlus-v0.1.0", "mbpp_qwen2.5-coder-1.5b-base"),
    (
        "bigcodebench",
        "bigcodebench/BigCodeBench-v0.1.0-sample150",
        "bigcodebench-complete_qwen2.5-coder-1.5b-base_sample150",
    ),
    (
        "livecodebench",
        "livecodebench/livecodebench-release_v1-sample40",
        "livecodebench_o1-mini-2024-09-12_sample40",
    ),
]


def _steady(detail: str, judge: str) -> str:
    """What must not change: little of unittest's messages (random numbers, folders, times)."""
    return "" if judge == "unittest" else re.sub("0x[0-9a-f]+", "0x", detail)


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark", "data", "name"), RECORDED)
def test_the_same_at_any_number_of_workers_and_every_time(
    benchmark: str, data: str | None, name: str
) -> None:
    path = shared_data(f"{data}.jsonl.gz") if data else None
    found = []
    for workers in (1, 2, 2, 2):
        result = score_samples(
            completions(f"{name}.jsonl.gz"), benchmark, path, workers=workers, progress=False
        )
        found.append(
            {
                (v.task_id, v.sample): (v.verdict, _steady(v.detail, v.judge), v.part)
                for v in result.verdicts
            }
        )
    assert len(found[0]) >= 40
    assert found[1:] == found[:1] * 3
