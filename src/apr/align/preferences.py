"""Preferences: prompts with better and worse answers, from rows of files to batches.

Shapes of rows, told apart by their keys:
    {prompt, chosen, rejected}          texts, or lists of messages
    {chosen, rejected}                  conversations, or texts, that begin alike: the prompt
    {question, response_j, response_k}  as {prompt, chosen, rejected}
    {prompt, completion, label}         one answer, good (true) or bad; for KTO alone

A prompt and its answers are in a batch once: [prompt, answer, answer, ...], without padding. Each
answer sees the prompt and itself (`apr.train.objective.shared_beginnings`), so it gets what it
would get in a document of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apr.data.training_rows import BadRow
from apr.text import Tokenizer
from apr.train.dataset import DataReport, read_examples
from apr.train.examples import document_of
from apr.train.packing import MULTIPLE, Batch, Document, moved, shuffled

SHAPES = "prompt, chosen and rejected, as texts or messages"
UNPAIRED = "prompt, completion and label"


@dataclass(frozen=True)
class Preference:
    """prompt: int32 ids that all answers follow. answers: what comes behind it. good: of each
    answer. The last `probes` answers belong to other prompts and are nobody's preference.
    """

    prompt: np.ndarray
    answers: tuple[Document, ...]
    good: tuple[bool, ...]
    probes: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def targets(self) -> int:
        return sum(int(answer.trained.sum()) for answer in self.answers)

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(map(len, self.answers))

    def document(self) -> Document:
        """The prompt with its first answer."""
        first = self.answers[0]
        before = np.zeros(len(self.prompt), bool)
        return Document(
            np.concatenate([self.prompt, first.ids]), np.concatenate([before, first.trained])
        )


def read_preferences(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    unpaired: bool,
    chat: bool = False,
    skip_bad_rows: bool = False,
) -> tuple[list[Preference], DataReport]:
    """All rows of files. max_length: of a prompt with an answer; longer answers are cut.

    Raises UsageError naming file and line as `read_documents` does.
    """

    def make(row: Mapping[str, Any], report: DataReport) -> tuple[list[Preference], bool]:
        whole = preference_of(row, tokenizer, unpaired=unpaired, chat=chat)
        room = max_length - len(whole.prompt)
        if room < 1:
            raise BadRow(
                f"the prompt has {len(whole.prompt)} tokens, a sequence {max_length} at most"
            )
        cut = [Document(a.ids[:room], a.trained[:room]) for a in whole.answers]
        if not all(answer.trained.any() for answer in cut):
            return [], False
        return [replace(whole, answers=tuple(cut))], whole.longest > max_length

    return read_examples(files, make, max_length, skip_bad_rows)


def preference_of(
    row: Mapping[str, Any], tokenizer: Tokenizer, *, unpaired: bool = False, chat: bool = False
) -> Preference:
    """One row, uncut. unpaired: rows of one answer are taken, too. Raises BadRow."""
    if "label" in row and "completion" in row:
        if not unpaired:
            raise BadRow(f"it has one answer; {SHAPES} are needed (kto learns from single answers)")
        if row["label"] not in (True, False, 0, 1):
            raise BadRow("label is neither true nor false")
        known = {name: row[name] for name in ("prompt", "completion", "tools") if name in row}
        return _preference([document_of(known, tokenizer, chat=chat)], (bool(row["label"]),))
    names = ("response_j", "response_k") if "response_j" in row else ("chosen", "rejected")
    if any(name not in row for name in names):
        expected = f"{SHAPES}{f', or {UNPAIRED}' if unpaired else ''}"
        raise BadRow(f"its keys are {', '.join(map(str, row)) or 'none'}; expected are {expected}")
    prompt = next((row[key] for key in ("prompt", "question", "instruction") if key in row), None)
    answers = [row[name] for name in names]
    if prompt is None:
        prompt, answers = _apart(*answers)
    if answers[0] == answers[1]:
        raise BadRow(f"{names[0]} equals {names[1]}")
    documents = [
        document_of(
            {"prompt": prompt, "completion": answer, "tools": row.get("tools")},
            tokenizer,
            chat=chat,
        )
        for answer in answers
    ]
    return _preference(documents, (True, False))


def _apart(chosen: Any, rejected: Any) -> tuple[Any, list[Any]]:
    """The prompt that two conversations begin with, and the answers."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected))))  # noqa: B905
        if not same:
            raise BadRow("chosen and rejected do not begin with the same messages")
        return chosen[:same], [chosen[same:], rejected[same:]]
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise BadRow("chosen and rejected are neither texts nor lists of messages")
    mark = "\n\nAssistant:"
    ends = [text.rfind(mark) + len(mark) for text in (chosen, rejected)]
    if mark not in chosen or chosen[: ends[0]] != rejected[: ends[1]]:
        raise BadRow("it has no prompt, and chosen and rejected do not begin with the same one")
    return chosen[: ends[0]], [chosen[ends[0] :], rejected[ends[1] :]]


def _preference(documents: Sequence[Document], good: tuple[bool, ...]) -> Preference:
    """Documents cut where they stop being alike, or where one is learned from."""
    least = min(int(document.trained.argmax()) for document in documents)
    first = documents[0].ids[:least]
    for other in documents[1:]:
        differ = np.flatnonzero(first != other.ids[: len(first)])
        first = first[: int(differ[0])] if len(differ) else first
    size = len(first)
    if not size:
        raise BadRow("the prompt is empty")
    return Preference(
        first, tuple(Document(d.ids[size:], d.trained[size:]) for d in documents), good
    )


