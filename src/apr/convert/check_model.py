"""Whether a model is whole: files against checksums, every number, shapes, tokenizer, one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint import Checkpoint, open_checkpoint
from apr.checkpoint.model_folder import read_folder_manifest, tensor_sha256
from apr.common.errors import AprError
from apr.common.progress import ByteProgress
from apr.hub import Pulled, damaged_files, pull
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.load import load_transformer, load_weights
from apr.text import Tokenizer, load_tokenizer

_SAMPLE = "def add(a, b):\n    return a + b\n"
_MESSAGES = [{"role": "user", "content": "Write a function that adds two numbers."}]


@dataclass(frozen=True)
class CheckReport:
    """done: what was looked at, one line each. problems: what is wrong, one line each."""

    ref: str
    path: Path
    done: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


def check_model(
    ref: str, *, forward: bool = False, offline: bool = False, progress: bool = True
) -> CheckReport:
    """Look at everything a model's files say and hold; problems are reported, not raised.

    forward: also compute the next-token logits of a few tokens, in fp32. Raises UsageError and
    AprError only where there is no model to look at (see `apr.hub.resolve`).
    """
    pulled = pull(ref, offline=offline, progress=progress)
    done: list[str] = []
    problems: list[str] = []
    _check_files(pulled, done, problems)
    try:
        checkpoint = open_checkpoint(pulled.path)
    except AprError as error:
        return CheckReport(ref, pulled.path, tuple(done), (*problems, str(error)))
    before = len(problems)
    _check_tensors(checkpoint, progress, done, problems)
    cfg = _check_shapes(checkpoint, done, problems)
    _check_tokenizer(pulled.path, cfg, done, problems)
    if forward and cfg is not None and len(problems) == before:
        _check_forward(checkpoint, done, problems)
    return CheckReport(ref, pulled.path, tuple(done), tuple(problems))


def _check_files(pulled: Pulled, done: list[str], problems: list[str]) -> None:
    if pulled.manifest is not None:
        problems.extend(damaged_files(pulled.manifest))
        done.append(f"{len(pulled.manifest.files)} files against the checksums of the pull")


def _check_tensors(
    checkpoint: Checkpoint, progress: bool, done: list[str], problems: list[str]
) -> None:
    """Read everything once: readable, finite, and as the folder's own manifest has it."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    manifest: dict[str, Any] | None = None
    if checkpoint.format == "safetensors":
        try:
            manifest = read_folder_manifest(folder)
        except AprError as error:
            problems.append(str(error))
    sums = (manifest or {}).get("tensors", {})
    names = checkpoint.tensors.names()
    total = sum(checkpoint.tensors.info(name).nbytes for name in names)
    with ByteProgress("checking tensors", total, progress) as bar:
        for name in names:
            problems.extend(_tensor_problems(checkpoint, name, sums))
            bar.advance(checkpoint.tensors.info(name).nbytes)
    done.append(f"{len(names)} tensors: readable and finite")
    if manifest is not None:
        problems.extend(f"tensor {name} is missing" for name in sums if name not in names)
        problems.extend(_changed_files(folder, manifest.get("files", {})))
        done.append("tensors and files against the checksums of apr_manifest.json")


def _tensor_problems(checkpoint: Checkpoint, name: str, sums: dict[str, str]) -> Iterator[str]:
    try:
        tensor = checkpoint.tensors.get(name)
    except AprError as error:
        yield str(error)
        return
    # A sum is finite unless an element is not (or it overflows): one quick look for most tensors.
    if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or infinite:
            yield f"tensor {name}: {nan} NaN and {infinite} infinite among {tensor.numel()} values"
    if name in sums and tensor_sha256(tensor) != sums[name]:
        yield f"tensor {name} is not what apr_manifest.json says was written"


def _changed_files(folder: Path, sums: dict[str, str]) -> Iterator[str]:
    for name, expected in sums.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            yield f"{folder / name} cannot be read: {error.strerror}"
            continue
        if hashlib.sha256(content).hexdigest() != expected:
            yield f"{folder / name} was changed since apr wrote it"


def _check_shapes(
    checkpoint: Checkpoint, done: list[str], problems: list[str]
) -> ModelConfig | None:
    """Names and shapes against what the configuration asks for."""
    try:
        cfg = config_from_checkpoint(checkpoint)
    except AprError as error:
        problems.append(str(error))
        return None
    try:
        # The generator compares all names and shapes before it reads the first tensor.
        next(load_weights(checkpoint, cfg))
    except AprError as error:
        problems.append(str(error))
        return cfg
    done.append(f"names and shapes: a {cfg.family} model of {cfg.num_layers} layers")
    return cfg


def _check_tokenizer(
    path: Path, cfg: ModelConfig | None, done: list[str], problems: list[str]
) -> None:
    try:
        tokenizer = load_tokenizer(path if path.suffix != ".safetensors" else path.parent)
    except AprError as error:
        problems.append(str(error))
        return
    before = len(problems)
    if cfg is not None and tokenizer.vocab_size > cfg.vocab_size:
        problems.append(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"the embedding {cfg.vocab_size} rows"
        )
    if not tokenizer.eos_ids:
        problems.append("no token ends a completion: generation would run to its limit")
    problems.extend(_text_problems(tokenizer))
    if len(problems) == before:
        chat = "with" if tokenizer.chat_template else "without"
        done.append(f"tokenizer of {tokenizer.vocab_size} tokens, {chat} a chat template")


def _text_problems(tokenizer: Tokenizer) -> Iterator[str]:
    text = tokenizer.decode(tokenizer.encode(_SAMPLE, add_special_tokens=False))
    if text.strip() != _SAMPLE.strip():
        yield f"the tokenizer turns {_SAMPLE!r} into {text!r}"
    if tokenizer.chat_template is not None:
        try:
            tokenizer.encode_chat(_MESSAGES)
        except AprError as error:
            yield f"chat template: {error}"


def _check_forward(checkpoint: Checkpoint, done: list[str], problems: list[str]) -> None:
    try:
        model = load_transformer(checkpoint, dtype=torch.float32)
    except AprError as error:
        problems.append(str(error))
        return
    tokenizer = load_tokenizer(checkpoint.path)
    ids = torch.tensor([tokenizer.encode(_SAMPLE)])
    with torch.no_grad():
        logits = model(ids)
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        problems.append(f"a forward pass gives {bad} logits that are no numbers")
    done.append(f"forward pass over {ids.shape[1]} tokens")
