"""Splits: against exact similarities of all pairs across the parts, and counts by hand."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from apr.cli.main import app
from apr.common.errors import UsageError
from apr.data.split import choose_eval, merge_groups, split_data
from apr.data.training_rows import read_examples
from eval.shared import shared_data

from .test_duplicates import mutated, runs

pytest.importorskip("rensa", reason="near-duplicates need rensa: pip install apr[data]")


def made(path: Path) -> list[dict[str, str]]:
    """600 rows in two unequal strata, a third of them slightly changed copies."""
    draw = random.Random(1)
    source = read_examples(shared_data("instruct/code_alpaca_2k.json.gz"))
    rows = [
        {"instruction": one.prompt, "response": one.response or "none", "topic": "ab"[i % 4 == 0]}
        for i, one in enumerate(islice(source, 400))
    ]
    for row in draw.sample(rows, 200):
        changed = {field: mutated(row[field], 1, draw) for field in ("instruction", "response")}
        rows.append({**row, **changed})
    draw.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def test_no_near_duplicates_across_the_parts(tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl")
    result = split_data(tmp_path / "rows.jsonl", tmp_path / "parts", share=0.1, by="topic")
    train, held_out = lines(result.files["train"]), lines(result.files["eval"])
    assert Counter(train + held_out) == Counter(map(json.dumps, rows))
    # in the order of the data
    order = list(map(json.dumps, rows))
    assert [line for line in order if line in set(held_out)] == held_out

    def shingles(line: str) -> set[tuple[str, ...]]:
        row = json.loads(line)
        return runs(f"{row['instruction']}\n{row['response']}")

    train_sets = list(map(shingles, train))
    for mine in map(shingles, held_out):
        assert all(len(mine & one) / len(mine | one) < 0.7 for one in train_sets)
    assert result.groups < 580
    for topic in "ab":
        total = sum(row["topic"] == topic for row in rows)
        n_train, n_eval = result.strata[topic]
        assert n_train + n_eval == total
        # groups may hold rows of several strata; none is larger than `largest`
        assert abs(n_eval - 0.1 * total) <= result.largest
    assert json.loads((tmp_path / "parts" / "split.json").read_text())["eval"] == result.eval


def test_the_seed_decides(tmp_path: Path) -> None:
    made(tmp_path / "rows.jsonl")
    parts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = split_data(tmp_path / "rows.jsonl", tmp_path / name, share=0.05, seed=seed)
        parts.append(lines(result.files["eval"]))
        assert result.eval == 30
    assert parts[0] == parts[1] != parts[2]


def test_equal_responses_stay_together_unless_short() -> None:
    long = "this is the very same answer"
    group = merge_groups(np.array([0, 1, 2, 1, 4, 5]), [long, "b", long, "c", "42", "42"])
    assert group.tolist() == [0, 1, 0, 1, 4, 5]
    chinese = merge_groups(np.arange(4), ["返回列表", "返回一个列表", "返回列表", "返回一个列表"])
    assert chinese.tolist() == [0, 1, 2, 1]


def test_shares_are_exact_where_groups_are_single_rows() -> None:
    strata = ["a"] * 100 + ["b"] * 40 + ["c"] * 5
    chosen = choose_eval(np.arange(145), strata, 0.2, seed=0)
    assert Counter(name for name, is_eval in zip(strata, chosen, strict=True) if is_eval) == {
        "a": 20,
        "b": 8,
        "c": 1,
    }


def test_the_command_and_bad_requests(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"text": f"row {i} " * 9, "n": i % 2}) + "\n" for i in range(40))
    )
    command = ["data", "split", str(data), "-o", str(tmp_path / "out"), "--eval", "0.25"]
    run = CliRunner().invoke(app, [*command, "--by", "n", "--json"])
    assert run.exit_code == 0
    told = json.loads(run.stdout)
    assert (told["train"], told["eval"], told["strata"]) == (30, 10, {"0": [15, 5], "1": [15, 5]})
    with pytest.raises(UsageError, match=r"line 1 has no field 'topic'"):
        split_data(data, tmp_path, share=0.1, by="topic")
    for share in (0, 1, -0.1):
        with pytest.raises(UsageError, match="`share`"):
            split_data(data, tmp_path, share=share)
    data.write_text('{"text": "a b c d e f"}\n' * 9)
    with pytest.raises(UsageError, match="9 rows in 1 groups"):
        split_data(data, tmp_path / "none", share=0.5)
    assert not (tmp_path / "none").exists()
