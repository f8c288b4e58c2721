"""Shared material: texts to encode, small trained vocabularies, real files where they are."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import AprError
from corpus import HOSTILE, hostile, python_lines

__all__ = ["hostile", "python_lines"]  # fixtures for this folder


@pytest.fixture(scope="session")
def training_text() -> list[str]:
    """Python that is always at hand: the standard library's own modules."""
    import argparse
    import inspect as inspect_module
    import textwrap

    modules = (argparse, inspect_module, textwrap)
    return [line for m in modules for line in inspect_module.getsource(m).splitlines(keepends=True)]


def _real_gguf(file_name: str, short_name: str) -> Path:
    folder = os.environ.get("APR_TEST_MODELS")
    if folder:
        path = Path(folder) / file_name
        if path.is_file():
            return path
    try:
        from apr.hub import resolve

        return resolve(short_name, offline=True)
    except (ImportError, AprError) as error:
        pytest.skip(f"{short_name} is neither in APR_TEST_MODELS nor in the cache ({error})")


def read_metadata(path: Path) -> dict[str, Any]:
    """GGUF metadata through the gguf package's own reader."""
    import gguf

    reader = gguf.GGUFReader(str(path))
    return {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _real_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    return _real_gguf("gemma3.gguf", "gemma3-270m")


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> dict[str, Any]:
    return read_metadata(smollm2_path)


@pytest.fixture(scope="session")
def gemma_metadata(gemma_path: Path) -> dict[str, Any]:
    return read_metadata(gemma_path)


CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEFINED = ["<think>", "<|extra|>"]


@pytest.fixture(scope="session")
def byte_level_metadata(training_text):
    """A byte-level BPE of 1000 tokens, trained here, written the way GGUF files write it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=CONTROL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [*training_text, *HOSTILE, " ".join(str(n) for n in range(300))] * 2
    backend.train_from_iterator(words, trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get) + DEFINED
    kinds = [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL) - len(DEFINED))
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds + [4] * len(DEFINED),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.fixture(scope="session")
def sentence_piece_model(training_text):
    """Train a SentencePiece BPE: `make(add_dummy_prefix) -> SentencePieceProcessor`."""
    import sentencepiece

    def make(add_dummy_prefix: bool) -> Any:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*training_text, *HOSTILE[:32]]),
            model_writer=model,
            model_type="bpe",
            vocab_size=1200,
            byte_fallback=True,
            add_dummy_prefix=add_dummy_prefix,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            allow_whitespace_only_pieces=True,
            character_coverage=0.9995,
            user_defined_symbols=["<td>", "\n\n"],
            minloglevel=2,
        )
        return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    return make


@pytest.fixture(scope="session")
def sentence_piece_metadata():
    """A SentencePiece model as GGUF metadata: `make(processor, add_space_prefix) -> dict`."""

    def make(model: Any, add_space_prefix: bool) -> dict[str, Any]:
        ids = range(model.get_piece_size())
        tokens = [model.id_to_piece(i) for i in ids]

        def kind(i: int) -> int:
            if model.is_unknown(i):
                return 2
            if model.is_control(i):
                return 3
            if tokens[i] in ("<td>", "\n\n"):
                return 4
            return 6 if model.is_byte(i) else 1

        return {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
            "tokenizer.ggml.token_type": [kind(i) for i in ids],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_space_prefix": add_space_prefix,
        }

    return make


@pytest.fixture(scope="session")
def llama_cpp_ids():
    """llama.cpp's ids (see `convert.llama_cpp.token_ids`)."""
    from convert.llama_cpp import token_ids

    return token_ids