def with_probes(preferences: Sequence[Preference]) -> list[Preference]:
    """Each prompt with the first answer of the one before (the last one's for the first).

    Pairs that do not belong together tell how far the model has moved from its reference at all:
    the point of comparison of KTO (Ethayarajh et al. 2024, section 4.1).
    """
    return [
        replace(
            one,
            answers=(*one.answers, _learned(preferences[i - 1].answers[0])),
            good=(*one.good, False),
            probes=1,
        )
        for i, one in enumerate(preferences)
    ]


def _learned(answer: Document) -> Document:
    ids = answer.ids[answer.trained]
    return Document(ids, np.ones(len(ids), bool))


@dataclass(frozen=True)
class PreferenceBatch:
    """packed: P prompts with A answers in all. owner: int64 (n,), the answer that each target is
    of; A + p for targets in prompt p. lengths: fp32 (A,), targets of each answer. good: bool (A,).
    judged: bool (A,), False for probes. reference: fp32 (n,), the reference's log-probabilities, or
    None. weight: what the loss is a mean over, pairs or judged answers.
    """

    packed: Batch
    owner: torch.Tensor
    lengths: torch.Tensor
    good: torch.Tensor
    judged: torch.Tensor
    prompts: int
    weight: int
    reference: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.packed.tokens

    def to_json(self) -> dict[str, Any]:
        return {**self.packed.to_json(), "owner": self.owner.tolist(), "good": self.good.tolist()}


def make_batch(
    preferences: Sequence[Preference], *, over_prompts: bool = False, multiple: int = 1
) -> PreferenceBatch:
    """over_prompts: prompts' tokens, but the first, are targets as well. multiple: of tokens."""
    ids, positions, owner, rows = [], [], [], []
    attend_to, attend_from, starts = [], [], [0]
    lengths: list[int] = []
    count = sum(len(one.answers) for one in preferences)
    at = 0
    for p, one in enumerate(preferences):
        size, begin = len(one.prompt), at
        ids.append(one.prompt)
        positions.append(np.arange(size))
        if over_prompts:
            rows.append(np.arange(begin, begin + size - 1))
            owner.append(np.full(size - 1, count + p))
        at += size
        attend_from.append(np.arange(starts[-1], starts[-1] + size))
        for answer in one.answers:
            n = len(answer)
            ids.append(answer.ids)
            positions.append(np.arange(size, size + n))
            learned = np.flatnonzero(answer.trained)
            # The first token of an answer follows the prompt's last.
            rows.append(np.where(learned == 0, begin + size - 1, at + learned - 1))
            owner.append(np.full(len(learned), len(lengths)))
            lengths.append(len(learned))
            attend_to.append(
                np.concatenate([np.arange(begin, begin + size), np.arange(at, at + n)])
            )
            attend_from.append(np.arange(starts[-1] + size, starts[-1] + size + n))
            starts.append(starts[-1] + size + n)
            at += n
    labels = _labels(preferences, over_prompts)
    missing = -at % multiple
    if missing:
        ids.append(np.zeros(missing, np.int32))
        positions.append(np.arange(missing))
        attend_to.append(np.arange(at, at + missing))
        attend_from.append(np.arange(starts[-1], starts[-1] + missing))
        starts.append(starts[-1] + missing)

    def tensor(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    packed = Batch(
        tensor(ids), tensor(positions), tuple(starts), tensor(rows), tensor(labels), missing,
        tensor(attend_to), tensor(attend_from),
    )  # fmt: skip
    judged = [
        i < len(one.answers) - one.probes for one in preferences for i in range(len(one.answers))
    ]
    return PreferenceBatch(
        packed,
        owner=tensor(owner),
        lengths=torch.tensor(lengths, dtype=torch.float32),
        good=torch.tensor([good for one in preferences for good in one.good]),
        judged=torch.tensor(judged),
        prompts=len(preferences),
        weight=len(preferences),
    )


def _labels(preferences: Sequence[Preference], over_prompts: bool) -> list[np.ndarray]:
    """The targets' tokens, in the order of `make_batch`."""
    labels = []
    for one in preferences:
        if over_prompts:
            labels.append(one.prompt[1:])
        labels += [answer.ids[answer.trained] for answer in one.answers]
    return labels


@dataclass(frozen=True)
class PreferenceData:
    """Preferences as the loop takes them, batch_size prompts at a time. reference: per preference,
    fp32 log-probabilities of its targets.
    """

    preferences: Sequence[Preference]
    batch_size: int
    seed: int
    over_prompts: bool = False
    unpaired: bool = False
    reference: Sequence[np.ndarray] | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a constant)

    def batches(self, epoch: int) -> list[list[int]]:
        order = shuffled(len(self.preferences), self.seed, epoch)
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def load(self, batch: Sequence[int]) -> PreferenceBatch:
        chosen = [self.preferences[i] for i in batch]
        made = make_batch(chosen, over_prompts=self.over_prompts, multiple=MULTIPLE)
        tensors = moved(made, self.device)
        if self.reference is not None:
            known = np.concatenate([self.reference[i] for i in batch])
            tensors["reference"] = torch.from_numpy(known).to(self.device)
        weight = int(made.judged.sum()) if self.unpaired else len(batch)
        return replace(made, packed=made.packed.to(self.device), weight=weight, **tensors)
