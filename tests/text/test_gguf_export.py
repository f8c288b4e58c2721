"""Oracles: the original tokenizers (of the tokenizers and sentencepiece libraries), llama.cpp."""

from __future__ import annotations

import json
import unicodedata

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from apr.checkpoint import GgufWriter, read_gguf_header
from apr.common.errors import AprError
from apr.text import Tokenizer as Reader
from apr.text import load_tokenizer, tokenizer_from_gguf
from apr.text.gguf_export import tokenizer_to_gguf
from apr.text.gguf_tokenizer import TokenType
from apr.text.pre_tokenizers import PRE_TOKENIZERS

KEY = "tokenizer.ggml."
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
ENDS = ["<|im_end|>", "<|endoftext|>", "<|eom_id|>"]
# One name for each set of rules.
RULES = [
    "gpt-2",
    "smollm",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "qwen35",
    "gpt-4o",
    "tekken",
    "deepseek-coder",
    "deepseek-v3",
    "seed-coder",
]


def test_a_tokenizer_without_merges(tmp_path):
    """Every byte a token: llama.cpp refuses a file without merges, so there is one that says
    nothing.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    rules = PRE_TOKENIZERS["gpt-2"]
    backend.pre_tokenizer, backend.decoder = rules.build(), decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    ours = Reader(backend, special_tokens={"eos_token": "<|end|>"}, chat_templates={})
    found = tokenizer_to_gguf(ours, 260, "llama").metadata
    with GgufWriter(tmp_path / "m.gguf", "llama", found, []):
        pass
    stored = read_gguf_header(tmp_path / "m.gguf").metadata
    assert len(stored[KEY + "merges"]) == 1
    for metadata in (stored, {k: v for k, v in stored.items() if k != KEY + "merges"}):
        assert tokenizer_from_gguf(metadata).encode("déf  f<|end|>") == ours.encode("déf  f<|end|>")


def train(rules, texts, size=1200):
    """A byte-level BPE with the rules of a pre-tokenizer."""
    backend = Tokenizer(models.BPE(ignore_merges=rules.whole_words))
    backend.pre_tokenizer, backend.decoder = rules.build(), decoders.ByteLevel()
    if rules.normalizer:
        backend.normalizer = rules.build_normalizer()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*NAMED.values(), *ENDS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*texts, " ".join(map(str, range(2000)))] * 2, trainer)
    return backend


def load(backend, folder, config=None, **files):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMED if config is None else config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def read_back(found):
    return tokenizer_from_gguf({"general.architecture": "llama", **found.metadata})


def differing(texts, ours, theirs):
    return [
        t
        for t in texts
        if ours.encode(t) != theirs.encode(t)
        or ours.encode(t, False, False) != theirs.encode(t, False, False)
    ]


@pytest.fixture(scope="module")
def small(training_text, hostile):
    return train(PRE_TOKENIZERS["smollm"], [*training_text, *hostile])


@pytest.mark.parametrize("name", RULES)
def test_byte_level_ids_come_back(name, training_text, hostile, python_lines, tmp_path):
    ours = load(train(PRE_TOKENIZERS[name], [*training_text, *hostile]), tmp_path)
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama")
    assert (found.metadata[KEY + "pre"], found.notes) == (name, ())
    theirs = read_back(found)
    assert differing([*hostile, *python_lines[:1000]], ours, theirs) == []
    assert theirs.special_tokens == ours.special_tokens
    assert theirs.eos_ids == ours.eos_ids


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_llama_cpp_gives_the_same_ids(
    name, training_text, hostile, python_lines, tmp_path, llama_cpp_ids
):
    """But for text that is not in normal form C: llama.cpp does not normalize."""
    ours = load(train(PRE_TOKENIZERS[name], [*training_text, *hostile]), tmp_path)
    found = tokenizer_to_gguf(ours, ours.vocab_size + 3, "llama")
    sizes = {"context_length": 8, "embedding_length": 8, "block_count": 1}
    sizes |= {"feed_forward_length": 8, "attention.head_count": 1}
    metadata = {f"llama.{key}": value for key, value in sizes.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = 1e-5
    with GgufWriter(tmp_path / "v.gguf", "llama", {**metadata, **found.metadata}, []):
        pass
    texts = [t for t in [*hostile, *python_lines[:3000]] if unicodedata.is_normalized("NFC", t)]
    for text, (parsed, literal) in zip(
        texts, llama_cpp_ids(tmp_path / "v.gguf", texts), strict=True
    ):
        assert ours.encode(text) == parsed, text
        assert ours.encode(text, False, False) == literal, text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_scores_are_in_the_models_own_order(
    prefix, sentence_piece_model, sentence_piece_metadata, hostile, python_lines, tmp_path
):
    model = sentence_piece_model(prefix)
    original = sentence_piece_metadata(model, prefix)
    # A folder with merges and without scores, as transformers publishes such tokenizers.
    ours = load(tokenizer_from_gguf(original).backend, tmp_path, {**NAMED, "pad_token": None})
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama")
    theirs = read_back(found)
    assert differing([*hostile, *python_lines[:1000]], ours, theirs) == []
    for key in ("model", "tokens", "token_type", "add_space_prefix"):
        assert found.metadata[KEY + key] == original[KEY + key]
    wanted = {i: model.get_score(i) for i, t in enumerate(original[KEY + "token_type"]) if t == 1}
    merged = [i for i in wanted if len(model.id_to_piece(i)) > 1]
    scores = found.metadata[KEY + "scores"]
    assert sorted(merged, key=lambda i: -scores[i]) == sorted(merged, key=lambda i: -wanted[i])
    # Where no user-defined token or line of blanks is involved, these are sentencepiece's ids.
    lines = [t.strip() for t in python_lines[:1000] if t.strip()]
    assert [theirs.encode(t, False) for t in lines] == [model.encode(t) for t in lines]


def test_runs_of_spaces_that_are_added_tokens(
    sentence_piece_model, sentence_piece_metadata, hostile, tmp_path
):
    """As in Gemma's folders: written with real spaces, for llama.cpp looks for them in the text."""
    metadata = sentence_piece_metadata(sentence_piece_model(False), False)
    backend = tokenizer_from_gguf(metadata).backend
    runs = [t for t in metadata[KEY + "tokens"] if set(t) == {"▁"} and len(t) > 1]
    assert len(runs) >= 3
    backend.add_tokens([AddedToken(run, normalized=False) for run in runs])
    ours = load(backend, tmp_path, {**NAMED, "pad_token": None})
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama")
    for run in runs:
        index = metadata[KEY + "tokens"].index(run)
        assert found.metadata[KEY + "tokens"][index] == " " * len(run)
        assert found.metadata[KEY + "token_type"][index] == TokenType.USER_DEFINED
    texts = [t for t in hostile if "▁" not in t] + [" " * n + "x" for n in range(1, 20)]
    assert differing(texts, ours, read_back(found)) == []


