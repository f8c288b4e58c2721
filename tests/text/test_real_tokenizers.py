"""SmolLM2 and Gemma 3, as they are published in GGUF.

Oracles: transformers' GGUF loader (with one deviation from SmolLM2's tokenizer.json put right: it
does not know that digits stand alone there), and llama.cpp where it is installed.
"""

from __future__ import annotations

import json

import pytest
from tokenizers import pre_tokenizers

from apr.text import load_tokenizer, tokenizer_from_gguf

CHATS = [
    [{"role": "user", "content": "Write a function that adds two numbers.\n"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi <|im_end|> there"},
        {"role": "assistant", "content": "Hello 👋"},
        {"role": "user", "content": "\tgo on  "},
    ],
]


def write_folder(tokenizer, folder, model_type):
    for name, content in tokenizer.to_files().items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def differing(texts, ours, theirs):
    return [t for t in texts if ours.encode(t) != theirs.encode(t)]


def check_streams(tokenizer, texts):
    for text in texts:
        ids = tokenizer.encode(text)
        for skip in (True, False):
            stream = tokenizer.stream(skip_special_tokens=skip)
            pieces = [stream.push(i) for i in ids] + [stream.flush()]
            assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.fixture(scope="module")
def smollm2(smollm2_metadata):
    return tokenizer_from_gguf(smollm2_metadata)


def test_smollm2_facts(smollm2, smollm2_path):
    assert smollm2.vocab_size == 49152
    assert {smollm2.id_to_token(i) for i in smollm2.eos_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert smollm2.id_to_token(smollm2.bos_id) == "<|im_start|>"
    assert smollm2.encode("x")[0] != smollm2.bos_id
    assert load_tokenizer(smollm2_path).to_files() == smollm2.to_files()


def test_smollm2_folder_in_auto_tokenizer(smollm2, tmp_path, python_lines, hostile):
    from transformers import AutoTokenizer

    write_folder(smollm2, tmp_path, "llama")
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert differing([*hostile, *python_lines[:2000]], smollm2, theirs) == []
    assert theirs.special_tokens_map == smollm2.special_tokens
    for chat in CHATS:
        for prompt in (True, False):
            options = {"add_generation_prompt": prompt}
            text = theirs.apply_chat_template(chat, tokenize=False, **options)
            assert smollm2.render_chat(chat, prompt) == text
            ids = theirs.apply_chat_template(chat, **options)["input_ids"]
            assert smollm2.encode_chat(chat, prompt) == ids
    again = load_tokenizer(tmp_path)
    assert again.eos_ids == smollm2.eos_ids and again.chat_template == smollm2.chat_template


def test_smollm2_streams(smollm2, python_lines, hostile):
    check_streams(smollm2, [*hostile, "".join(python_lines[:300])])


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2, smollm2_path, python_lines, hostile):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    assert differing([*hostile, *python_lines], smollm2, theirs) == []
    for text in hostile:
        ids = smollm2.encode(text)
        assert smollm2.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def gemma(gemma_metadata):
    return tokenizer_from_gguf(gemma_metadata)


@pytest.mark.slow
def test_gemma_facts(gemma, gemma_path):
    assert gemma.vocab_size == 262144
    assert {gemma.id_to_token(i) for i in gemma.eos_ids} == {"<eos>", "<end_of_turn>"}
    assert gemma.encode("x")[0] == gemma.bos_id == gemma.token_to_id("<bos>")
    assert gemma.token_to_id("</s>") not in gemma.special_ids
    assert load_tokenizer(gemma_path).eos_ids == gemma.eos_ids


@pytest.mark.slow
def test_gemma_streams(gemma, python_lines, hostile):
    check_streams(gemma, [*hostile, "".join(python_lines[:300])])


@pytest.mark.slow
def test_gemma_equals_transformers(gemma, gemma_path, python_lines, hostile, tmp_path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(gemma_path.parent), gguf_file=gemma_path.name)
    # transformers derives merges for the names of byte tokens as well; see the end of the test.
    texts = [t for t in hostile if "<0x" not in t]
    assert differing([*texts, *python_lines], gemma, theirs) == []
    for text in texts:
        ids = gemma.encode(text)
        assert gemma.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        literal = theirs.encode(text, split_special_tokens=True, add_special_tokens=False)
        ours = gemma.encode(text, add_special_tokens=False, parse_special=False)
        assert ours == literal
    # Text that spells a byte token stays text.
    assert gemma.decode(gemma.encode("<0x0A>")) == "<0x0A>"
    write_folder(gemma, tmp_path, "gemma3_text")
    imported = AutoTokenizer.from_pretrained(str(tmp_path))
    assert differing([*hostile, *python_lines[:2000]], gemma, imported) == []
    assert imported.special_tokens_map == gemma.special_tokens


def differing_from_llama_cpp(tokenizer, texts, answers):
    rows = []
    for text, (parsed, literal) in zip(texts, answers, strict=True):
        plain = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        if tokenizer.encode(text) != parsed or plain != literal:
            rows.append(text)
    return rows


@pytest.mark.slow
def test_smollm2_equals_llama_cpp(smollm2, smollm2_path, python_lines, hostile, llama_cpp_ids):
    texts = [*hostile, *python_lines]
    assert differing_from_llama_cpp(smollm2, texts, llama_cpp_ids(smollm2_path, texts)) == []


@pytest.mark.slow
def test_gemma_equals_llama_cpp(gemma, gemma_path, python_lines, hostile, llama_cpp_ids):
    """But for runs of more than 31 spaces, a literal ▁, and `</s>`, an HTML tag in this vocabulary.

    llama.cpp (like SentencePiece) takes the longest run first, Hugging Face merges; llama.cpp
    tells a literal ▁ from a space, and takes every `</s>` for a control token.
    """
    texts = [*hostile, *python_lines]
    rows = differing_from_llama_cpp(gemma, texts, llama_cpp_ids(gemma_path, texts))
    assert [t for t in rows if " " * 32 not in t and "▁" not in t and "</s>" not in t] == []
