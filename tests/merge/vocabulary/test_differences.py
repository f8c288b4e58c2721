from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from apr.common.errors import UsageError
from apr.merge.vocabulary import VocabularyDifference, differences
from apr.text import load_tokenizer
from convert.models import gguf_file, small_model

from .folders import PYTHON, byte_level, pair, save


def compare(a: Path, b: Path) -> VocabularyDifference | None:
    return differences(a, b, "A", "B")


def edited(tmp_path: Path, change: Any) -> tuple[Path, Path]:
    """A folder, and one whose tokenizer.json (a dict) was changed in place."""
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    two = save(tmp_path / "b", byte_level(PYTHON, 350))
    document = json.loads((two / "tokenizer.json").read_text())
    change(document)
    (two / "tokenizer.json").write_text(json.dumps(document))
    return one, two


def test_equal_tokenizers_written_differently(tmp_path: Path) -> None:
    def old_spelling(document: dict[str, Any]) -> None:
        document["model"]["merges"] = [" ".join(m) for m in document["model"]["merges"]]

    one, two = edited(tmp_path, old_spelling)
    config = {"chat_template": "{{ messages }}", "eos_token": "<|im_end|>"}
    save(tmp_path / "c", Tokenizer.from_file(str(one / "tokenizer.json")), **config)
    assert compare(one, one) is None
    assert compare(one, two) is None
    assert compare(one, tmp_path / "c") is None


def test_counts_and_tokens_are_those_of_the_vocabularies(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    a, b = (Tokenizer.from_file(str(f / "tokenizer.json")).get_vocab() for f in (one, two))
    found = compare(one, two)
    assert found is not None
    assert set(found.only_a) == a.keys() - b.keys()
    assert list(found.only_b) == sorted(b.keys() - a.keys(), key=b.__getitem__)
    assert {t: (i, j) for t, i, j in found.moved} == {
        t: (a[t], b[t]) for t in a.keys() & b.keys() if a[t] != b[t]
    }
    told = str(found.refusal())
    assert f"{len(found.only_b)} tokens only in B ('<|pad|>', " in told
    assert f"{len(found.moved)} ids differ ('<|im_end|>': 2 / {b['<|im_end|>']}, " in told
    assert "\n" not in told
    assert told.endswith("(choose `tokenizer_source` base or union)")


def test_one_added_token(tmp_path: Path) -> None:
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    backend = byte_level(PYTHON, 350)
    backend.add_special_tokens(["<|tool|>"])
    found = compare(one, save(tmp_path / "b", backend))
    assert found is not None
    assert found.describe() == "the tokenizers of A and B differ: 1 token only in B ('<|tool|>')"


def test_added_token_that_only_the_config_knows(tmp_path: Path) -> None:
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    declared = {"350": {"content": "<|tool|>", "special": True}}
    two = save(tmp_path / "b", byte_level(PYTHON, 350), added_tokens_decoder=declared)
    found = compare(one, two)
    assert found is not None and found.only_b == ("<|tool|>",)


def test_same_tokens_by_other_merges(tmp_path: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        merges = document["model"]["merges"]
        merges[0], merges[5] = merges[5], merges[0]

    one, two = edited(tmp_path, swap)
    found = compare(one, two)
    assert found is not None and found.rules == ("merges are in another order",)

    one, two = edited(tmp_path / "more", lambda d: d["model"]["merges"].pop())
    found = compare(one, two)
    assert found is not None
    assert found.describe().startswith("the tokenizers of A and B differ: 1 merge only in A ('")


def test_added_tokens_matched_otherwise(tmp_path: Path) -> None:
    def flags(document: dict[str, Any]) -> None:
        document["added_tokens"][1]["lstrip"] = True
        document["added_tokens"].pop()

    found = compare(*edited(tmp_path, flags))
    assert found is not None
    assert found.rules == (
        "1 token matched as a whole only in A ('<|im_end|>')",
        "1 added token matched otherwise ('<|im_start|>': lstrip)",
    )


def test_normalizer_counts_where_it_changes_ids(tmp_path: Path) -> None:
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    harmless, lower = byte_level(PYTHON, 350), byte_level(PYTHON, 350)
    harmless.normalizer = normalizers.Sequence([])
    lower.normalizer = normalizers.Lowercase()
    assert compare(one, save(tmp_path / "b", harmless)) is None
    found = compare(one, save(tmp_path / "c", lower))
    assert found is not None and found.rules[0].startswith("text is cut otherwise (")


def test_pre_tokenizer_counts_where_it_changes_ids(tmp_path: Path) -> None:
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    apart = byte_level(PYTHON, 350)
    apart.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("e", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    found = compare(one, save(tmp_path / "b", apart))
    assert found is not None and "text is cut otherwise" in found.describe()


def test_unigram_scores(tmp_path: Path) -> None:
    def unigram(score: float) -> Tokenizer:
        return Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0), ("b", score)], unk_id=0))

    one = save(tmp_path / "a", unigram(-2.0))
    assert compare(one, save(tmp_path / "b", unigram(-2.0))) is None
    found = compare(one, save(tmp_path / "c", unigram(-3.0)))
    assert found is not None and found.rules == ("token scores differ",)


def test_gguf_and_the_folder_made_of_it(tmp_path: Path) -> None:
    gguf = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in load_tokenizer(gguf).to_files().items():
        (folder / name).write_bytes(content)
    assert compare(gguf, folder) is None
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken("<new>", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    found = compare(gguf, folder)
    assert found is not None and found.only_b == ("<new>",)


def test_no_tokenizer(tmp_path: Path) -> None:
    one = save(tmp_path / "a", byte_level(PYTHON, 350))
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match=r"b/tokenizer\.json: no such file"):
        compare(one, tmp_path / "b")
    with pytest.raises(UsageError, match=r"c: no such file or folder"):
        compare(one, tmp_path / "c")