def test_types_of_tokens_and_unused_rows(small, tmp_path):
    small = Tokenizer.from_str(small.to_str())
    small.add_tokens(["<tool>", AddedToken("[extra]", special=True)])
    ours = load(small, tmp_path)
    size = ours.vocab_size
    found = tokenizer_to_gguf(ours, size + 5, "llama")
    tokens, types = found.metadata[KEY + "tokens"], found.metadata[KEY + "token_type"]
    kinds = {token: TokenType(kind).name for token, kind in zip(tokens, types, strict=True)}
    assert len(kinds) == size + 5
    assert kinds["<s>"] == kinds["<|im_end|>"] == kinds["[extra]"] == "CONTROL"
    assert kinds["<tool>"] == "USER_DEFINED"
    assert kinds["Ġ"] == "NORMAL"
    assert tokens[size:] == [f"[PAD{i}]" for i in range(size, size + 5)]
    assert {kinds[token] for token in tokens[size:]} == {"UNUSED"}
    # Read back and written once more, nothing changes.
    again = load(read_back(found).backend, tmp_path / "again")
    assert tokenizer_to_gguf(again, size + 5, "llama").metadata == found.metadata


def test_special_ids_and_flags(small, tmp_path):
    ours = load(small, tmp_path, generation_config={"eos_token_id": [1, 4, 6]})
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama").metadata
    ids = {key.removeprefix(KEY): v for key, v in found.items() if key.endswith("_id")}
    assert ids == {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "unknown_token_id": 2,
        "padding_token_id": 3,
        "eot_token_id": 4,
        "eom_token_id": 6,
    }
    assert (found[KEY + "add_bos_token"], found[KEY + "add_eos_token"]) == (False, False)


