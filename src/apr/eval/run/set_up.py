"""Faults of set-up that look like a bad model: nothing was answered, or answers are no programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from apr.eval.benchmarks.task import Benchmark
from apr.eval.code.fences import FENCE
from apr.eval.code.prefixes import parse
from apr.eval.code.thoughts import without_thoughts
from apr.eval.generators import Submission

FIRST = 20  # answers after which a run is looked at
NEARLY_ALL = 0.9


def set_up_notes(benchmark: Benchmark, samples: Sequence[Submission], hint: str) -> list[str]:
    """What to tell of samples whose score may say nothing of the model.

    hint: what to do about chat answers that were taken for programs.
    """
    total = len(samples)
    empty = [s for s in samples if not _answer(s).strip()]
    unread = []
    if benchmark.writes_code:
        unread = [s for s in samples if _answer(s).strip() and parse(s.program) is None]
    chat = [s for s in unread if hint and _is_chat(_answer(s))]
    bodies = [s for s in unread if s.completion is None and s not in chat]
    bodies = [s for s in bodies if parse(benchmark.tasks[s.task_id].prompt + _answer(s))]
    notes = []
    if empty:
        cut = sum(s.finish_reason == "length" for s in empty)
        how = f", {cut} of them cut at the limit of tokens: a larger --max-tokens" if cut else ""
        notes.append(f"{len(empty)} of {total} samples have no answer{how}")
    if chat:
        fenced = any(FENCE.search(_answer(s)) for s in chat)
        what = "code fences" if fenced else "thoughts"
        notes.append(f"{len(chat)} of {total} samples do not parse and hold {what}: {hint}")
    if bodies:
        notes.append(
            f"{len(bodies)} of {total} solutions parse only behind the prompts of their tasks: such"
            " texts belong in the field 'completion'"
        )
    others = len(unread) - len(chat) - len(bodies)
    if others and others >= NEARLY_ALL * total:
        notes.append(f"{others} of {total} samples are no Python that parses")
    return notes


class EarlyWarning:
    """Says once, after the first answers, if nearly all of them have the same fault of set-up.

    say: shows a line.
    """

    def __init__(self, benchmark: Benchmark, hint: str, say: Callable[[str], None]) -> None:
        self._benchmark, self._hint, self._say = benchmark, hint, say
        self._first: list[Submission] = []

    def sample(self, sample: Submission) -> None:
        """One more is made."""
        if len(self._first) == FIRST:
            return
        self._first.append(sample)
        if len(self._first) < FIRST:
            return
        for note in set_up_notes(self._benchmark, self._first, self._hint):
            if int(note.partition(" ")[0]) >= NEARLY_ALL * FIRST:
                self._say(f"warning: of the first {FIRST}: {note}")


def _answer(sample: Submission) -> str:
    """What was said, as far as it is known."""
    if sample.answer is not None:
        return sample.answer
    return sample.program if sample.completion is None else sample.completion


def _is_chat(text: str) -> bool:
    return FENCE.search(text) is not None or without_thoughts(text).text != text
