"""Which sample of each task to take (`--rerank`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from apr.errors import UsageError
from apr.eval.rerank.behaviour import Behaviour, Candidate, behaviours, syntax
from apr.eval.rerank.visible import Question
from apr.eval.sandbox import Sandbox
from apr.eval.task import Task

Method = Literal["majority", "logprob", "tests"]
METHODS: tuple[str, ...] = get_args(Method)


def check_methods(methods: Sequence[str], samples: int) -> None:
    """Raises UsageError for an unknown method, or where there is nothing to choose from."""
    for method in methods:
        if method not in METHODS:
            raise UsageError(f"--rerank {method} is unknown", f"one of {', '.join(METHODS)}, none")
    if methods and samples < 2:
        raise UsageError(
            "--rerank chooses one of several samples", "add --n-samples 10 --temperature 0.8, say"
        )


def choose_by(
    methods: Sequence[str],
    tasks: Mapping[str, Task],
    candidates: Sequence[Candidate],
    sandbox: Sandbox,
    seed: int = 0,
) -> dict[str, dict[str, int]]:
    """Method -> task id -> number of the sample chosen.

    majority: of the largest group of programs that answer the same calls alike (self-consistency,
    Wang et al. 2023, arXiv:2203.11171, over behaviour as in Shi et al. 2022, arXiv:2204.11454,
    MBR-exec): the calls the prompt shows, and others made from these. Where no program can be
    called, of the largest group with the same syntax tree. tests: one that gets most of the
    examples right that the prompt shows. logprob: the likeliest a token (Chen et al. 2021, section
    3.3). Ties go to the likeliest, then to the first.

    Of a task only its prompt and the name of its function are looked at. Raises UsageError for
    logprob where samples have none.
    """
    questions = {name: Question(name, t.prompt, t.entry_point) for name, t in tasks.items()}
    did: Mapping[tuple[str, int], Behaviour] = {}
    if {"majority", "tests"} & set(methods):
        did = behaviours(questions, candidates, sandbox, seed)
    return {method: _best(candidates, _ranking(method, candidates, did)) for method in methods}


_Rank = Callable[[Sequence[Candidate]], list[tuple[int, ...]]]


def _ranking(
    method: str,
    candidates: Sequence[Candidate],
    did: Mapping[tuple[str, int], Behaviour],
) -> _Rank:
    """What a method thinks of the candidates of one task; more is better."""
    if method == "majority":
        return lambda group: _sizes(group, [did[c.task_id, c.sample] for c in group])
    if method == "tests":
        return lambda group: [(did[c.task_id, c.sample].shown,) for c in group]
    unknown = next((c for c in candidates if c.mean_logprob is None), None)
    if unknown is not None:
        raise UsageError(
            f"--rerank logprob: {unknown.task_id} sample {unknown.sample} has no log-probability",
            "--rerank majority needs none",
        )
    return lambda group: [(0,)] * len(group)


def _best(candidates: Sequence[Candidate], rank: _Rank) -> dict[str, int]:
    """Of each task the candidate of the highest rank."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.task_id].append(candidate)
    chosen = {}
    for task_id, group in groups.items():
        ranked = zip(rank(group), group, strict=True)
        _, best = max(ranked, key=lambda item: (item[0], _likely(item[1]), -item[1].sample))
        chosen[task_id] = best.sample
    return chosen


def _likely(candidate: Candidate) -> float:
    return float("-inf") if candidate.mean_logprob is None else candidate.mean_logprob


def _sizes(group: Sequence[Candidate], did: Sequence[Behaviour]) -> list[tuple[int, ...]]:
    """(whether it ever answers, size of its group) of each candidate of one task."""
    works = any(behaviour.returns for behaviour in did)
    keys = [b.answers if works else (syntax(c.program),) for c, b in zip(group, did, strict=True)]
    return [(int(b.returns), keys.count(key)) for b, key in zip(did, keys, strict=True)]
