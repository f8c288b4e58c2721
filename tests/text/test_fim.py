"""Fill-in-the-middle prompts: ids equal to those of the models' own instructions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import AprError, UsageError
from apr.text import (
    FimFormat,
    Tokenizer,
    around,
    fim_file,
    fim_format,
    fim_format_for,
    load_tokenizer,
    tokenizer_from_gguf,
)
from apr.text.gguf_export import tokenizer_to_gguf

# (prefix, suffix): ends and beginnings where a tokenizer could join or add something.
GAPS = [
    ("def f(x):\n    ", "\n    return y\n"),
    ("a = [1,\n     ", "  ]"),
    ("", "x = 1\n"),
    ("x = 1\n", ""),
    (" y", " z"),
    ("naïve ☺ ", "▁☺ 日本"),
    ("import os\n\n\n", "\n\n\nprint(os)"),
]
# The prompts as the READMEs and evaluation code of the models write them.
WRITTEN = {
    "Qwen2.5-Coder": "<|fim_prefix|>{p}<|fim_suffix|>{s}<|fim_middle|>",
    "StarCoder": "<fim_prefix>{p}<fim_suffix>{s}<fim_middle>",
    "SantaCoder": "<fim-prefix>{p}<fim-suffix>{s}<fim-middle>",
    "DeepSeek-Coder": "<｜fim▁begin｜>{p}<｜fim▁hole｜>{s}<｜fim▁end｜>",
}
WRITTEN_SPM = {
    "StarCoder": "<fim_prefix><fim_suffix>{s}<fim_middle>{p}",
    "SantaCoder": "<fim-prefix><fim-suffix>{s}<fim-middle>{p}",
}
TOKENS = {
    "Qwen2.5-Coder": [f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")]
    + ["<|repo_name|>", "<|file_sep|>"],
    "StarCoder": ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<file_sep>"],
    "SantaCoder": ["<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"],
    "DeepSeek-Coder": ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
}


def with_tokens(metadata: dict[str, Any], tokens: list[str], kind: int = 3) -> dict[str, Any]:
    """GGUF metadata with more tokens. kind: 3 is special, 4 a plain added token."""
    extended = {
        **metadata,
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], *tokens],
        "tokenizer.ggml.token_type": [
            *metadata["tokenizer.ggml.token_type"],
            *[kind] * len(tokens),
        ],
    }
    if "tokenizer.ggml.scores" in metadata:
        scores = [*metadata["tokenizer.ggml.scores"], *[0.0] * len(tokens)]
        extended["tokenizer.ggml.scores"] = scores
    return extended


def format_of(tokenizer: Tokenizer) -> FimFormat:
    found = fim_format_for(tokenizer)
    assert found is not None
    return found


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_ids_of_the_written_prompt(
    byte_level_metadata: dict[str, Any], tmp_path: Path, name: str, begin: bool
) -> None:
    """Against transformers, which reads the prompt as one text."""
    from transformers import AutoTokenizer

    metadata = with_tokens(byte_level_metadata, TOKENS[name])
    tokenizer = tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": begin})
    for path, content in tokenizer.to_files().items():
        (tmp_path / path).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    fim = format_of(tokenizer)
    assert fim.name == name
    assert ("spm" in fim.orders) == (name in WRITTEN_SPM)
    for prefix, suffix in GAPS:
        text = WRITTEN[name].format(p=prefix, s=suffix)
        assert fim.encode(tokenizer, prefix, suffix) == theirs.encode(text)
        if name in WRITTEN_SPM:
            text = WRITTEN_SPM[name].format(p=prefix, s=suffix)
            assert fim.encode(tokenizer, prefix, suffix, "spm") == theirs.encode(text)


@pytest.mark.parametrize("name", WRITTEN)
def test_training_documents(byte_level_metadata: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Against transformers on the document as papers and READMEs write it, parts apart in SPM."""
    from transformers import AutoTokenizer

    end = {"DeepSeek-Coder": "<｜end▁of▁sentence｜>"}.get(name, "<|endoftext|>")
    new = [] if end in byte_level_metadata["tokenizer.ggml.tokens"] else [end]
    metadata = with_tokens(byte_level_metadata, [*TOKENS[name], *new])
    tokenizer = tokenizer_from_gguf(metadata)
    for path, content in tokenizer.to_files().items():
        (tmp_path / path).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    fim = format_of(tokenizer)
    for (prefix, suffix), middle in zip(
        GAPS, ("", "x", " a\n", "☺ 日本", "\n\n", "y", "  "), strict=True
    ):
        text = WRITTEN[name].format(p=prefix, s=suffix) + middle + end
        assert fim.training_ids(tokenizer, (prefix, middle, suffix), "psm") == theirs.encode(text)
        spm = fim.training_ids(tokenizer, (prefix, middle, suffix), "spm")
        pre, suf, mid = (
            theirs.convert_tokens_to_ids(t) for t in (fim.prefix, fim.suffix, fim.middle)
        )
        before, after, inside = (theirs.encode(t) for t in (prefix, suffix, middle + end))
        assert spm == [pre, suf, *after, mid, *before, *inside]


