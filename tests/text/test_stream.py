"""Incremental decoding against decoding everything at once with the tokenizers library."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from apr.text import Tokenizer, tokenizer_from_gguf
from apr.text.stream import byte_characters, decoder_kind


def streamed(tokenizer: Tokenizer, ids: list[int], **options) -> list[str]:
    stream = tokenizer.stream(**options)
    return [stream.push(i) for i in ids] + [stream.flush()]


def check(tokenizer: Tokenizer, ids: list[int]) -> None:
    for skip in (True, False):
        whole = tokenizer.backend.decode(ids, skip_special_tokens=skip)
        pieces = streamed(tokenizer, ids, skip_special_tokens=skip)
        assert "".join(pieces) == whole


@pytest.fixture(scope="module")
def byte_level(byte_level_metadata):
    return tokenizer_from_gguf(byte_level_metadata)


@pytest.fixture(scope="module", params=[True, False], ids=["prefix-space", "plain"])
def pieces(request, sentence_piece_model, sentence_piece_metadata):
    model = sentence_piece_model(request.param)
    return tokenizer_from_gguf(sentence_piece_metadata(model, request.param))


def test_byte_alphabet_is_the_librarys():
    assert set(byte_characters()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_characters().values()) == list(range(256))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_byte_level_random_ids(byte_level, data):
    check(byte_level, data.draw(st.lists(st.integers(0, byte_level.vocab_size + 3), max_size=30)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_byte_level_random_bytes(byte_level, data):
    """Single bytes only: most sequences are not valid UTF-8."""
    ids = [byte_level.token_to_id(c) for c in byte_characters()]
    check(byte_level, data.draw(st.lists(st.sampled_from(ids), max_size=12)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_random_ids(pieces, data):
    """Half of the ids are byte tokens, so runs of them (valid or not) are frequent."""
    any_id = st.integers(0, pieces.vocab_size + 3)
    byte = st.integers(0, 255).map(lambda b: pieces.token_to_id(f"<0x{b:02X}>"))
    special = st.sampled_from(sorted(pieces.special_ids))
    check(pieces, data.draw(st.lists(st.one_of(any_id, byte, byte, special), max_size=24)))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40), cut=st.integers(0, 40))
def test_pieces_after_a_context(pieces, text, cut):
    ids = pieces.encode(text, add_special_tokens=False)
    before, after = ids[:cut], ids[cut:]
    # What decode(before) shows of a run of bytes cut in two is not a prefix of anything.
    assume(not before or not pieces.id_to_token(before[-1]).startswith("<0x"))
    known = pieces.decode(before)
    added = "".join(streamed(pieces, after, context=before))
    assert added == pieces.decode(ids)[len(known) :]


def test_hostile_texts(byte_level, pieces, hostile):
    for text in hostile:
        check(byte_level, byte_level.encode(text))
        check(pieces, pieces.encode(text))


def test_context_keeps_the_space_a_completion_begins_with(
    sentence_piece_model, sentence_piece_metadata
):
    tokenizer = tokenizer_from_gguf(sentence_piece_metadata(sentence_piece_model(True), True))
    prompt = tokenizer.encode("return", add_special_tokens=True)
    answer = [tokenizer.token_to_id("▁self")]
    assert "".join(streamed(tokenizer, answer)) == "self"
    assert "".join(streamed(tokenizer, answer, context=prompt)) == " self"


def test_characters_come_out_when_complete(byte_level):
    ids = [byte_level.token_to_id(c) for c in "ðŁĺĢ"]  # the four bytes of 😀
    assert streamed(byte_level, ids) == ["", "", "", "😀", ""]


def test_unknown_decoders_wait_for_the_end():
    backend = Backend(models.WordPiece({"[UNK]": 0, "un": 1, "##done": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    assert decoder_kind(backend) == "whole"
    tokenizer = Tokenizer(backend, special_tokens={}, chat_templates={})
    assert streamed(tokenizer, [1, 2]) == ["", "", "undone"]


def test_metaspace_decoder(pieces):
    """Mistral-style files decode with Metaspace, which knows the first token by its place."""
    state = json.loads(pieces.backend.to_str())
    state["decoder"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    tokenizer = Tokenizer(Backend.from_str(json.dumps(state)), special_tokens={}, chat_templates={})
    assert decoder_kind(tokenizer.backend) == "pieces"
    for text in ("def f(self):\n    return self", "  two", "x"):
        check(tokenizer, [1, *pieces.encode(text), 2, *pieces.encode(text)])
