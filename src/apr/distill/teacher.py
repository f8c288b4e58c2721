"""What a teacher says of each target of the data: live, or from a cache on disk.

The cache is a folder:
    header.json     what it is of: teacher, data, temperature, and how distributions are kept
    part-N.npz      PART documents each, the targets of all one after another
                    ids (n, k) of the smallest integers that hold the vocabulary; for top-k also
                    logprobs (n, k) fp16
Parts appear whole, so that an interrupted pass goes on where it was; a header that differs is
refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apr.checkpoint import open_checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.common.errors import UsageError
from apr.common.files import disk_errors, write_json, write_whole
from apr.common.progress import INTERVAL, counted
from apr.hub import Pulled, pull
from apr.hub.resolve import file_records
from apr.kernels.distillation import Target
from apr.kernels.ops import matmul
from apr.model.transformer import Transformer
from apr.text import Tokenizer, load_tokenizer, vocabulary_difference
from apr.train.base import load_base
from apr.train.objective import hidden_states, output_factors
from apr.train.packing import Batch, Document, make_batch

HEADER = "header.json"
PART = 64  # documents
VERSION = 1


@dataclass(frozen=True)
class Teacher:
    """A teacher that is not loaded yet."""

    pulled: Pulled
    dtype: str

    def load(self, device: torch.device) -> Transformer:
        """Frozen; a GGUF file's blocks stay as they are."""
        checkpoint = open_checkpoint(self.pulled.path)
        return load_base(checkpoint, "lora", DTYPES[self.dtype], device).eval()


def find_teacher(
    reference: str, tokenizer: Tokenizer, dtype: str, offline: bool = False
) -> Teacher:
    """Raises UsageError where its vocabulary is not the student's."""
    pulled = pull(reference)
    difference = vocabulary_difference(tokenizer, load_tokenizer(pulled.path))
    if difference:
        raise UsageError(
            f"{reference}: {difference}; distributions over other tokens cannot be compared",
            "a teacher with the student's vocabulary",
        )
    return Teacher(pulled, dtype)


@torch.no_grad()
def live_target(
    teachers: Sequence[Transformer],
    weights: Sequence[float],
    batch: Batch,
    temperature: float,
    vocabulary: int,
) -> Target:
    """What the teachers say of a batch's targets, of the first `vocabulary` ids: their
    probabilities averaged.
    """
    factors = [output_factors(t, hidden_states(t, batch)[batch.rows]) for t in teachers]

    def logprobs(index: int, part: slice) -> torch.Tensor:
        hidden, weight = factors[index]
        logits = matmul(hidden[part], weight.T).float()[:, :vocabulary]
        cap = teachers[index].config.logit_softcap
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return (logits / temperature).log_softmax(1)

    @torch.no_grad()
    def target(part: slice) -> tuple[torch.Tensor, None]:
        total = sum(weights)
        found = [
            logprobs(i, part) + float(np.log(weight / total)) for i, weight in enumerate(weights)
        ]
        return (found[0] if len(found) == 1 else torch.stack(found).logsumexp(0)), None

    return target


@dataclass(frozen=True)
class Kept:
    """Distributions of one document's targets: ids (n, k), and their logprobs of a top-k."""

    ids: np.ndarray
    logprobs: np.ndarray | None


def kept_target(kept: Sequence[Kept], vocabulary: int, device: torch.device) -> Target:
    """The same of documents one after another, as dense rows a chunk at a time."""
    ids = torch.from_numpy(np.concatenate([one.ids for one in kept]).astype(np.int64)).to(device)
    known = [one.logprobs for one in kept if one.logprobs is not None]
    values = torch.from_numpy(np.concatenate(known)).float().to(device) if known else None

    def target(part: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        chosen = ids[part]
        dense = torch.zeros(len(chosen), vocabulary, device=device)
        if values is None:
            dense.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float32))
            return (dense / ids.shape[1]).log(), None
        dense.fill_(-torch.inf)
        dense.scatter_(1, chosen, values[part])
        rest = (1 - values[part].exp().sum(1)).clamp(min=1e-7)
        return dense, rest

    return target


