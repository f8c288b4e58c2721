"""One tokenizer for every source: a Hugging Face folder or GGUF metadata."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from apr.checkpoint import read_gguf_header
from apr.checkpoint.gguf_header import split_parts
from apr.common.errors import AprError, UsageError
from apr.text.chat import render_chat
from apr.text.gguf_tokenizer import build_backend, read_vocabulary
from apr.text.hf_folder import (
    fim_file,
    fim_tokens_of,
    read_folder,
    template_files,
    templates_of,
)
from apr.text.stream import (
    ByteStream,
    PieceStream,
    StreamDecoder,
    WholeStream,
    decoder_kind,
)

_NO_TEMPLATE_HINT = "pass one (chat_template=...), or use the model without chat"

# Ends of a document. They end a completion whatever the chat template says.
END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
)
# Ends of a turn. They count where the chat template writes them, or where there is no template
# that could tell.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|EOT|>",
    "<EOT>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<end_of_utterance>",
)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder or a .gguf file.

    Raises UsageError where the path is neither, AprError where its files are damaged or of a
    kind not known here.
    """
    path = Path(path)
    if path.is_dir():
        return tokenizer_from_folder(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder", "give a model folder or a .gguf file")
    return tokenizer_from_gguf(read_gguf_header(split_parts(path)[0]).metadata)


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Read tokenizer.json and its companions (see `load_tokenizer`)."""
    found = read_folder(folder)
    return Tokenizer(
        found.backend,
        special_tokens=found.special,
        chat_templates=found.templates,
        end_ids=found.end_ids,
        files=found.files,
        notes=found.notes,
        fim_tokens=found.fim_tokens,
    )


def adapted_tokenizer(base: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer of a model with an adapter: what the adapter's folder has of one, and the
    base's in the rest.

    Raises AprError where the two give a token different ids, and as `load_tokenizer` does.
    """
    own = read_folder(folder) if (folder / "tokenizer.json").is_file() else None
    if own is not None:
        known = base.backend.get_vocab(with_added_tokens=True)
        for token, index in own.backend.get_vocab(with_added_tokens=True).items():
            if known.get(token, index) != index:
                raise AprError(
                    f"{folder}: its tokenizer gives {token!r} id {index}, the base's"
                    f" {known[token]}",
                    "name the base that the adapter was trained on",
                )
    templates = templates_of(folder) or base.chat_templates
    fim_tokens = fim_tokens_of(folder) or base.fim_tokens
    files = base.to_files() if own is None else own.files
    kept = {name: content for name, content in files.items() if "chat_template" not in name}
    return Tokenizer(
        base.backend if own is None else own.backend,
        special_tokens=base.special_tokens if own is None else own.special,
        chat_templates=templates,
        end_ids=base.stated_end_ids if own is None else (*base.stated_end_ids, *own.end_ids),
        files=kept | template_files(templates) | fim_file(fim_tokens),
        notes=base.notes if own is None else (),
        fim_tokens=fim_tokens,
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Rebuild the tokenizer that GGUF metadata (key to value) describes."""
    vocabulary = read_vocabulary(metadata)
    prefix = "tokenizer.chat_template"
    templates = {
        key[len(prefix) + 1 :] or "default": str(value)
        for key, value in metadata.items()
        if key == prefix or key.startswith(prefix + ".")
    }
    notes = []
    if vocabulary.model == "gpt2" and vocabulary.pre in (None, "default"):
        notes.append(
            "the GGUF file does not name its pre-tokenizer: GPT-2's is assumed, "
            "which may cut numbers and words otherwise than the model was trained"
        )
    return Tokenizer(
        build_backend(vocabulary),
        special_tokens=vocabulary.special,
        chat_templates=templates,
        end_ids=vocabulary.end_ids,
        notes=notes,
        fim_tokens=vocabulary.fim_tokens,
    )


class Tokenizer:
    """Text to token ids and back, chat templates, and the ids that end a completion.

    backend: the `tokenizers.Tokenizer` underneath.
    special_tokens: "bos_token", "eos_token", "unk_token", "pad_token", … to the token's text.
    chat_templates: name to jinja2 source; "default" is the one in use.
    fim_tokens: for prefix, suffix and middle, where the model's files name them.
    notes: assumptions a user should be told about.
    end_ids: ids that end a completion whatever special tokens and templates say.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        end_ids: Iterable[int] = (),
        files: Mapping[str, bytes] | None = None,
        notes: Iterable[str] = (),
        fim_tokens: Sequence[str] = (),
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.chat_templates = dict(chat_templates)
        self.notes = tuple(notes)
        self.fim_tokens = tuple(fim_tokens)
        self._files = None if files is None else dict(files)
        self.stated_end_ids = tuple(end_ids)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        declared = {
            *self.stated_end_ids,
            *(i for i in [self._special_id("eos_token")] if i is not None),
        }
        self.eos_ids: frozenset[int] = find_end_ids(
            declared,
            special_tokens={t.content: i for i, t in added.items() if t.special},
            added_tokens={t.content: i for i, t in added.items()},
            templates=self.chat_templates.values(),
        )
        self._decoder_kind = decoder_kind(backend)
        self._spelled = {i: token.content for i, token in added.items()}

    # ---- ids ----

    @property
    def bos_id(self) -> int | None:
        """The id that begins a sequence, None where the model has none."""
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The one id the files call `eos_token`; generation stops at any of `eos_ids`."""
        return self._special_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The id that fills up rows, None where the model has none."""
        return self._special_id("pad_token")

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id (a model's embedding may have unused rows beyond)."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, None if it is not there."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None beyond the vocabulary."""
        return self.backend.id_to_token(token_id)

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    # ---- text and ids ----

    def encode(
        self, text: str, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Text to ids.

        add_special_tokens: put the begin token in front where the model was trained so.
        parse_special: read `<|im_end|>` and the like in the text as the special token, as
            transformers does. With False such text stays text: for content from strangers.
        Raises UsageError for text that is not valid Unicode, AprError where a tokenizer makes a
        special token out of plain text although parse_special is False.
        """
        backend = self.backend if parse_special else self._literal_backend
        try:
            ids = backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(text) from error
        if not parse_special:
            self._check_literal(ids, text, backend)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids to text. Spaces are never "cleaned up"; ids beyond the vocabulary give nothing, and
        added tokens what they are spelled like.
        """
        if self._decoder_kind == "bytes":
            stream = self.stream(skip_special_tokens)
            return "".join(map(stream.push, ids)) + stream.flush()
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream(
        self, skip_special_tokens: bool = True, context: Sequence[int] = ()
    ) -> StreamDecoder:
        """Incremental decoding: what `push` and `flush` return joins to `decode(all ids)`.

        context: ids that came before (the prompt's). The text is then exactly what these ids
            add to it, where a SentencePiece tokenizer would otherwise drop the space in front
            of the first word. Has no effect on byte-level tokenizers.
        """
        skip = self.special_ids if skip_special_tokens else frozenset()
        if self._decoder_kind == "bytes":
            return ByteStream(self.backend, skip, self._spelled)
        if self._decoder_kind == "pieces":
            return PieceStream(self.backend, skip, context)
        return WholeStream(self.backend, skip)

    @cached_property
    def _literal_backend(self) -> Backend:
        # A copy: the switch belongs to the object, and other threads may be encoding with it.
        backend = copy.deepcopy(self.backend)
        backend.encode_special_tokens = True
        return backend

    def _check_literal(self, ids: list[int], text: str, backend: Backend) -> None:
        allowed = set(backend.encode("", add_special_tokens=True).ids)
        unknown = self._special_id("unk_token")
        forged = self.special_ids.intersection(ids) - allowed - {unknown}
        if forged:
            token = self.id_to_token(min(forged))
            raise AprError(
                f"this tokenizer makes the special token {token!r} out of plain text",
                "remove it from the text",
            )

    # ---- chat ----

    @property
    def chat_template(self) -> str | None:
        """The chat template's source, None where the model has none (or none called default)."""
        return self.chat_templates.get("default")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool | str = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """Messages to the text the model was trained on (see `apr.text.chat.render_chat`).

        chat_template: jinja2 source, or the name of one of the model's templates. With tools,
            the model's "tool_use" template is taken if it has one.
        variables: further names the template may read (`enable_thinking=False`, …).
        """
        return render_chat(
            self._pick_template(chat_template, tools is not None),
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self.special_tokens, **variables},
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[int]:
        """Messages to ids (options as for `render_chat`); the template writes all special tokens.

        Special-token text inside a message becomes that token: refuse or rewrite messages from
        strangers first.
        """
        text = self.render_chat(messages, add_generation_prompt, **options)
        return self.encode(text, add_special_tokens=False)

    def _pick_template(self, wanted: str | None, with_tools: bool) -> str:
        if wanted is not None:
            return self.chat_templates.get(wanted, wanted)
        if with_tools and "tool_use" in self.chat_templates:
            return self.chat_templates["tool_use"]
        if self.chat_template is not None:
            return self.chat_template
        if self.chat_templates:
            names = ", ".join(sorted(self.chat_templates))
            raise AprError(
                f"the model has several chat templates and none is the default: {names}",
                "pass one of these names (chat_template=...)",
            )
        raise AprError("the model has no chat template", _NO_TEMPLATE_HINT)

    # ---- files ----

    def to_files(self) -> dict[str, bytes]:
        """The files of a Hugging Face folder that load as this tokenizer (path to content).

        From a folder: its own files, unchanged. From GGUF: tokenizer.json, tokenizer_config.json,
        the chat templates, and generation_config.json with the ids that end a completion.
        """
        if self._files is not None:
            return dict(self._files)
        files = {
            "tokenizer.json": self.backend.to_str().encode("utf-8"),
            "tokenizer_config.json": _json_bytes(self._config()),
            "generation_config.json": _json_bytes(self._generation_config()),
        }
        files |= fim_file(self.fim_tokens)
        return files | template_files(self.chat_templates)

    def _config(self) -> dict[str, Any]:
        empty = set(self.backend.encode("", add_special_tokens=True).ids)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.special_tokens,
            "add_bos_token": self.bos_id in empty,
            "add_eos_token": self.eos_id in empty and self.eos_id != self.bos_id,
            "clean_up_tokenization_spaces": False,
        }
        # Readers older than chat_template.jinja look here.
        if set(self.chat_templates) == {"default"}:
            config["chat_template"] = self.chat_templates["default"]
        return config

    def _generation_config(self) -> dict[str, Any]:
        ids = {
            "bos_token_id": self.bos_id,
            "eos_token_id": sorted(self.eos_ids) or None,
            "pad_token_id": self.pad_id,
        }
        return {key: value for key, value in ids.items() if value is not None}


def vocabulary_difference(one: Tokenizer, other: Tokenizer) -> str:
    """How the ids of two tokenizers differ, in words; "" where every id is the same token."""
    if one.vocab_size != other.vocab_size:
        return f"its vocabulary has {other.vocab_size} tokens, the model's {one.vocab_size}"
    for token_id in range(one.vocab_size):
        here, there = one.id_to_token(token_id), other.id_to_token(token_id)
        if here != there:
            return f"token {token_id} of its vocabulary is {there!r}, of the model's {here!r}"
    return ""


def _json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _not_text(text: Any) -> UsageError:
    if not isinstance(text, str):
        return UsageError(f"text to encode: got {type(text).__name__}, not str")
    at = next((i for i, c in enumerate(text) if 0xD800 <= ord(c) <= 0xDFFF), 0)
    if 0xDC80 <= ord(text[at]) <= 0xDCFF:  # how Python hands on a byte it could not decode
        return UsageError(
            f"text to encode: byte 0x{ord(text[at]) - 0xDC00:02x} at character {at} is no UTF-8",
            "convert the text to UTF-8, or remove it",
        )
    return UsageError(
        f"text to encode: half a surrogate pair (U+{ord(text[at]):04X}) at character {at}",
        "read the text with errors='replace', or remove it",
    )


def find_end_ids(
    declared: Iterable[int],
    special_tokens: Mapping[str, int],
    added_tokens: Mapping[str, int],
    templates: Iterable[str],
) -> frozenset[int]:
    """The ids at which a completion is over.

    declared: what the files name (eos_token, eos_token_id lists, GGUF eos/eot/eom ids).
    special_tokens, added_tokens: token to id; a model's vocabulary may spell `</s>` as an HTML
        tag, so only special tokens count, or added ones that a template writes.
    templates: the sources of all chat templates.
    """
    source = "\0".join(templates)
    ends = set(declared)
    ends.update(special_tokens[token] for token in END_OF_TEXT if token in special_tokens)
    for token in END_OF_TURN:
        if token in source and token in added_tokens:
            ends.add(added_tokens[token])
        elif not source and token in special_tokens:
            ends.add(special_tokens[token])
    # Harmony (gpt-oss) ends every message with <|end|>, but a turn only with <|return|> or
    # <|call|>: stopping at <|end|> would cut the answer off after the reasoning.
    if {"<|return|>", "<|call|>", "<|end|>"} <= added_tokens.keys():
        ends.discard(added_tokens["<|end|>"])
    return frozenset(ends)
