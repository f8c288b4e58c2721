"""Tokenizers rebuilt from GGUF metadata against SentencePiece, transformers and llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from apr.common.errors import AprError
from apr.text import tokenizer_from_gguf
from apr.text.gguf_tokenizer import merges_from_scores
from apr.text.pre_tokenizers import PRE_TOKENIZERS


def differing(texts, encode, expected_of):
    return [(t, encode(t), e) for t in texts if encode(t) != (e := expected_of(t))]


# ---- SentencePiece: the library itself is the oracle ----


@pytest.mark.parametrize("add_prefix", [True, False], ids=["prefix-space", "plain"])
def test_equals_sentencepiece(
    sentence_piece_model, sentence_piece_metadata, hostile, python_lines, add_prefix
):
    model = sentence_piece_model(add_prefix)
    tokenizer = tokenizer_from_gguf(sentence_piece_metadata(model, add_prefix))

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False, parse_special=False)

    # SentencePiece puts the prefix space before the text; Hugging Face's files and llama.cpp put
    # it before every part between added tokens. A literal ▁ is a space to SentencePiece.
    cut_up = ("▁", "<td>", "\n\n") if add_prefix else ("▁",)
    texts = [t for t in hostile if not any(token in t for token in cut_up)]
    assert differing([*texts, *python_lines[:3000]], encode, model.encode) == []
    for text in texts:
        assert tokenizer.decode(encode(text)) == model.decode(model.encode(text))


def test_begin_token_comes_from_the_flag(sentence_piece_model, sentence_piece_metadata):
    metadata = sentence_piece_metadata(sentence_piece_model(True), True)
    assert tokenizer_from_gguf(metadata).encode("x")[0] == 1
    off = {**metadata, "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    ids = tokenizer_from_gguf(off).encode("x")
    assert 1 not in ids and ids[-1] == 2


def test_merges_equal_transformers(sentence_piece_model, sentence_piece_metadata):
    from transformers.convert_slow_tokenizer import generate_merges

    metadata = sentence_piece_metadata(sentence_piece_model(True), True)
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata["tokenizer.ggml.scores"]
    theirs = generate_merges(
        {t: i for i, t in enumerate(tokens)}, dict(zip(tokens, scores, strict=True))
    )
    plain = [1] * len(tokens)  # transformers makes no difference between types here
    assert merges_from_scores(tokens, scores, plain) == theirs


def test_control_tokens_are_never_merged():
    tokens = ["<unk>", "<", "s", ">", "<s", "<s>"]
    types = [2, 1, 1, 1, 1, 3]
    assert merges_from_scores(tokens, [0.0, 0, 0, 0, -1, -2], types) == [("<", "s")]


# ---- byte-level BPE ----


def transformers_backend(metadata, split=None):
    """GPT-2's class, or the pre-tokenizer as a published tokenizer.json states it."""
    from transformers import GPT2Tokenizer

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
    theirs = GPT2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    types = metadata["tokenizer.ggml.token_type"]
    theirs.add_tokens([t for t, k in zip(tokens, types, strict=True) if k == 3], True)
    theirs.add_tokens([t for t, k in zip(tokens, types, strict=True) if k == 4])
    if split is not None:
        theirs.backend_tokenizer.pre_tokenizer = split
    return theirs.backend_tokenizer


DIGITS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)
# As deepseek-ai/deepseek-coder-6.7b-instruct's tokenizer.json has it.
DEEPSEEK_CODER = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
        pre_tokenizers.Split(Regex("\\s?\\p{L}+"), "isolated"),
        pre_tokenizers.Split(Regex("\\s?\\p{P}+"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥ࠀ-一가-\ud7ff]+"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


def transformers_split(name):
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    pattern = gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS[name]
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITS = {
    "gpt-2": lambda: None,
    "default": lambda: None,
    "smollm": lambda: DIGITS,
    "starcoder": lambda: DIGITS,
    "refact": lambda: DIGITS,
    "codeshell": lambda: DIGITS,
    "deepseek-coder": lambda: DEEPSEEK_CODER,
    "dbrx": lambda: transformers_split("dbrx"),
    "gpt-4o": lambda: transformers_split("gpt-4o"),
}


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_equals_transformers(byte_level_metadata, hostile, python_lines, pre):
    ours = tokenizer_from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": pre})
    theirs = transformers_backend(byte_level_metadata, SPLITS[pre]())
    texts = [*hostile, *python_lines[:2000]]
    assert differing(texts, ours.encode, lambda t: theirs.encode(t).ids) == []
    for text in hostile:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken"])
def test_whole_words_are_taken_from_the_vocabulary(byte_level_metadata, hostile, pre):
    """These models look a word up before merging it (`ignore_merges`)."""
    theirs = transformers_backend(byte_level_metadata, transformers_split(pre))
    theirs.model.ignore_merges = True
    ours = tokenizer_from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": pre})
    assert differing(hostile, ours.encode, lambda t: theirs.encode(t).ids) == []
    # A word that no merge can build.
    tokens = [*byte_level_metadata["tokenizer.ggml.tokens"], "zqzqzq"]
    types = [*byte_level_metadata["tokenizer.ggml.token_type"], 1]
    more = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    ours = tokenizer_from_gguf({**byte_level_metadata, **more, "tokenizer.ggml.pre": pre})
    assert ours.encode("zqzqzq") == [len(tokens) - 1]


def test_qwen2_equals_transformers(byte_level_metadata, hostile, python_lines):
    """Qwen's class normalizes to NFC, as the published tokenizer.json does (llama.cpp does not)."""
    from transformers import Qwen2Tokenizer

    tokens = byte_level_metadata["tokenizer.ggml.tokens"]
    theirs = Qwen2Tokenizer(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=[tuple(m.split(" ")) for m in byte_level_metadata["tokenizer.ggml.merges"]],
        unk_token="<|endoftext|>",
    )
    theirs.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    theirs.add_tokens(["<think>", "<|extra|>"])
    ours = tokenizer_from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": "qwen2"})
    texts = [*hostile, *python_lines[:2000]]
    assert differing(texts, ours.encode, theirs.encode) == []


# ---- llama.cpp: every pre-tokenizer name, if a Python with llama-cpp-python is named ----


def write_vocabulary(path: Path, metadata: dict) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), metadata["general.architecture"])
    for name, value in (
        ("context_length", 128),
        ("embedding_length", 8),
        ("block_count", 1),
        ("feed_forward_length", 8),
        ("attention.head_count", 1),
    ):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Where llama.cpp reads a text otherwise than the model's own tokenizer.json: it does not apply
