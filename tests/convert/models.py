"""Small random models with a small real tokenizer, as GGUF files and Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import gguf

from model.gguf_files import write_gguf
from model.zoo import Case, make_hf

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MERGES = ["d e", "de f", "r e", "re t", "u r", "ret ur", "retur n", "Ġ a", "Ġ Ġ", "Ċ ĠĠ"]


def small_tokens() -> list[str]:
    """Byte-level BPE: three control tokens, the 256 bytes, what the merges make."""
    from tokenizers.pre_tokenizers import ByteLevel

    merged = [merge.replace(" ", "") for merge in _MERGES]
    return [*CONTROL, *sorted(ByteLevel.alphabet()), *merged]


VOCAB = len(small_tokens())


def small_model(family: str, **changes: Any) -> Any:
    """A transformers model, fp32, of a family's stem ("Llama", "Qwen2", ...)."""
    sizes = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return make_hf(Case(family, family, {**sizes, **changes}))


def gguf_file(path: Path, model: Any, **options: Any) -> Path:
    """The model as fp32 GGUF with the small tokenizer and a chat template."""
    plain = gguf.GGUFWriter.add_token_list

    def with_tokenizer(writer: gguf.GGUFWriter, _: Any) -> None:
        tokens = small_tokens()
        plain(writer, tokens)
        writer.add_token_types([3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)))
        writer.add_token_merges(_MERGES)
        writer.add_tokenizer_pre("gpt-2")
        writer.add_chat_template(TEMPLATE)

    with mock.patch.object(gguf.GGUFWriter, "add_token_list", with_tokenizer):
        return write_gguf(path, model, **options)


def folder(path: Path, model: Any) -> Path:
    """The model as transformers saves it, the tokenizer from GGUF beside it."""
    from apr.text import load_tokenizer

    model.save_pretrained(path)
    tokenizer = load_tokenizer(gguf_file(path.parent / "for-tokenizer.gguf", small_model("Llama")))
    for name, content in tokenizer.to_files().items():
        (path / name).write_bytes(content)
    return path
