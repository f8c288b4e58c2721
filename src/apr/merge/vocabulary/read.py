"""A model's vocabulary, read from its tokenizer files or its GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from apr.checkpoint import read_gguf_header
from apr.common.errors import AprError, UsageError
from apr.text import Tokenizer, load_tokenizer
from apr.text.hf_folder import named_tokens, tokenizer_files

# What decides which tokens there are; chat templates and the like are not among them.
_DECIDING = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Vocabulary:
    """ids: every token to its id. added: the tokens that are found before the text is cut.

    document: tokenizer.json. path: the model's folder or GGUF file.
    """

    path: Path
    ids: dict[str, int] = field(repr=False)
    added: dict[str, AddedToken] = field(repr=False)
    document: dict[str, Any] = field(repr=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path)

    @property
    def files(self) -> dict[str, bytes]:
        """The tokenizer's files in a Hugging Face folder, path to content."""
        if self.path.is_dir():
            return tokenizer_files(self.path)
        return self.tokenizer.to_files()

    @property
    def is_byte_level(self) -> bool:
        """Whether tokens spell bytes (GPT-2's way) rather than letters."""
        decoder = self.document.get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        return any(step.get("type") == "ByteLevel" for step in steps)

    @property
    def merges(self) -> list[tuple[str, str]]:
        """BPE merges, first to be applied first; empty for other models."""
        stored = self.document["model"].get("merges") or []
        # tokenizer.json has two spellings: "a b" and ["a", "b"].
        pairs = (m.split(" ") if isinstance(m, str) else m for m in stored)
        try:
            return [(left, right) for left, right in pairs]
        except (TypeError, ValueError):
            raise AprError(
                f"{self.path}: the tokenizer's merges are not pairs of tokens",
                "download the file again",
            ) from None


@dataclass(frozen=True)
class VocabularyInput:
    """label: for messages. path: model folder or .gguf file (of a LoRA adapter: its base's).

    embedding_rows: of the embedding matrix, which may be longer than the tokenizer.
    """

    label: str
    path: Path
    embedding_rows: int


def model_index(models: Sequence[VocabularyInput], reference: str) -> int:
    """The input that a YAML file or flag means by `reference`: its label or its path."""
    for index, model in enumerate(models):
        if reference in (model.label, str(model.path)):
            return index
    known = ", ".join(model.label for model in models)
    raise UsageError(f"tokenizer: {reference!r} is none of the merged models", f"known: {known}")


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a model folder or a .gguf file; errors as `apr.text.load_tokenizer`.

    Converters to GGUF name the unused rows of a padded embedding "[PAD<id>]": those are no tokens.
    """
    plain = _read_plain(path)
    if plain is not None:
        return plain
    tokenizer = load_tokenizer(path)
    document = json.loads(tokenizer.to_files()["tokenizer.json"])
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    added = {t.content: t for _, t in sorted(tokenizer.backend.get_added_tokens_decoder().items())}
    if not path.is_dir():
        for token in [t for t, i in ids.items() if t == f"[PAD{i}]" and t not in added]:
            del ids[token], document["model"]["vocab"][token]
    found = Vocabulary(path, ids, added, document)
    found.__dict__["tokenizer"] = tokenizer  # no need to load it again
    return found


def _read_plain(path: Path) -> Vocabulary | None:
    """What tokenizer.json says, where that is all: building the tokenizer takes far longer.

    None where the files beside it name further tokens, or where its ids are not those that
    tokenizers gives (added tokens that the model's vocabulary lacks are numbered behind it).
    """
    file = path / "tokenizer.json"
    try:
        document = json.loads(file.read_bytes()) if file.is_file() else {}
        vocab = document["model"]["vocab"]
        listed = document["added_tokens"]
        if not isinstance(vocab, dict):
            vocab = {token: index for index, (token, _) in enumerate(vocab)}
        added = {t["content"]: AddedToken(t["content"], **{f: t[f] for f in FLAGS}) for t in listed}
    except (ValueError, KeyError, TypeError):
        return None  # what is wrong is said by load_tokenizer
    behind = [t for t in listed if t["content"] not in vocab]
    ids = {**vocab, **{t["content"]: t["id"] for t in listed}}
    as_numbered = (
        [t["id"] for t in behind] == list(range(len(vocab), len(ids)))
        and max(vocab.values(), default=-1) < len(vocab)
        and all(vocab.get(t["content"], t["id"]) == t["id"] for t in listed)
    )
    if not as_numbered or any(token not in added for token in named_tokens(path)):
        return None
    return Vocabulary(path, ids, added, document)


def tokens_with_rows(vocabulary: Vocabulary, model: VocabularyInput) -> dict[str, int]:
    """The tokens that the model has a row for; some tokenizers know more (images, say)."""
    if max(vocabulary.ids.values(), default=-1) < model.embedding_rows:
        return vocabulary.ids
    return {token: i for token, i in vocabulary.ids.items() if i < model.embedding_rows}


def read_vocabularies(paths: Sequence[Path]) -> list[Vocabulary]:
    """`read_vocabulary` of each path; models with the very same tokens share the first one's."""
    known: list[tuple[Any, Vocabulary]] = []
    found = []
    for path in paths:
        stated = _stated(path)
        same = next((v for s, v in known if s == stated), None)
        if same is None:
            same = read_vocabulary(path)
            known.append((stated, same))
        found.append(same)
    return found


def _stated(path: Path) -> Any:
    """What the files say, unparsed: equal for two models means equal tokenizers."""
    if path.is_dir():
        files = [path / name for name in _DECIDING]
        return [file.read_bytes() if file.is_file() else None for file in files]
    if not path.is_file():
        return path  # read_vocabulary says what is wrong
    metadata = read_gguf_header(path).metadata
    named = ("tokenizer.ggml.", "general.architecture")
    return {k: v for k, v in metadata.items() if k.startswith(named)}
