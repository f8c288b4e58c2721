"""A tokenizer with further tokens: the same files, the same ids, and new ones behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from apr.common.errors import AprError, UsageError
from apr.merge.vocabulary.read import FLAGS, Vocabulary


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
            "choose --tokenizer-source base",
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
                "choose --tokenizer-source base",
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
