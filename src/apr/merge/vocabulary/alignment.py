"""The output's tokenizer, extended where tokens join it, its rows, and where they come from.

What a model lacks is filled in as MergeKit does (its README, "Token Embedding Handling"): the
base's row, else that of the only model that has the token, else the average of those that have it,
else zeros. Otherwise than MergeKit, a padded vocabulary stays padded, ids of the chosen tokenizer
never change, and tokens joining a BPE model bring their merges, so that text can contain them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import AddedToken

from apr.common.errors import AprError, UsageError
from apr.merge.vocabulary.differences import first_few
from apr.merge.vocabulary.donors import ZERO, RowGather, RowSources, override, row_sources
from apr.merge.vocabulary.read import (
    FLAGS,
    Vocabulary,
    VocabularyInput,
    model_index,
    read_vocabularies,
    tokens_with_rows,
)
from apr.merge.vocabulary.vocabulary_settings import ModelToken, TokenEmbedding


def extended_files(
    base: Vocabulary,
    plain: Mapping[str, int],
    added: Mapping[str, tuple[int, AddedToken]],
    donors: Sequence[Vocabulary],
) -> dict[str, bytes]:
    """The files of `base` with further tokens.

    plain: tokens of the model itself to their ids. They join its vocabulary, with the donors'
        merges that make them behind all of the base's: what the base's merges do comes first.
    added: tokens that text is searched for before it is cut, to (id, flags); one that the base has
        as a plain token keeps its id.
    Raises UsageError where the tokenizer's kind cannot take plain tokens (Unigram), AprError where
    it gives one id to two tokens.
    """
    _refuse_shared_ids(base)
    files = base.files
    document = dict(base.document)
    every_added = {t: (base.ids[t], token) for t, token in base.added.items()} | dict(added)
    ids = {**base.ids, **plain, **{t: i for t, (i, _) in added.items()}}
    if plain or len(ids) != max(ids.values()) + 1:
        document["model"] = _extended_model(base, ids, plain, donors)
    document["added_tokens"] = [
        {"id": i, "content": content, **_flags(token)}
        for content, (i, token) in sorted(every_added.items(), key=lambda entry: entry[1][0])
    ]
    files["tokenizer.json"] = _json_bytes(document)
    files.update(_companions(files, added))
    return files


def _extended_model(
    base: Vocabulary,
    ids: Mapping[str, int],
    plain: Mapping[str, int],
    donors: Sequence[Vocabulary],
) -> dict[str, Any]:
    model = dict(base.document["model"])
    if not isinstance(model["vocab"], dict):
        raise UsageError(
            f"{base.path}: a tokenizer of kind {model.get('type')} cannot take tokens "
            "of the other models",
            "choose `tokenizer_source` base",
        )
    # Added tokens too: tokenizers numbers those that are not in here by itself, from the number
    # of tokens on, and would give ids twice.
    model["vocab"] = dict(sorted(ids.items(), key=lambda entry: entry[1]))
    if plain and "merges" in model:
        stored = model["merges"]
        spelled = bool(stored) and isinstance(stored[0], str)
        new = _new_merges(base, ids, plain, donors)
        # Readers before tokenizers 0.20 know the spelling as one string only.
        model["merges"] = [*stored, *(" ".join(m) if spelled else list(m) for m in new)]
    return model


def _new_merges(
    base: Vocabulary,
    ids: Mapping[str, int],
    plain: Mapping[str, int],
    donors: Sequence[Vocabulary],
) -> list[tuple[str, str]]:
    """The donors' merges that make plain tokens, in their order, model by model."""
    found: dict[tuple[str, str], None] = {}
    for donor in donors:
        if donor.document is base.document:
            continue
        for merge in donor.merges:
            if "".join(merge) in plain and merge[0] in ids and merge[1] in ids:
                found[merge] = None
    return list(found)


def _refuse_shared_ids(base: Vocabulary) -> None:
    seen: dict[int, str] = {}
    for token, token_id in base.ids.items():
        other = seen.setdefault(token_id, token)
        if other != token:
            raise AprError(
                f"{base.path}: the tokenizer gives one id to two tokens, "
                f"{token_id} to {other!r} and {token!r}",
                "choose `tokenizer_source` base",
            )