@pytest.fixture(scope="module")
def code_llama(training_text: list[str]) -> Any:
    """A SentencePiece BPE as Llama's: a space before every text, the mark ☺ a piece of its own."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*training_text, "☺"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        required_chars="☺",
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


CODE_LLAMA = ["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"]


def code_llama_tokenizer(model: Any, make: Any) -> Tokenizer:
    metadata = {**make(model, True), "tokenizer.ggml.add_bos_token": True}
    return tokenizer_from_gguf(with_tokens(metadata, CODE_LLAMA))


def test_code_llama(code_llama: Any, sentence_piece_metadata: Any) -> None:
    """Against the steps of meta-llama/codellama (tokenizer.py, generation.py) on sentencepiece."""
    tokenizer = code_llama_tokenizer(code_llama, sentence_piece_metadata)
    fim = format_of(tokenizer)
    assert (fim.name, fim.orders) == ("Code Llama", ("psm", "spm"))
    size = code_llama.get_piece_size()
    pre, mid, suf, end = range(size, size + 4)
    assert code_llama.encode_as_pieces("☺x")[:2] == ["▁", "☺"]
    for prefix, suffix in GAPS:
        before = code_llama.encode(prefix)
        after = code_llama.encode("☺" + suffix)[2:]
        psm = [1, pre, *before, suf, *after, mid]
        spm = [1, pre, suf, *after, mid, *before]
        assert fim.encode(tokenizer, prefix, suffix) == psm
        assert fim.encode(tokenizer, prefix, suffix, "spm") == spm
    assert fim.stop_ids(tokenizer) == {2, pre, mid, suf, end}


def test_code_llama_training_documents(code_llama: Any, sentence_piece_metadata: Any) -> None:
    """Section 2.3 of its paper: no space before middle and suffix; in SPM prefix and middle are
    encoded as one text.
    """
    tokenizer = code_llama_tokenizer(code_llama, sentence_piece_metadata)
    fim = format_of(tokenizer)
    size = code_llama.get_piece_size()
    pre, mid, suf, end = range(size, size + 4)
    for prefix, suffix in GAPS:
        for middle in ("", "x + 1", "  return", "\n"):
            parts = (prefix, middle, suffix)
            after, inside = (code_llama.encode("☺" + text)[2:] for text in (suffix, middle))
            psm = [1, pre, *code_llama.encode(prefix), suf, *after, mid, *inside, end]
            spm = [1, pre, suf, *after, mid, *code_llama.encode(prefix + middle), end]
            assert fim.training_ids(tokenizer, parts, "psm") == psm
            assert fim.training_ids(tokenizer, parts, "spm") == spm


def test_code_llama_middles_keep_their_space(code_llama: Any, sentence_piece_metadata: Any) -> None:
    """As `decode_infilling` there: the mark in front, and away again."""
    tokenizer = code_llama_tokenizer(code_llama, sentence_piece_metadata)
    prompt = format_of(tokenizer).encode(tokenizer, "def f():\n    return", "\n")
    mark = code_llama.piece_to_id("☺")
    for middle in (" x + 1", "x", "\n    pass", "   "):
        ids = code_llama.encode("☺" + middle)[2:]
        stream = tokenizer.stream(context=prompt)
        text = "".join([*(stream.push(i) for i in ids), stream.flush()])
        assert text == code_llama.decode([mark, *ids])[1:] == middle


def test_models_without_the_tokens(byte_level_metadata: dict[str, Any]) -> None:
    assert fim_format_for(tokenizer_from_gguf(byte_level_metadata)) is None
    two = with_tokens(byte_level_metadata, ["<fim_prefix>", "<fim_suffix>"])
    assert fim_format_for(tokenizer_from_gguf(two)) is None


def test_a_real_model_without_the_tokens(smollm2_path: Path) -> None:
    assert fim_format_for(load_tokenizer(smollm2_path)) is None


def test_an_order_the_family_does_not_know(byte_level_metadata: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_gguf(with_tokens(byte_level_metadata, TOKENS["Qwen2.5-Coder"]))
    with pytest.raises(UsageError, match=r"SPM prompts: Qwen2\.5-Coder models .* PSM only"):
        format_of(tokenizer).encode(tokenizer, "a", "b", "spm")


def test_every_token_of_the_format_ends_a_middle(byte_level_metadata: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_gguf(with_tokens(byte_level_metadata, TOKENS["Qwen2.5-Coder"]))
    wanted = {tokenizer.token_to_id(token) for token in TOKENS["Qwen2.5-Coder"]}
    assert format_of(tokenizer).stop_ids(tokenizer) == wanted | tokenizer.eos_ids


def test_code_that_spells_a_token(byte_level_metadata: dict[str, Any]) -> None:
    """Stays text where tokens are special; where they are plain added tokens (Qwen), is refused."""
    prefix = 'PROMPT = "<fim_middle>" + '
    special = tokenizer_from_gguf(with_tokens(byte_level_metadata, TOKENS["StarCoder"]))
    ids = format_of(special).encode(special, prefix, "\n")
    assert ids.count(special.token_to_id("<fim_middle>") or 0) == 1
    assert special.decode(ids) == prefix + "\n"
    plain = tokenizer_from_gguf(with_tokens(byte_level_metadata, TOKENS["StarCoder"], kind=4))
    with pytest.raises(UsageError, match="spells a token of the prompt"):
        format_of(plain).encode(plain, prefix, "\n")
    with pytest.raises(UsageError, match="spells a fill-in-the-middle token"):
        format_of(plain).training_ids(plain, ("a", prefix, "b"), "psm")


def test_named_tokens(byte_level_metadata: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_gguf(with_tokens(byte_level_metadata, ["<a>", "<b>", "<c>"]))
    a, b, c = (tokenizer.token_to_id(token) for token in ("<a>", "<b>", "<c>"))
    named = fim_format(tokenizer, ("<a>", "<b>", "<c>"))
    (x,), (y,) = tokenizer.encode("x"), tokenizer.encode("y")
    assert named.encode(tokenizer, "x", "y") == [a, x, b, y, c]
    assert named.encode(tokenizer, "x", "y", "spm") == [a, b, y, c, x]
    assert named.stop_ids(tokenizer) == tokenizer.eos_ids | {a, b, c}
    eos = tokenizer.special_tokens["eos_token"]
    for tokens, message in (
        ((), r"no tokens for filling in the middle: none of <\|fim_prefix\|> \(Qwen2.5-Coder\)"),
        (("<a>", "<b>"), "three different tokens"),
        (("<a>", "<b>", "<a>"), "three different tokens"),
        (("<a>", "<b>", "<d>"), "the tokenizer has no token <d>"),
        (("<a>", "<b>", eos), "has another use in this model"),
    ):
        with pytest.raises(UsageError, match=message):
            fim_format(tokenizer, tokens)


def test_a_model_says_what_it_was_trained_with(
    byte_level_metadata: dict[str, Any], tmp_path: Path
) -> None:
    metadata = with_tokens(byte_level_metadata, ["<a>", "<b>", "<c>"])
    plain = tokenizer_from_gguf(metadata)
    assert plain.fim_tokens == () and fim_format_for(plain) is None
    for name, content in {**plain.to_files(), **fim_file(("<a>", "<b>", "<c>"))}.items():
        (tmp_path / name).write_bytes(content)
    found = load_tokenizer(tmp_path)
    assert fim_format(found) == fim_format_for(found) == fim_format(plain, ("<a>", "<b>", "<c>"))
    assert fim_format(found, ("<c>", "<b>", "<a>")).prefix == "<c>"
    # As GGUF says it (llama.cpp's keys), and back in a folder.
    written = tokenizer_to_gguf(found, len(metadata["tokenizer.ggml.tokens"]), "llama").metadata
    for part, token in (("pre", "<a>"), ("suf", "<b>"), ("mid", "<c>")):
        assert written[f"tokenizer.ggml.fim_{part}_token_id"] == found.token_to_id(token)
    again = tokenizer_from_gguf({**metadata, **written})
    assert again.fim_tokens == ("<a>", "<b>", "<c>")
    assert json.loads(again.to_files()["fim.json"]) == {
        "prefix": "<a>", "suffix": "<b>", "middle": "<c>"
    }  # fmt: skip
    (tmp_path / "fim.json").write_text('{"prefix": "<a>", "suffix": "<b>"}')
    with pytest.raises(AprError, match=r"fim\.json: prefix, suffix and middle must name tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "fim.json").write_bytes(fim_file(("<a>", "<b>", "<d>"))["fim.json"])
    with pytest.raises(UsageError, match="its files: the tokenizer has no token <d>"):
        fim_format(load_tokenizer(tmp_path))


def test_the_text_around_a_marker() -> None:
    assert around("a<FILL>\nb", "<FILL>") == ("a", "\nb")
    for text, marker in (("a", "<FILL>"), ("<FILL><FILL>", "<FILL>"), ("a", "")):
        with pytest.raises(UsageError, match="times"):
            around(text, marker)
