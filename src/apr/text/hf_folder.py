"""The tokenizer files of a Hugging Face folder, read as they lie there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from apr.checkpoint.tensors import read_json_object
from apr.common.errors import AprError, UsageError

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# {"prefix": token, "suffix": token, "middle": token}: what a model was trained to fill gaps with.
FIM_FILE = "fim.json"
_FIM_PARTS = ("prefix", "suffix", "middle")
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    FIM_FILE,
)
_TEMPLATE_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says about its tokenizer.

    special: names of SPECIAL_NAMES to tokens. templates: name ("default", …) to jinja2 source.
    end_ids: ids named by generation_config.json and config.json.
    files: the tokenizer's files, path in the folder to content. fim_tokens: for prefix, suffix,
    middle, where fim.json names them. notes: assumptions a user should be told about.
    """

    backend: Backend
    special: dict[str, str]
    templates: dict[str, str]
    end_ids: tuple[int, ...]
    files: dict[str, bytes] = field(repr=False)
    fim_tokens: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_folder(folder: Path) -> TokenizerFiles:
    """Read a model folder; AprError or UsageError names the file that is missing or damaged."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = "a folder with tokenizer.json is needed"
        if (folder / "tokenizer.model").is_file():
            hint = "tokenizer.model alone is not read: save tokenizer.json with transformers' "
            hint += "AutoTokenizer(...).save_pretrained, or use the model's GGUF file"
        raise UsageError(f"{path}: no such file", hint)
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:
        # The library raises bare Exception for everything it cannot read.
        raise AprError(f"{path}: {error}", "download the file again") from error
    # Whether a begin token is added is said by tokenizer.json's post-processor alone: the flags
    # add_bos_token and add_eos_token of the config are for readers without tokenizer.json.
    # Limits that belong to one training run; a prompt is never cut quietly.
    backend.no_truncation()
    backend.no_padding()
    config = _read_object(folder / "tokenizer_config.json")
    special = _special_tokens(config, _read_object(folder / "special_tokens_map.json"))
    _add_declared_tokens(backend, config, special, folder)
    return TokenizerFiles(
        backend=backend,
        special=special,
        templates=templates_of(folder),
        end_ids=_declared_end_ids(folder),
        files=tokenizer_files(folder),
        fim_tokens=fim_tokens_of(folder),
        notes=_begin_notes(backend, config, special),
    )


def _begin_notes(
    backend: Backend, config: dict[str, Any], special: dict[str, str]
) -> tuple[str, ...]:
    """A word where tokenizer_config.json asks for a begin token that tokenizer.json adds not."""
    begin = backend.token_to_id(special.get("bos_token", ""))
    asked = config.get("add_bos_token") is True and begin is not None
    if not asked or begin in backend.encode("").ids:
        return ()
    return (
        "tokenizer_config.json says add_bos_token, which tokenizer.json does not do: no"
        f" {special['bos_token']!r} is put before a text, as in transformers 5",
    )


def named_tokens(folder: Path) -> list[str]:
    """Tokens that the files beside tokenizer.json name, whether that lists them or not."""
    config = _read_object(folder / "tokenizer_config.json")
    special = _special_tokens(config, _read_object(folder / "special_tokens_map.json"))
    declared = (config.get("added_tokens_decoder") or {}).values()
    return [*(e["content"] for e in declared), *special.values(), *_extra_special_tokens(config)]


def _special_tokens(config: dict[str, Any], mapping: dict[str, Any]) -> dict[str, str]:
    special = {}
    for name in SPECIAL_NAMES:
        value = config.get(name, mapping.get(name))
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    return special


def _extra_special_tokens(config: dict[str, Any]) -> list[str]:
    values: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        stated = config.get(name) or []
        values += stated.values() if isinstance(stated, dict) else stated
    contents = [v.get("content") if isinstance(v, dict) else v for v in values]
    return [c for c in contents if isinstance(c, str)]


def _add_declared_tokens(
    backend: Backend, config: dict[str, Any], special: dict[str, str], folder: Path
) -> None:
    """Add tokens that only tokenizer_config.json knows, and mark the named ones as special."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    declared = config.get("added_tokens_decoder") or {}
    for token_id, entry in sorted(declared.items(), key=lambda item: int(item[0])):
        if entry["content"] in known:
            continue
        flags = {k: entry.get(k, False) for k in ("single_word", "lstrip", "rstrip", "normalized")}
        token = AddedToken(entry["content"], special=entry.get("special", False), **flags)
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != int(token_id):
            raise AprError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder gives "
                f"{token.content!r} id {token_id}, tokenizer.json leaves it "
                f"{backend.token_to_id(token.content)}",
                "the two files belong to different models",
            )
        known.add(token.content)
    named = [*special.values(), *_extra_special_tokens(config)]
    # A named token that tokenizer.json does not have at all gets no id: the model has no row
    # for it in its embedding.
    backend.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in dict.fromkeys(named)
            if token not in known and backend.token_to_id(token) is not None
        ]
    )


def template_files(templates: Mapping[str, str]) -> dict[str, bytes]:
    """Chat templates (by name) as files of a folder: path to content."""
    return {
        "chat_template.jinja" if name == "default" else f"{_TEMPLATE_FOLDER}/{name}.jinja": (
            source.encode("utf-8")
        )
        for name, source in templates.items()
    }


def templates_of(folder: Path) -> dict[str, str]:
    """Chat templates by name; files win over tokenizer_config.json, as in transformers."""
    config = _read_object(folder / "tokenizer_config.json")
    templates: dict[str, str] = {}
    stated = config.get("chat_template")
    if isinstance(stated, str):
        templates["default"] = stated
    elif isinstance(stated, list):
        templates.update({entry["name"]: entry["template"] for entry in stated})
    legacy = _read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(legacy, str):
        templates.setdefault("default", legacy)
    path = folder / "chat_template.jinja"
    if path.is_file():
        templates["default"] = path.read_text(encoding="utf-8")
    for path in sorted((folder / _TEMPLATE_FOLDER).glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    return templates


def _declared_end_ids(folder: Path) -> tuple[int, ...]:
    ends: list[int] = []
    config = _read_object(folder / "config.json")
    text_config = config.get("text_config")
    sources = [_read_object(folder / "generation_config.json"), config]
    sources += [text_config] if isinstance(text_config, dict) else []
    for source in sources:
        value = source.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        ends += [v for v in values if isinstance(v, int)]
    return tuple(dict.fromkeys(ends))


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder's tokenizer, unchanged: path in the folder to content."""
    paths = [folder / name for name in _FILES]
    paths += sorted((folder / _TEMPLATE_FOLDER).glob("*.jinja"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.is_file()}


def fim_file(tokens: Sequence[str]) -> dict[str, bytes]:
    """fim.json by its name, or nothing for no tokens."""
    if not tokens:
        return {}
    named = dict(zip(_FIM_PARTS, tokens, strict=True))
    return {FIM_FILE: (json.dumps(named, ensure_ascii=False) + "\n").encode()}


def fim_tokens_of(folder: Path) -> tuple[str, ...]:
    """The tokens that fim.json names for prefix, suffix and middle; none without that file."""
    path = folder / FIM_FILE
    found = _read_object(path)
    tokens = [found[part] for part in _FIM_PARTS if isinstance(found.get(part), str)]
    if found and len(tokens) < len(_FIM_PARTS):
        raise AprError(f"{path}: prefix, suffix and middle must name tokens", "mend it")
    return tuple(tokens)


def _read_object(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
