from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram
from transformers import AutoTokenizer

from apr.checkpoint import read_gguf_header
from apr.common.errors import AprError, UsageError
from apr.hub import resolve
from apr.merge.vocabulary import (
    TokenEmbedding,
    VocabularyInput,
    VocabularyPlan,
    model_index,
    parse_tokenizer_settings,
    plan_vocabulary,
)
from apr.text import load_tokenizer
from convert.models import gguf_file, small_model

from .folders import (
    PROSE,
    PYTHON,
    byte_level,
    gathered,
    inputs,
    matrices,
    pair,
    rows_in,
    save,
    save_files,
)


def ids_of(folder: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


def all_rows(plan: VocabularyPlan, matrix: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [gathered(plan.gather(m), matrix) for m in range(len(matrix))]


def settings(**tokens: Any) -> dict[str, TokenEmbedding]:
    found = parse_tokenizer_settings({"tokens": {f"<{k}>": v for k, v in tokens.items()}}).tokens
    assert found is not None
    return found


def test_base_keeps_files_ids_and_rows(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    models = inputs(one, two)
    (one / "generation_config.json").write_text('{"eos_token_id": 2}')
    (one / "merges.txt").write_text("a b")
    plan = plan_vocabulary("base", models, 0)
    assert plan.files == {path.name: path.read_bytes() for path in one.iterdir()}
    assert plan.ids == ids_of(one)
    assert plan.config_changes == {"vocab_size": models[0].embedding_rows}
    a, b = matrix = matrices(models)
    ids_b = ids_of(two)
    expected = a.clone()
    for token, i in plan.ids.items():
        if token in ids_b:
            expected[i] = b[ids_b[token]]
    mine, other = all_rows(plan, matrix)
    assert torch.equal(mine, a)
    assert torch.equal(other, expected)
    assert plan.gather(0).is_identity
    assert not plan.gather(1).is_identity


def test_padded_vocabulary_is_kept(tmp_path: Path) -> None:
    """Qwen2.5 has 271 rows more than tokens. One fine-tune added a token there, one cut them."""
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    more = byte_level(PYTHON, 350)
    more.add_special_tokens(["<|tool|>"])
    two = save(tmp_path / "b", more)
    three = save(tmp_path / "c", byte_level(PYTHON, 350))
    models = [
        VocabularyInput("A", one, 384),
        VocabularyInput("B", two, 384),
        VocabularyInput("C", three, 350),
    ]
    plan = plan_vocabulary("base", models, 0)
    assert plan.vocab_size == 384
    a, b, c = matrix = matrices(models)
    mine, other, cut = all_rows(plan, matrix)
    assert torch.equal(mine, a)
    # Row 350 is a token in B and padding in A: not the same thing.
    assert torch.equal(other, torch.cat([b[:350], a[350:351], b[351:]]))
    assert torch.equal(cut, torch.cat([c, a[350:]]))

    union = plan_vocabulary("union", models, 0)
    assert (union.vocab_size, union.ids["<|tool|>"]) == (384, 350)
    mine, other, cut = all_rows(union, matrix)
    assert torch.equal(mine, torch.cat([a[:350], b[350:351], a[351:]]))
    assert torch.equal(other, b)
    assert torch.equal(cut, torch.cat([c, b[350:351], a[351:]]))


def test_union_appends_behind_the_base(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    plan = plan_vocabulary("union", inputs(one, two), 0)
    a, b = ids_of(one), ids_of(two)
    assert plan.ids.keys() == a.keys() | b.keys()
    assert {t: plan.ids[t] for t in a} == a
    new = sorted(b.keys() - a.keys(), key=plan.ids.__getitem__)
    assert [plan.ids[t] for t in new] == list(range(len(a), len(plan.ids)))
    assert new[-3:] == ["<|pad|>", "<think>", "<|eot|>"]
    assert new[:-3] == sorted(new[:-3], key=b.__getitem__)
    assert plan.config_changes == {"vocab_size": len(plan.ids)}


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer"])
def test_union_in_transformers_and_here(tmp_path: Path, kind: str, declared: bool) -> None:
    one, two = pair(tmp_path)
    config: dict[str, Any] = {"tokenizer_class": kind, "eos_token": "<|endoftext|>"}
    if declared:
        listed = json.loads((one / "tokenizer.json").read_text())["added_tokens"]
        config["added_tokens_decoder"] = {str(token.pop("id")): token for token in listed}
    (one / "tokenizer_config.json").write_text(json.dumps(config))
    (one / "added_tokens.json").write_text('{"<tool>": 400}')
    plan = plan_vocabulary("union", inputs(one, two), 0)
    folder = save_files(tmp_path / "out", plan)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert theirs.get_vocab() == plan.ids
    assert json.loads(plan.files["added_tokens.json"])["<think>"] == plan.ids["<think>"]
    flags = theirs.added_tokens_decoder[plan.ids["<think>"]]
    assert (flags.lstrip, flags.special) == (True, False)
    flags = theirs.added_tokens_decoder[plan.ids["<|eot|>"]]
    assert (flags.rstrip, flags.special) == (True, True)
    text = "def f(x):\n  return x  <think> <|eot|>  hi<|im_end|> Wörterbuch für Übersetzungen"
    assert theirs.encode(text) == ours.encode(text)
    # The other model's own words are found, which added tokens of this spelling would never be.
    found = set(ours.encode(text))
    assert {plan.ids["ĠfÃ¼r"], plan.ids["<think>"], plan.ids["<|eot|>"]} <= found
    assert "ĠfÃ¼r" not in ids_of(one)
    assert ours.decode(ours.encode(PROSE)) == PROSE


def test_union_of_added_tokens_leaves_text_as_it_was(tmp_path: Path) -> None:
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    more = byte_level(PYTHON, 350)
    more.add_special_tokens(["<|tool|>"])
    plan = plan_vocabulary("union", inputs(one, save(tmp_path / "b", more)), 0)
    before, after = json.loads((one / "tokenizer.json").read_text()), plan.files["tokenizer.json"]
    assert json.loads(after)["model"] == before["model"]
    assert json.loads(after)["added_tokens"][:-1] == before["added_tokens"]


def test_missing_rows_only_donor_average_and_zero(tmp_path: Path) -> None:
    """Without a base to prefer: a token of one model, of two models, of none."""
    folders = []
    for name, tokens in (("a", []), ("b", ["<x>", "<y>"]), ("c", ["<y>"])):
        backend = byte_level(PYTHON, 350)
        backend.add_tokens(tokens)
        folders.append(save(tmp_path / name, backend))
    models = inputs(*folders)
    plan = plan_vocabulary("union", models, None, tokens=settings(new={}))
    assert [plan.ids[t] for t in ("<x>", "<y>", "<new>")] == [350, 351, 352]
    matrix = matrices(models)
    _, b, c = matrix
    average, zero = (b[351] + c[350]) / 2, torch.zeros(6)
    for model, rows in enumerate(all_rows(plan, matrix)):
        assert torch.equal(rows[:350], matrix[model][:350])
        expected = ([b[350], average], [b[350], b[351]], [b[350], c[350]])[model]
        assert torch.equal(rows[350:], torch.stack([*expected, zero]))
    assert plan.notes == (
        "A has no row for 3 tokens ('<x>', '<y>', '<new>')",
        "B has no row for 1 tokens ('<new>')",
        "C has no row for 2 tokens ('<x>', '<new>')",
        "no model has a row for 1 tokens ('<new>'): zeros",
    )
    preferred = plan_vocabulary("union", models, 2)
    assert torch.equal(all_rows(preferred, matrix)[0][preferred.ids["<y>"]], c[350])


def test_rows_of_single_tokens_are_chosen(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    models = inputs(one, two)
    chosen = settings(
        tool={"source": {"kind": "zero"}, "force": True},
        think={"source": {"kind": "model_token", "model": "A", "token": "<|im_start|>"}},
        byid={"source": {"kind": "model_token", "model": str(two), "token_id": 7}},
    )
    plan = plan_vocabulary("union", models, 0, tokens=chosen)
    a, b = matrix = matrices(models)
    mine, other = all_rows(plan, matrix)
    think, by_id = plan.ids["<think>"], plan.ids["<byid>"]
    assert by_id == len(plan.ids) - 1
    assert not mine[plan.ids["<tool>"]].any() and not other[plan.ids["<tool>"]].any()
    assert torch.equal(mine[think], a[1])
    assert torch.equal(other[think], b[ids_of(two)["<think>"]])
    assert torch.equal(mine[by_id], b[7]) and torch.equal(other[by_id], b[7])


def test_added_token_of_the_settings_keeps_its_flags(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    renamed = {"kind": "model_token", "model": "B", "token": "<|eot|>"}
    chosen = settings(think={"source": "B"}, end={"source": renamed})
    plan = plan_vocabulary("base", inputs(one, two), 0, tokens=chosen)
    added = {t["content"]: t for t in json.loads(plan.files["tokenizer.json"])["added_tokens"]}
    assert (added["<think>"]["lstrip"], added["<think>"]["special"]) == (True, False)
    assert added["<end>"]["special"]
    assert plan.vocab_size == rows_in(one) + 2


def test_padding_takes_the_mean_of_the_model(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    models = inputs(one, two)
    plan = plan_vocabulary("union", models, 0, pad_to_multiple_of=256)
    assert plan.vocab_size == 512 and len(plan.ids) == 490
    for rows in all_rows(plan, matrices(models)):
        mean = rows[:490].double().mean(0).float()
        torch.testing.assert_close(rows[490:], mean.expand(22, -1), rtol=1e-6, atol=1e-7)


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    models = inputs(one, two)
    config = {"eos_token_id": [0, 382], "bos_token_id": None}
    (two / "config.json").write_text(json.dumps(config))
    (two / "chat_template.jinja").write_text("B")
    plan = plan_vocabulary(1, models, 0)
    assert plan.ids == plan_vocabulary("B", models, 0).ids == ids_of(two)
    assert plan.files["chat_template.jinja"] == b"B"
    assert plan.config_changes == {"vocab_size": rows_in(two), "pad_token_id": None, **config}
    a, b = matrix = matrices(models)
    mine, other = all_rows(plan, matrix)
    ids_a = ids_of(one)
    expected = b.clone()
    for token, i in plan.ids.items():
        if token in ids_a:
            expected[i] = a[ids_a[token]]
    assert torch.equal(mine, expected) and torch.equal(other, b)


def test_files_are_the_chosen_models_though_tokens_are_shared(tmp_path: Path) -> None:
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    two = save(tmp_path / "b", byte_level(PYTHON, 350))
    (one / "chat_template.jinja").write_text("A")
    (two / "chat_template.jinja").write_text("B")
    assert plan_vocabulary("base", inputs(one, two), 0).files["chat_template.jinja"] == b"A"
    assert plan_vocabulary(1, inputs(one, two), 0).files["chat_template.jinja"] == b"B"
    assert plan_vocabulary("base", inputs(one, two), 1).files["chat_template.jinja"] == b"B"


def test_tokens_without_rows(tmp_path: Path) -> None:
    """Gemma's tokenizer knows an image token beyond the embedding of its text models."""
    one = byte_level(PYTHON, 350)
    one.add_special_tokens(["<image>"])
    two = byte_level(PYTHON, 350)
    two.add_special_tokens(["<image>", "<|tool|>"])
    folders = save(tmp_path / "a", one), save(tmp_path / "b", two)
    models = [VocabularyInput("A", folders[0], 350), VocabularyInput("B", folders[1], 352)]
    plan = plan_vocabulary("base", models, 0)
    assert plan.vocab_size == 350 and plan.gather(0).is_identity
    union = plan_vocabulary("union", models, 0)
    assert (union.vocab_size, union.ids["<image>"], union.ids["<|tool|>"]) == (352, 350, 351)
    a, b = matrix = matrices(models)
    mine, other = all_rows(union, matrix)
    assert torch.equal(mine, torch.cat([a, b[350:]])) and torch.equal(other, b)
    with pytest.raises(UsageError, match=r"tokenizer\.tokens\.<image>: id 350 has no row"):
        plan_vocabulary("base", models, 0, tokens=settings(image={"source": "B"}))


def test_padding_tokens_of_gguf_are_no_tokens(tmp_path: Path) -> None:
    """Converters fill a padded vocabulary up with [PAD<id>]."""
    import gguf

    plain = tmp_path / "plain.gguf"
    padded = tmp_path / "padded.gguf"
    gguf_file(plain, small_model("Llama"))
    metadata = read_gguf_header(plain).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    writer = gguf.GGUFWriter(str(padded), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *(f"[PAD{len(tokens) + i}]" for i in range(5))])
    writer.add_token_types([*metadata["tokenizer.ggml.token_type"], *[5] * 5])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        write()
    writer.close()
    more = Tokenizer.from_str(load_tokenizer(plain).backend.to_str())
    more.add_tokens([AddedToken("<new>", normalized=False)])
    size = len(tokens)
    models = [
        VocabularyInput("A", padded, size + 5),
        VocabularyInput("B", save(tmp_path / "b", more), size + 1),
    ]
    plan = plan_vocabulary("union", models, 0)
    assert plan.vocab_size == size + 5
    assert plan.ids["<new>"] == size
    assert load_tokenizer(save_files(tmp_path / "out", plan)).encode("<new>") == [size]


def test_gathered_rows_keep_the_type_and_averages_do_not_lose(tmp_path: Path) -> None:
    folders = []
    for name, tokens in (("a", []), ("b", ["<y>"]), ("c", ["<y>"])):
        backend = byte_level(PYTHON, 350)
        backend.add_tokens(tokens)
        folders.append(save(tmp_path / name, backend))
    models = inputs(*folders)
    matrix = [m.bfloat16() for m in matrices(models)]
    rows = gathered(plan_vocabulary("union", models, None).gather(0), matrix)
    assert rows.dtype == torch.bfloat16
    exact = (matrix[1][350].double() + matrix[2][350].double()) / 2
    assert torch.equal(rows[350], exact.bfloat16())


def test_refusals(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    models = inputs(one, two)
    assert model_index(models, str(two)) == model_index(models, "B") == 1
    with pytest.raises(UsageError, match=r"'C' is none of the merged models \(known: A, B\)"):
        plan_vocabulary("C", models, 0)
    for source, told in (
        ("A", "A has no token '<think>'"),
        ({"kind": "model_token", "model": "A", "token": "<q>"}, "A has no token '<q>'"),
        ({"kind": "model_token", "model": "A", "token_id": 999}, "A has no row 999"),
        ("C", "'C' is none of the merged models"),
    ):
        with pytest.raises(UsageError, match=told):
            plan_vocabulary("union", models, 0, tokens=settings(think={"source": source}))
    words = Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    more = Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    three, four = save(tmp_path / "c", words), save(tmp_path / "d", more)
    with pytest.raises(UsageError, match=r"A \(byte-level\) and C \(not byte-level\) spell"):
        plan_vocabulary("base", inputs(one, three), 0)
    with pytest.raises(UsageError, match=r"kind Unigram cannot take .*tokenizer_source` base"):
        plan_vocabulary("union", inputs(three, four), 0)


def test_damaged_ids_are_found_not_written(tmp_path: Path) -> None:
    """Two tokens of one id: rows cannot be told apart, so nothing may be appended."""
    one, two = pair(tmp_path)
    document = json.loads((one / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    vocab["def"] = vocab["self"]
    (one / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(AprError, match="gives one id to two tokens"):
        plan_vocabulary("union", inputs(one, two), 0)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    folder = os.environ.get("APR_TEST_MODELS")
    path = Path(folder or "") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if folder and path.is_file():
        return path
    try:
        return resolve("smollm2-135m", offline=True)
    except AprError as error:
        pytest.skip(f"smollm2-135m is neither in APR_TEST_MODELS nor in the cache ({error})")


def test_smollm2_with_a_chat_token(smollm2_path: Path, tmp_path: Path) -> None:
    original = load_tokenizer(smollm2_path)
    more = Tokenizer.from_str(original.backend.to_str())
    more.add_special_tokens([AddedToken("<|tool|>", normalized=False)])
    models = [
        VocabularyInput("base", smollm2_path, 49152),
        VocabularyInput("tuned", save(tmp_path / "b", more), 49280),
    ]
    plan = plan_vocabulary("union", models, 0, pad_to_multiple_of=64)
    assert (plan.vocab_size, plan.ids["<|tool|>"]) == (49216, 49152)
    folder = save_files(tmp_path / "out", plan)
    theirs = AutoTokenizer.from_pretrained(folder)
    text = PYTHON + "<|im_start|>user\nhi<|im_end|><|tool|>"
    assert theirs.encode(text) == load_tokenizer(folder).encode(text)
    assert theirs.encode(text) == [*original.encode(text.removesuffix("<|tool|>")), 49152]
    assert theirs.chat_template == original.chat_template
    assert plan.files["generation_config.json"] == original.to_files()["generation_config.json"]


def test_union_of_sentence_piece_vocabularies(tmp_path: Path) -> None:
    """Words of the other model are found by its merges, also behind a normalizer."""

    def pieces(words: list[str]) -> Tokenizer:
        letters = ["<unk>", *"▁abcdefghijklmnopqrstuvwxyz"]
        made = [word[:end] for word in words for end in range(2, len(word) + 1)]
        tokens = list(dict.fromkeys([*letters, *made]))
        merges = [(t[:-1], t[-1]) for t in tokens if t in made]
        vocab = {token: i for i, token in enumerate(tokens)}
        backend = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True))
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
        backend.add_special_tokens(["<unk>"])
        return backend

    one = save(tmp_path / "a", pieces(["▁return", "▁def"]))
    two = save(tmp_path / "b", pieces(["▁def", "▁delta"]))
    plan = plan_vocabulary("union", inputs(one, two), 0)
    ours = load_tokenizer(save_files(tmp_path / "out", plan))
    found = ours.encode("return delta def")
    assert [ours.id_to_token(i) for i in found] == ["▁return", "▁delta", "▁def"]
