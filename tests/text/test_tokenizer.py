"""The Tokenizer object on a small vocabulary: special tokens, bad text, files it writes."""

from __future__ import annotations

import json
import threading

import pytest
from tokenizers import AddedToken

from apr.common.errors import UsageError
from apr.text import Tokenizer, load_tokenizer, tokenizer_from_gguf
from apr.text.tokenizer import find_end_ids

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(byte_level_metadata):
    return tokenizer_from_gguf({**byte_level_metadata, "tokenizer.chat_template": TEMPLATE})


def test_special_text_is_parsed_unless_told_otherwise(tokenizer):
    text = "a<|im_end|>b<think>"
    parsed = tokenizer.encode(text)
    assert parsed.count(2) == 1
    literal = tokenizer.encode(text, parse_special=False)
    assert not tokenizer.special_ids.intersection(literal)
    assert tokenizer.decode(literal, skip_special_tokens=False) == text
    # Added tokens that are not special stay tokens either way, as in transformers and llama.cpp.
    assert tokenizer.token_to_id("<think>") in literal
    # The two ways do not disturb each other.
    assert tokenizer.encode(text) == parsed


def test_parse_special_false_equals_transformers(tokenizer, hostile):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, split_special_tokens=True)
    for text in hostile:
        ids = theirs.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special_tokens=False, parse_special=False) == ids


def test_both_ways_from_many_threads(tokenizer):
    wrong = []

    def work(parse_special: bool, count: int) -> None:
        for _ in range(200):
            ids = tokenizer.encode("x<|im_end|>y", parse_special=parse_special)
            if ids.count(2) != count:
                wrong.append(ids)

    threads = [threading.Thread(target=work, args=(i % 2 == 0, (i + 1) % 2)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("text", ["ab\ud800", "\udfff", "ok \ud83d x"])
def test_half_surrogates_are_named(tokenizer, text):
    with pytest.raises(UsageError, match=r"half a surrogate pair \(U\+D[0-9A-F]{3}\) at character"):
        tokenizer.encode(text)


def test_a_byte_that_was_no_text_is_named(tokenizer):
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(UsageError, match="byte 0xe9 at character 3 is no UTF-8"):
        tokenizer.encode(text)


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_printed_as_they_are_spelled(byte_level_metadata, special):
    spelled = ["café", "ÿ", "Ġ", "日本", " x ", "\n\n", "<naïve>"]
    backend = tokenizer_from_gguf(byte_level_metadata).backend
    backend.add_tokens([AddedToken(t, special=special, normalized=False) for t in spelled])
    reader = Tokenizer(backend, special_tokens={}, chat_templates={})
    text = "é" + "a".join(spelled) + "ü"
    ids = reader.encode(text)
    assert {reader.token_to_id(t) for t in spelled} <= set(ids)
    assert reader.decode(ids, skip_special_tokens=False) == text
    stream = reader.stream(skip_special_tokens=False)
    assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_other_things_than_text_are_refused(tokenizer):
    with pytest.raises(UsageError, match="got bytes, not str"):
        tokenizer.encode(b"x")


def test_ids_beyond_the_vocabulary_decode_to_nothing(tokenizer):
    ids = tokenizer.encode("a")
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 7, *ids]) == "aa"
    assert tokenizer.id_to_token(tokenizer.vocab_size) is None


def test_files_load_in_auto_tokenizer(tokenizer, hostile, tmp_path):
    from transformers import AutoTokenizer

    for name, content in tokenizer.to_files().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in hostile:
        assert theirs.encode(text) == tokenizer.encode(text)
        ids = tokenizer.encode(text)
        assert theirs.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    assert theirs.special_tokens_map == tokenizer.special_tokens
    assert set(theirs.all_special_ids) == set(tokenizer.special_ids)
    assert theirs.chat_template == TEMPLATE
    chat = [{"role": "user", "content": "x"}]
    assert theirs.apply_chat_template(chat)["input_ids"] == tokenizer.encode_chat(chat)
    again = load_tokenizer(tmp_path)
    assert again.eos_ids == tokenizer.eos_ids
    assert again.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_files_keep_begin_and_end_flags(byte_level_metadata, tmp_path, bos, eos):
    from transformers import AutoTokenizer

    flags = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    tokenizer = tokenizer_from_gguf({**byte_level_metadata, **flags})
    for name, content in tokenizer.to_files().items():
        (tmp_path / name).write_bytes(content)
    ids = tokenizer.encode("x")
    assert (ids[0] == 1, ids[-1] == 2) == (bos, eos)
    assert AutoTokenizer.from_pretrained(str(tmp_path)).encode("x") == ids
    assert load_tokenizer(tmp_path).encode("x") == ids


def test_named_templates_survive(byte_level_metadata, tmp_path):
    templates = {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T"}
    tokenizer = tokenizer_from_gguf({**byte_level_metadata, **templates})
    for name, content in tokenizer.to_files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert load_tokenizer(tmp_path).chat_templates == {"default": "D", "tool_use": "T"}


def test_gguf_end_ids(byte_level_metadata):
    more = {"tokenizer.ggml.eot_token_id": 300, "tokenizer.ggml.eom_token_id": 301}
    ends = tokenizer_from_gguf({**byte_level_metadata, **more}).eos_ids
    assert {2, 300, 301} <= ends
    none = {**byte_level_metadata, "tokenizer.ggml.eos_token_id": 2**32 - 1}
    assert tokenizer_from_gguf(none).eos_id is None


@pytest.mark.parametrize(
    ("special", "added", "templates", "expected"),
    [
        # A chat model whose files name only the end of text.
        (["</s>", "<|im_end|>"], [], ["{{ '<|im_end|>' }}"], {"</s>", "<|im_end|>"}),
        # An end-of-turn the template never writes does not end a turn.
        (["</s>", "<|end|>"], [], ["{{ eos_token }}"], {"</s>"}),
        # Without a template there is nothing to contradict it.
        (["<eos>", "<end_of_turn>"], [], [], {"<eos>", "<end_of_turn>"}),
        # `</s>` as an HTML tag of a vocabulary with another end.
        (["<eos>"], ["</s>"], [], {"<eos>"}),
        # Not marked as special, but the template ends turns with it.
        (["<eos>"], ["<|EOT|>"], ["x<|EOT|>"], {"<eos>", "<|EOT|>"}),
        # Harmony: a message's end is not the turn's.
        (
            ["<|end|>", "<|return|>", "<|call|>"],
            [],
            ["<|end|><|return|><|call|>"],
            {"<|return|>", "<|call|>"},
        ),
    ],
)
def test_well_known_ends(special, added, templates, expected):
    ids = {token: i for i, token in enumerate([*special, *added])}
    found = find_end_ids([], {t: ids[t] for t in special}, ids, templates)
    assert found == {ids[t] for t in expected}