# NFC, and cuts by its own tables of Unicode classes.
NOT_NFC = {"qwen2", "deepseek-r1-qwen", "qwen35"}


@pytest.mark.parametrize("pre", sorted(set(PRE_TOKENIZERS) - {"default"}))
def test_equals_llama_cpp(
    byte_level_metadata, hostile, training_text, tmp_path, pre, llama_cpp_ids
):
    import unicodedata

    metadata = {**byte_level_metadata, "tokenizer.ggml.pre": pre}
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, metadata)
    texts = [*hostile, *training_text[:1500]]
    if pre in NOT_NFC:
        texts = [t for t in texts if unicodedata.is_normalized("NFC", t)]
    ours = tokenizer_from_gguf(metadata)
    expected = llama_cpp_ids(path, texts)
    parsed = [(t, ours.encode(t), e[0]) for t, e in zip(texts, expected, strict=True)]
    assert [row for row in parsed if row[1] != row[2]] == []
    literal = [
        (t, ours.encode(t, add_special_tokens=False, parse_special=False), e[1])
        for t, e in zip(texts, expected, strict=True)
    ]
    assert [row for row in literal if row[1] != row[2]] == []


@pytest.mark.parametrize("add_prefix", [True, False], ids=["prefix-space", "plain"])
def test_sentence_piece_equals_llama_cpp(
    sentence_piece_model,
    sentence_piece_metadata,
    hostile,
    training_text,
    tmp_path,
    add_prefix,
    llama_cpp_ids,
):
    metadata = sentence_piece_metadata(sentence_piece_model(add_prefix), add_prefix)
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, metadata)
    texts = [*[t for t in hostile if "▁" not in t], *training_text[:1500]]
    ours = tokenizer_from_gguf(metadata)
    pairs = zip(texts, llama_cpp_ids(path, texts), strict=True)
    rows = [(t, ours.encode(t), e[0]) for t, e in pairs]
    assert [row for row in rows if row[1] != row[2]] == []


def test_phi3_special_tokens_swallow_spaces(
    sentence_piece_model, sentence_piece_metadata, tmp_path, llama_cpp_ids
):
    """Nothing in the file says so: llama.cpp goes by the model's name, apr by its architecture."""
    metadata = sentence_piece_metadata(sentence_piece_model(True), True)
    for key, value in (("tokens", "<|endoftext|>"), ("scores", 0.0), ("token_type", 3)):
        metadata[f"tokenizer.ggml.{key}"] = [*metadata[f"tokenizer.ggml.{key}"], value]
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, {**metadata, "general.name": "Phi-3 mini"})
    texts = ["a</s>  \n b", "a</s>b", "<s>  a</s>\n<s>\nb", "</s></s> x", "a<|endoftext|> x"]
    ours = tokenizer_from_gguf({**metadata, "general.architecture": "phi3"})
    assert [ours.encode(t) for t in texts] == [e[0] for e in llama_cpp_ids(path, texts)]


def test_phi3_special_tokens_are_the_only_ones(sentence_piece_model, sentence_piece_metadata):
    metadata = sentence_piece_metadata(sentence_piece_model(True), True)
    plain = tokenizer_from_gguf(metadata)
    phi3 = tokenizer_from_gguf({**metadata, "general.architecture": "phi3"})
    assert phi3.encode("a</s> \nb") == phi3.encode("a</s>b") != plain.encode("a</s> \nb")
    assert phi3.encode("a<s> \nb") == plain.encode("a<s> \nb") != plain.encode("a<s>b")


# ---- what is refused ----


def test_unknown_pre_tokenizer_is_refused_by_name(byte_level_metadata):
    with pytest.raises(AprError, match="'klingon' is not known") as caught:
        tokenizer_from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": "klingon"})
    assert "smollm" in str(caught.value) and "Hugging Face folder" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' is not a tokenizer known here"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is missing"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "damaged"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 entries for"),
        ({"tokenizer.ggml.model": "llama"}, "scores is missing"),
    ],
)
def test_damaged_metadata_is_one_line(byte_level_metadata, change, message):
    with pytest.raises(AprError, match=message) as caught:
        tokenizer_from_gguf({**byte_level_metadata, **change})
    assert "\n" not in str(caught.value)


def test_a_token_listed_twice_is_named(byte_level_metadata):
    tokens = list(byte_level_metadata["tokenizer.ggml.tokens"])
    tokens[300] = tokens[200]
    with pytest.raises(AprError, match="listed twice"):
        tokenizer_from_gguf({**byte_level_metadata, "tokenizer.ggml.tokens": tokens})


def test_a_missing_pre_tokenizer_is_noted(byte_level_metadata):
    without = {k: v for k, v in byte_level_metadata.items() if k != "tokenizer.ggml.pre"}
    assert "GPT-2's is assumed" in tokenizer_from_gguf(without).notes[0]
    assert tokenizer_from_gguf(byte_level_metadata).notes == ()