@pytest.mark.parametrize(
    ("single", "flags"),
    [("<s>:0 $A:0", (True, False)), ("$A:0 </s>:0", (False, True)), ("<s> $A </s>", (True, True))],
)
def test_what_the_post_processor_adds(small, tmp_path, single, flags):
    small = Tokenizer.from_str(small.to_str())
    small.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    ours = load(small, tmp_path)
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama")
    assert (found.metadata[KEY + "add_bos_token"], found.metadata[KEY + "add_eos_token"]) == flags
    assert read_back(found).encode("x") == ours.encode("x")


def test_chat_templates(small, tmp_path):
    templates = [{"name": n, "template": f"{{# {n} #}}"} for n in ("default", "tool_use", "rag")]
    ours = load(small, tmp_path, {**NAMED, "chat_template": templates})
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama")
    assert found.metadata["tokenizer.chat_template"] == "{# default #}"
    assert found.metadata["tokenizer.chat_templates"] == ["tool_use", "rag"]
    assert read_back(found).chat_templates == ours.chat_templates


def test_what_gguf_cannot_say_is_told(small, tmp_path):
    small = Tokenizer.from_str(small.to_str())
    small.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    small.add_special_tokens(["<stop>"])
    stop = small.token_to_id("<stop>")
    ours = load(small, tmp_path, generation_config={"eos_token_id": stop})
    notes = tokenizer_to_gguf(ours, ours.vocab_size, "llama").notes
    assert any("spaces beside '<mask>'" in note for note in notes)
    assert any("readers may miss ['<stop>']" in note for note in notes)
    assert len(notes) == 2


def test_metaspace_of_text_that_begins_with_a_space(
    sentence_piece_model, sentence_piece_metadata, tmp_path
):
    """transformers' non-legacy Llama: ▁ in front, but not of a space."""
    metadata = sentence_piece_metadata(sentence_piece_model(True), True)
    metadata[KEY + "token_type"][metadata[KEY + "tokens"].index("\n\n")] = 1
    backend = tokenizer_from_gguf(metadata).backend
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ours = load(backend, tmp_path, {**NAMED, "pad_token": None})
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama")
    assert found.metadata[KEY + "add_space_prefix"] is True
    assert any("begins with" in note for note in found.notes)
    assert any("spaces beside" in note for note in found.notes)


def test_a_forced_name_is_written_and_tried(small, training_text, tmp_path):
    numbers = load(train(PRE_TOKENIZERS["llama-bpe"], training_text), tmp_path)
    found = tokenizer_to_gguf(numbers, numbers.vocab_size, "llama", pre="smollm")
    assert found.metadata[KEY + "pre"] == "smollm"
    assert "smollm is not this tokenizer's pre-tokenizer" in found.notes[0]
    ours = load(small, tmp_path)
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama", pre="starcoder")
    assert (found.metadata[KEY + "pre"], found.notes) == ("starcoder", ())
    found = tokenizer_to_gguf(ours, ours.vocab_size, "llama", pre="brand-new")
    assert "was not tried" in found.notes[0] and "brand-new" in found.notes[0]


def change(backend, **model):
    value = json.loads(backend.to_str())
    value["model"] |= model
    return Tokenizer.from_str(json.dumps(value))


def test_refused_tokenizers(small, tmp_path):
    ours = load(small, tmp_path)
    with pytest.raises(AprError, match=f"ids up to {ours.vocab_size - 1}, the embedding 10 rows"):
        tokenizer_to_gguf(ours, 10, "llama")
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    framed = Tokenizer.from_str(small.to_str())
    framed.post_processor = processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", 3)]
    )
    no_bytes = Tokenizer.from_str(small.to_str())
    no_bytes.pre_tokenizer = pre_tokenizers.Whitespace()
    for backend, message in [
        (unigram, "a Unigram model cannot be written"),
        (change(small, end_of_word_suffix="</w>"), "end_of_word_suffix = '</w>'"),
        (framed, r"its post_processor adds \['<pad>'\]"),
        (no_bytes, "neither byte-level nor SentencePiece"),
    ]:
        with pytest.raises(AprError, match=message) as caught:
            tokenizer_to_gguf(load(backend, tmp_path), 5000, "llama")
        assert "\n" not in str(caught.value)