def _companions(
    files: Mapping[str, bytes], added: Mapping[str, tuple[int, AddedToken]]
) -> dict[str, bytes]:
    """Where tokenizer_config.json and added_tokens.json list added tokens, the new ones as well."""
    changed = {}
    if "added_tokens.json" in files:
        listed = json.loads(files["added_tokens.json"])
        listed.update({content: i for content, (i, _) in added.items()})
        changed["added_tokens.json"] = _json_bytes(listed)
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    if config.get("added_tokens_decoder"):
        config["added_tokens_decoder"].update(
            {str(i): {"content": t, **_flags(token)} for t, (i, token) in added.items()}
        )
        changed["tokenizer_config.json"] = _json_bytes(config)
    return changed


def _flags(token: AddedToken) -> dict[str, bool]:
    return {flag: getattr(token, flag) for flag in FLAGS}


def _json_bytes(value: Any) -> bytes:
    # One line: with an indent, Python writes a large vocabulary ten times slower.
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8")


# The same once more for other readers, wrong beside a tokenizer.json that was extended.
_SAME_VOCABULARY = ("tokenizer.model", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class VocabularyPlan:
    """vocab_size: rows of the output's embedding. ids: its tokenizer's tokens to their ids.

    files: path in the output folder to content. config_changes: for config.json of the base (the
    first model without one). notes: what was filled in, to be told.
    """

    vocab_size: int
    files: dict[str, bytes] = field(repr=False)
    config_changes: dict[str, Any]
    notes: tuple[str, ...]
    ids: dict[str, int] = field(repr=False)
    _rows: RowSources = field(repr=False)

    def gather(self, model: int) -> RowGather:
        """Where the rows of input `model` come from, for its embedding and its output layer."""
        return self._rows.gather(model)


def plan_vocabulary(
    source: str | int,
    models: Sequence[VocabularyInput],
    base: int | None,
    pad_to_multiple_of: int | None = None,
    tokens: Mapping[str, TokenEmbedding] | None = None,
) -> VocabularyPlan:
    """Plan the output's vocabulary.

    source: whose tokenizer: "base", "union" (the base's, with the tokens of all models behind its
        own), or a model by index, label or path. Without a base, the first model is taken for it,
        but its rows are not preferred.
    tokens: what to do about single tokens; those the output would not have are added.
    Raises UsageError for a token or model that is not there, and for tokenizers that spell tokens
    in different ways or cannot be extended; otherwise as `apr.text.load_tokenizer`.
    """
    if isinstance(source, str):
        owner = base or 0 if source in ("base", "union") else model_index(models, source)
    else:
        owner = source
    # The chosen one first: what is shared with it was read from its own path.
    paths = [models[owner].path, *(model.path for model in models)]
    chosen, *vocabularies = read_vocabularies(paths)
    _refuse_other_spelling(models, vocabularies, owner)
    owned = [tokens_with_rows(v, m) for v, m in zip(vocabularies, models, strict=True)]
    settings = dict(tokens or {})
    wanted = _wanted(models, vocabularies, owned, owner, settings, source == "union")
    plain, added = _new_ids(chosen, wanted)
    files = _files(chosen, plain, added, vocabularies)
    ids = {**chosen.ids, **plain, **{t: i for t, (i, _) in added.items()}}
    size = models[owner].embedding_rows
    if len(ids) > len(chosen.ids):
        size = max(size, max(ids.values()) + 1)
    if pad_to_multiple_of:
        size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
    rows = row_sources(ids, size, models, owned, owner, base)
    for token, setting in settings.items():
        override(rows, token, ids[token], setting, models, owned)
    changes: dict[str, Any] = {"vocab_size": size}
    if owner != (base or 0):
        changes.update(_special_ids(chosen))
    notes = _notes(ids, rows, models)
    return VocabularyPlan(size, files, changes, notes, ids, rows)


def _refuse_other_spelling(
    models: Sequence[VocabularyInput], vocabularies: Sequence[Vocabulary], owner: int
) -> None:
    """Byte-level "é" is one byte of three characters, SentencePiece's is a letter."""
    by_bytes = [v.is_byte_level for v in vocabularies]
    for model, kind in zip(models, by_bytes, strict=True):
        if kind != by_bytes[owner]:
            names = {True: "byte-level", False: "not byte-level"}
            raise UsageError(
                f"the tokenizers of {models[owner].label} ({names[by_bytes[owner]]}) and "
                f"{model.label} ({names[kind]}) spell tokens differently",
                "merge models whose tokenizers are of one kind",
            )


# A token the output shall have: None for a plain one, else how text is searched for it.
_Wanted = dict[str, AddedToken | None]


def _wanted(
    models: Sequence[VocabularyInput],
    vocabularies: Sequence[Vocabulary],
    owned: Sequence[Mapping[str, int]],
    owner: int,
    settings: Mapping[str, TokenEmbedding],
    union: bool,
) -> _Wanted:
    """What the chosen tokenizer lacks. Plain tokens first, each group by model and by id."""
    have = vocabularies[owner]
    wanted: _Wanted = {}
    if union:
        everywhere = [
            {t for t in v.added if t in own} for v, own in zip(vocabularies, owned, strict=True)
        ]
        added = set[str]().union(*everywhere)
        for own in owned:
            new = own.keys() - have.ids.keys() - added - wanted.keys()
            wanted.update(dict.fromkeys(sorted(new, key=own.__getitem__)))
        for vocabulary, names in zip(vocabularies, everywhere, strict=True):
            for token in sorted(names, key=vocabulary.ids.__getitem__):
                if token not in have.added:
                    wanted.setdefault(token, vocabulary.added[token])
    for token, setting in settings.items():
        if token not in have.ids and token not in wanted:
            wanted[token] = _kind_of(token, setting, models, vocabularies)
    return wanted


def _kind_of(
    token: str,
    setting: TokenEmbedding,
    models: Sequence[VocabularyInput],
    vocabularies: Sequence[Vocabulary],
) -> AddedToken | None:
    """How a token of the settings joins the tokenizer: as where it comes from, else as text."""
    ordered = list(vocabularies)
    if isinstance(setting.source, str):
        ordered.insert(0, vocabularies[model_index(models, setting.source)])
    for vocabulary in ordered:
        if token in vocabulary.added:
            return vocabulary.added[token]
        if token in vocabulary.ids:
            return None
    special = False
    if isinstance(setting.source, ModelToken):
        origin = vocabularies[model_index(models, setting.source.model)]
        names = {i: t for t, i in origin.ids.items()}
        name = setting.source.token or names.get(setting.source.token_id or 0, "")
        special = name in origin.added and origin.added[name].special
    return AddedToken(token, normalized=False, special=special)


def _new_ids(
    chosen: Vocabulary, wanted: _Wanted
) -> tuple[dict[str, int], dict[str, tuple[int, AddedToken]]]:
    """(plain tokens to ids, added tokens to id and flags). Known ids stay."""
    free = max(chosen.ids.values(), default=-1) + 1
    plain: dict[str, int] = {}
    added: dict[str, tuple[int, AddedToken]] = {}
    for token, flags in wanted.items():
        token_id = chosen.ids.get(token)
        if token_id is None:
            token_id, free = free, free + 1
        if flags is None:
            plain[token] = token_id
        else:
            added[token] = token_id, flags
    return plain, added


def _files(
    chosen: Vocabulary,
    plain: Mapping[str, int],
    added: Mapping[str, tuple[int, AddedToken]],
    vocabularies: Sequence[Vocabulary],
) -> dict[str, bytes]:
    copied: tuple[str, ...] = ("generation_config.json",)
    if plain or added:
        files = extended_files(chosen, plain, added, vocabularies)
    else:
        files = chosen.files
        copied += _SAME_VOCABULARY
    if chosen.path.is_dir():
        paths = [chosen.path / name for name in copied]
        files.update({path.name: path.read_bytes() for path in paths if path.is_file()})
    return files


def _special_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """Begin, end and padding ids as the model of this tokenizer has them in its config.json."""
    path = vocabulary.path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tokenizer = vocabulary.tokenizer
    known = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return {name: config.get(name, token_id) for name, token_id in known.items()}


def _notes(
    ids: Mapping[str, int], rows: RowSources, models: Sequence[VocabularyInput]
) -> tuple[str, ...]:
    names = {i: token for token, i in ids.items()}
    notes = []
    for model, row in zip(models, rows.table, strict=True):
        lacking = np.flatnonzero(rows.is_token & (row < 0))
        if len(lacking):
            told = first_few(repr(names[i]) for i in lacking.tolist())
            notes.append(f"{model.label} has no row for {len(lacking)} tokens ({told})")
    empty = np.flatnonzero(rows.is_token & (rows.donor == ZERO) & (rows.table < 0).all(axis=0))
    if len(empty):
        told = first_few(repr(names[i]) for i in empty.tolist())
        notes.append(f"no model has a row for {len(empty)} tokens ({told}): zeros")
    return tuple(notes)