def cached(
    folder: Path,
    documents: Sequence[Document],
    teacher: Teacher,
    load: Callable[[], Transformer],
    *,
    temperature: float,
    samples: int | None,
    top_k: int | None,
    seed: int,
    vocabulary: int,
) -> list[Kept]:
    """What the teacher says of each document, asked only where the folder does not have it.

    Raises UsageError where the folder is of something else.
    """
    header = {
        "version": VERSION,
        "teacher": [asdict(file) for file in file_records(teacher.pulled, threading.Event())],
        "dtype": teacher.dtype,
        "data": _digest(documents),
        "documents": len(documents),
        "temperature": temperature,
        "samples": samples,
        "top_k": top_k,
        "seed": seed,
        "vocabulary": vocabulary,
    }
    _check_header(folder / HEADER, header)
    found: list[Kept] = []
    model: list[Transformer] = []
    starts = range(0, len(documents), PART)
    for number, start in enumerate(
        counted(starts, "parts of the data seen by the teacher", interval=INTERVAL)
    ):
        part = documents[start : start + PART]
        path = folder / f"part-{number:05d}.npz"
        kept = _read(path, part)
        if kept is None:
            if not model:
                model.append(load())
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            kept = [
                _ask(model[0], document, temperature, samples, top_k, generator, vocabulary)
                for document in part
            ]
            _write(path, kept)
        found += kept
    return found


def _check_header(path: Path, header: dict[str, Any]) -> None:
    if not path.is_file():
        if path.parent.is_dir() and any(path.parent.iterdir()):
            raise UsageError(f"`cache` {path.parent} is no teacher's cache", "name another folder")
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, header)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in header.items():
        if before.get(name) != value:
            raise UsageError(
                f"`cache` {path.parent} was made of another {name}", "name another folder for this"
            )


def _digest(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(np.int64(len(document)).tobytes())
        digest.update(document.ids.astype(np.int32).tobytes())
        digest.update(document.trained.tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _ask(
    model: Transformer,
    document: Document,
    temperature: float,
    samples: int | None,
    top_k: int | None,
    generator: torch.Generator,
    vocabulary: int,
) -> Kept:
    batch = make_batch([document]).to(model.device)
    target = live_target([model], [1.0], batch, temperature, vocabulary)
    ids, logprobs = [], []
    for start in range(0, len(batch.labels), 128):
        logp = target(slice(start, start + 128))[0].cpu()
        if samples is not None:
            ids.append(torch.multinomial(logp.exp(), samples, True, generator=generator))
        else:
            best = logp.topk(min(top_k or 1, logp.shape[1]), 1)
            ids.append(best.indices)
            logprobs.append(best.values)
    smallest = np.min_scalar_type(vocabulary)
    return Kept(
        torch.cat(ids).numpy().astype(smallest),
        torch.cat(logprobs).half().numpy() if logprobs else None,
    )


def _write(path: Path, kept: Sequence[Kept]) -> None:
    arrays: dict[str, Any] = {"ids": np.concatenate([one.ids for one in kept])}
    known = [one.logprobs for one in kept if one.logprobs is not None]
    if known:
        arrays["logprobs"] = np.concatenate(known)
    content = io.BytesIO()
    np.savez(content, **arrays)
    with disk_errors(path):
        write_whole(path, content.getvalue())


def _read(path: Path, documents: Sequence[Document]) -> list[Kept] | None:
    if not path.is_file():
        return None
    with np.load(path) as stored:
        ids = stored["ids"]
        logprobs = stored.get("logprobs")
    ends = np.cumsum([document.targets for document in documents])
    if len(ids) != ends[-1]:
        return None
    spans = [slice(end - d.targets, end) for end, d in zip(ends, documents, strict=True)]
    return [Kept(ids[span], None if logprobs is None else logprobs[span]) for span in spans]
