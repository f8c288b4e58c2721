"""Which sample of each task to take (`--rerank`).

Majority is self-consistency (Wang et al. 2023, arXiv:2203.11171) with behaviour in place of the
answer: what MBR-exec takes under its 0/1 loss (Shi et al. 2022, arXiv:2204.11454, section 3) is a
member of the largest group of programs that give the same outputs. That the examples of the prompt
count first is AlphaCode's filtering (Li et al. 2022, arXiv:2203.07814, section 4.5). The mean
log-probability of a token is Codex's way (Chen et al. 2021, arXiv:2107.03374, section 3.3).
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from apr.common.errors import UsageError
from apr.eval.benchmarks.task import Task
from apr.eval.code.prefixes import parse
from apr.eval.generators import Submission
from apr.eval.rerank.behaviour import Behaviour, Keep, Known, SampleId, behaviours
from apr.eval.rerank.visible import Question
from apr.sandbox import Sandbox

Method = Literal["majority", "logprob", "tests"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Choice:
    """The sample taken, and what decided: "behaviour", "syntax" where no program could be called,
    "examples", "logprob", or "order" where nothing told the samples apart.
    """

    sample: int
    by: Literal["behaviour", "syntax", "examples", "logprob", "order"]


def check_methods(methods: Sequence[str], samples: int) -> None:
    """Raises UsageError for an unknown method, or where there is nothing to choose from."""
    for method in methods:
        if method not in METHODS:
            raise UsageError(f"--rerank {method} is unknown", f"one of {', '.join(METHODS)}, none")
    if methods and samples < 2:
        raise UsageError(
            "--rerank chooses one of several samples a task, and there is one",
            "apr eval makes more with --n-samples 10 --temperature 0.8, say",
        )


def choose_by(
    methods: Sequence[str],
    tasks: Mapping[str, Task],
    candidates: Sequence[Submission],
    sandbox: Sandbox,
    seed: int = 0,
    known: Known | None = None,
    keep: Keep = lambda *_: None,
    progress: bool = False,
) -> dict[str, dict[str, Choice]]:
    """Method -> task id -> choice. Of a task only its prompt and the name of its function are
    looked at. known, keep: see `behaviours`.

    Raises UsageError for logprob where no sample has one.
    """
    if "logprob" in methods and all(c.mean_logprob is None for c in candidates):
        raise UsageError(
            "--rerank logprob: these samples have no log-probabilities",
            "apr eval measures them when it generates (--fresh); majority and tests need none",
        )
    groups: dict[str, list[Submission]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.task_id].append(candidate)
    did: Mapping[SampleId, Behaviour] = {}
    if {"majority", "tests"} & set(methods):
        questions = {
            name: Question(name, tasks[name].prompt, tasks[name].entry_point) for name in groups
        }
        did = behaviours(questions, candidates, sandbox, seed, known, keep, progress)
    return {
        method: {name: _choose(method, group, did) for name, group in groups.items()}
        for method in methods
    }


def _choose(method: str, group: Sequence[Submission], did: Mapping[SampleId, Behaviour]) -> Choice:
    """group: all candidates of one task."""
    if method == "logprob":
        measured = any(c.mean_logprob is not None for c in group)
        return Choice(max(group, key=_likely).sample, "logprob" if measured else "order")
    behaviour = {c.sample: did[c.task_id, c.sample] for c in group}
    if method == "majority":
        return majority(group, behaviour)
    best = max(found.shown for found in behaviour.values())
    first = min(c.sample for c in group if behaviour[c.sample].shown == best)
    return Choice(first, "examples" if best else "order")


def majority(group: Sequence[Submission], behaviour: Mapping[int, Behaviour]) -> Choice:
    """Of the programs that return anything those that get most of the prompt's examples right; of
    these one of the largest group that does the same. Where none returns anything, one of the
    largest group with the same syntax tree.

    Between groups of one size and within a group: the likeliest a token, then the first.
    """
    running = [c for c in group if behaviour[c.sample].returns]
    if running:
        best = max(behaviour[c.sample].shown for c in running)
        passing = [c for c in running if behaviour[c.sample].shown == best]
        answers = [behaviour[c.sample].answers for c in passing]
        return Choice(_of_most(passing, answers).sample, "behaviour")
    forms = {c.sample: normal_form(c.program) for c in group}
    parsed = [c for c in group if forms[c.sample] is not None]
    if not parsed:
        return Choice(max(group, key=_likely).sample, "order")
    return Choice(_of_most(parsed, [forms[c.sample] for c in parsed]).sample, "syntax")


def _of_most(group: Sequence[Submission], keys: Sequence[object]) -> Submission:
    """keys: of each candidate, equal for those that belong together."""
    sizes = Counter(keys)
    pairs = zip(group, keys, strict=True)
    return max(pairs, key=lambda pair: (sizes[pair[1]], *_likely(pair[0])))[0]


def _likely(candidate: Submission) -> tuple[float, int]:
    """The likeliest first, then in order. Empty answers have no tokens: unlikely."""
    logprob = candidate.mean_logprob
    return (-math.inf if logprob is None else logprob, -candidate.sample)


def normal_form(program: str) -> str | None:
    """Equal for programs whose syntax trees differ in docstrings and the names of parameters and
    local variables only; None for what does not parse.
    """
    tree = parse(program)
    if tree is None:
        return None
    try:
        for node in ast.walk(tree):
            _drop_docstring(node)
        _rename(tree, {})
        text = ast.dump(tree)
    except RecursionError:
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
        return
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]


def _rename(node: ast.AST, names: dict[str, str]) -> None:
    """Number the names that functions bind, in the order they are met; inner ones see outer."""
    if isinstance(node, _FUNCTIONS):
        names = dict(names)
        for name in _bound(node):
            names[name] = f"_{len(names)}"
    for child in ast.iter_child_nodes(node):
        _rename(child, names)
    if isinstance(node, ast.Name):
        node.id = names.get(node.id, node.id)
    elif isinstance(node, ast.arg):
        node.arg = names.get(node.arg, node.arg)
        node.annotation = None
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node.returns = None


def _bound(function: ast.AST) -> list[str]:
    """Parameters and variables of a function, its inner functions' left out, in order."""
    found: dict[str, None] = {}
    foreign: set[str] = set()
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.arg):
            found[node.arg] = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        elif isinstance(node, ast.Global | ast.Nonlocal):
            foreign.update(node.names)
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            todo = [*ast.iter_child_nodes(node), *todo]
    return [name for name in found if name not in foreign]
