"""Hugging Face folders: what AutoTokenizer reads from them, `load_tokenizer` reads as well."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from apr.common.errors import AprError, UsageError
from apr.text import load_tokenizer, tokenizer_from_gguf

CHAT = [{"role": "user", "content": "hi <|im_end|>"}]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture
def folder(tmp_path, byte_level_metadata):
    """A folder as a model's publisher would write it, by the tokenizers library alone."""
    backend = tokenizer_from_gguf(byte_level_metadata).backend
    backend.enable_truncation(16)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "chat_template": "from the config",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 9}')
    return tmp_path


@pytest.mark.parametrize("asked", [None, False, True])
def test_a_begin_token_asked_for_beside_a_tokenizer_that_adds_none(folder, asked):
    """transformers 5 adds none, and neither do we; other readers do, so it is said."""
    change_config(folder, add_bos_token=asked)
    found = load_tokenizer(folder)
    assert found.encode("hi") == auto(folder).encode("hi")
    assert any("add_bos_token" in note for note in found.notes) == bool(asked)


def change_config(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def auto(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def test_same_ids_as_auto_tokenizer(folder, hostile):
    ours, theirs = load_tokenizer(folder), auto(folder)
    for text in hostile:
        assert ours.encode(text) == theirs.encode(text)
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, False) == theirs.decode(ids)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.pad_id is None and theirs.pad_token_id is None
    assert ours.vocab_size == len(theirs)


def test_limits_of_a_training_run_do_not_cut_prompts(folder):
    assert len(load_tokenizer(folder).encode("word " * 500)) > 400


def test_template_files_win_over_the_config(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag: {{ documents | length }}")
    ours, theirs = load_tokenizer(folder), auto(folder)
    assert ours.chat_templates == theirs.chat_template
    assert ours.chat_template == TEMPLATE
    assert ours.encode_chat(CHAT, False) == theirs.apply_chat_template(CHAT)["input_ids"]
    docs = [{"title": "a", "text": "b"}]
    assert ours.render_chat(CHAT, documents=docs, chat_template="rag") == "rag: 1"


def test_named_templates_in_the_config(folder):
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    change_config(folder, chat_template=named)
    ours = load_tokenizer(folder)
    assert ours.chat_templates == {"default": "D", "tool_use": "T"} == auto(folder).chat_template


def test_the_post_processor_says_whether_a_begin_token_is_added(folder, byte_level_metadata):
    """As in transformers, the config's flags count for nothing beside tokenizer.json."""
    for flag in (True, False):
        change_config(folder, add_bos_token=flag, add_eos_token=flag)
        assert load_tokenizer(folder).encode("x") == auto(folder).encode("x")
    more = {**byte_level_metadata, "tokenizer.ggml.add_bos_token": True}
    tokenizer_from_gguf(more).backend.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).encode("x")[0] == 1
    assert load_tokenizer(folder).encode("x") == auto(folder).encode("x")


def test_extra_special_tokens_of_the_config(folder):
    change_config(folder, additional_special_tokens=["self"])
    ours, theirs = load_tokenizer(folder), auto(folder)
    ids = ours.encode("x selfish")
    assert ids == theirs.encode("x selfish")
    assert ours.token_to_id("self") in ours.special_ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_only_the_config_declares(folder):
    size = load_tokenizer(folder).vocab_size
    entry = {"content": "<|new|>", "special": True, "normalized": False}
    change_config(folder, added_tokens_decoder={str(size): entry})
    ours, theirs = load_tokenizer(folder), auto(folder)
    assert ours.encode("a<|new|> b") == theirs.encode("a<|new|> b")
    assert size in ours.encode("a<|new|>") and size in ours.special_ids
    change_config(folder, added_tokens_decoder={str(size + 5): entry})
    with pytest.raises(AprError, match=f"gives '<|new|>' id {size + 5}".replace("|", r"\|")):
        load_tokenizer(folder)


def test_special_tokens_map_is_a_fallback(folder):
    change_config(folder, bos_token=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    ours = load_tokenizer(folder)
    assert ours.bos_id is None and ours.eos_id == 2


def test_ends_come_from_every_file(folder):
    assert load_tokenizer(folder).eos_ids == {0, 2, 7, 9}


def test_to_files_returns_the_folders_own(folder):
    files = load_tokenizer(folder).to_files()
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    for name, content in files.items():
        assert content == (folder / name).read_bytes()


def test_plain_text_that_is_a_special_token_anyway(folder):
    """A vocabulary whose merges spell a control token cannot keep text and token apart."""
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    vocab["~~"] = len(vocab)
    merges.insert(0, ["~", "~"])
    path.write_text(json.dumps(state))
    backend = Backend.from_file(str(path))
    backend.add_special_tokens([AddedToken("~~", normalized=False)])
    backend.save(str(path))
    ours = load_tokenizer(folder)
    with pytest.raises(AprError, match="makes the special token '~~' out of plain text"):
        ours.encode("a ~~ b", parse_special=False)


def test_missing_and_damaged_files_are_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UsageError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(empty)
    (empty / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"tokenizer\.model alone is not read"):
        load_tokenizer(empty)
    with pytest.raises(UsageError, match="no such file or folder"):
        load_tokenizer(empty / "nothing")
    (folder / "generation_config.json").write_text("[1]")
    with pytest.raises(AprError, match=r"generation_config\.json holds a JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(AprError, match=r"tokenizer_config\.json cannot be read as JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(AprError, match=r"tokenizer\.json: ") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
