from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from apr.common.errors import AprError
from apr.merge.vocabulary import differences, plan_vocabulary
from apr.merge.vocabulary.read import read_vocabularies, read_vocabulary
from apr.text import load_tokenizer

from .folders import PYTHON, byte_level, inputs, save, save_files


def as_stored(document: dict[str, Any], config: dict[str, Any]) -> None:
    pass


def old_merges(document: dict[str, Any], config: dict[str, Any]) -> None:
    document["model"]["merges"] = [" ".join(m) for m in document["model"]["merges"]]


def declared_in_the_config(document: dict[str, Any], config: dict[str, Any]) -> None:
    config["added_tokens_decoder"] = {"351": {"content": "<|tool|>", "special": True}}


def plain_token_with_a_role(document: dict[str, Any], config: dict[str, Any]) -> None:
    config["pad_token"] = "self"


def role_without_a_token(document: dict[str, Any], config: dict[str, Any]) -> None:
    config["mask_token"] = "<mask>"


def hole_in_the_vocabulary(document: dict[str, Any], config: dict[str, Any]) -> None:
    vocab = document["model"]["vocab"]
    vocab["self"] = 400


def added_tokens_far_behind(document: dict[str, Any], config: dict[str, Any]) -> None:
    document["added_tokens"][-1]["id"] = 500


def nothing_declared(document: dict[str, Any], config: dict[str, Any]) -> None:
    config["added_tokens_decoder"] = None


CASES = (
    nothing_declared,
    as_stored,
    old_merges,
    declared_in_the_config,
    plain_token_with_a_role,
    role_without_a_token,
    hole_in_the_vocabulary,
    added_tokens_far_behind,
)


def folder_of(tmp_path: Path, change: Any) -> Path:
    backend = byte_level(PYTHON, 350)
    backend.add_tokens([AddedToken("<think>", lstrip=True, normalized=False)])
    folder = save(tmp_path / "a", backend)
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    values = [json.loads(file.read_text()) for file in files]
    change(*values)
    for file, value in zip(files, values, strict=True):
        file.write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("change", CASES)
def test_ids_and_added_tokens_are_those_of_the_tokenizer(tmp_path: Path, change: Any) -> None:
    folder = folder_of(tmp_path, change)
    backend = load_tokenizer(folder).backend
    found = read_vocabulary(folder)
    assert found.ids == backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder().values()
    assert found.added == {t.content: t for t in added}


@pytest.mark.parametrize("change", CASES)
def test_whatever_the_base_is_written_like_its_ids_stay(tmp_path: Path, change: Any) -> None:
    folder = folder_of(tmp_path, change)
    backend = byte_level(PYTHON, 380)
    backend.add_tokens(["<|call|>"])
    other = save(tmp_path / "b", backend)
    plan = plan_vocabulary("union", inputs(folder, other), 0)
    before = load_tokenizer(folder).backend.get_vocab()
    assert {t: plan.ids[t] for t in before} == before
    assert plan.ids.keys() == before.keys() | backend.get_vocab().keys()
    loaded = load_tokenizer(save_files(tmp_path / "out", plan)).backend
    assert loaded.get_vocab() == plan.ids
    merges = json.loads(plan.files["tokenizer.json"])["model"]["merges"]
    assert len({type(merge) for merge in merges}) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), {}),
        (("model", "vocab"), ["a"]),
        (("model", "merges"), ["a"]),
        (("added_tokens",), [{"id": 350}]),
        (("added_tokens",), 7),
    ],
)
def test_damage_is_said_in_one_line(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    def damage(document: dict[str, Any], config: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = value

    folder = folder_of(tmp_path, damage)
    other = save(tmp_path / "b", byte_level(PYTHON, 380))
    with pytest.raises(AprError, match=re.escape(str(folder))) as caught:
        differences(folder, other, "A", "B")
    assert "\n" not in str(caught.value)


def test_equal_files_are_read_once(tmp_path: Path) -> None:
    one, two = (save(tmp_path / name, byte_level(PYTHON, 350)) for name in "ab")
    three = save(tmp_path / "c", byte_level(PYTHON, 360))
    a, b, c = read_vocabularies([one, two, three])
    assert a is b and c is not a
