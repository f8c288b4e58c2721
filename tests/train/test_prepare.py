"""What is refused, or set right, before a weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.train.prepare import Prepared, prepare
from apr.train.supervised import SUPERVISED
from apr.train.train_settings import FinetuneRequest, LoraSettings, TrainSettings

from .tiny import questions, write_model, write_rows

LONG = {"instruction": "word " * 40, "response": "ok"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    write_model(folder / "tiny", max_position_embeddings=160)
    write_rows(folder / "rows.jsonl", questions(6))
    write_rows(folder / "long.jsonl", [LONG, LONG])
    write_rows(folder / "strange.jsonl", [{"a": "b"}] * 3)
    (folder / "pairs.csv").write_text("ask,say,id\nAdd.,2,7\n")
    return folder


def prepared(folder: Path, data: str = "rows.jsonl", **changes: Any) -> Prepared[Any]:
    request = {"model": str(folder / "tiny"), "data": (str(folder / data),), **changes}
    if "eval_data" in request:
        request["eval_data"] = (str(folder / request["eval_data"]),)
    return prepare(FinetuneRequest(**request), SUPERVISED)


def test_the_usual_length_fits_the_model(folder: Path) -> None:
    """Nobody asked for 512 tokens of a model that has 160; one who does is told."""
    assert prepared(folder).request.max_length == 160
    with pytest.raises(UsageError, match=r"`max_length` 500 is beyond .*at most 160"):
        prepared(folder, max_length=500)


def test_columns_of_the_data(folder: Path) -> None:
    found = prepared(folder, "pairs.csv", columns=("prompt=ask", "response=say"))
    assert found.report.documents == 1 and found.report.unused == {"id": 1}
    assert "columns that are not used: id" in found.report.lines()
    with pytest.raises(UsageError, match=r"its columns: ask, say, id .*`columns` prompt=COLUMN"):
        prepared(folder, "pairs.csv")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": "long.jsonl", "max_length": 60},
            r"no row is left to learn from; 2 of 2 rows: nothing to learn within 60 tokens: "
            r".*long.jsonl line 1, 2 \(a larger `max_length`\)",
        ),
        (
            {"data": "strange.jsonl", "skip_bad_rows": True},
            r"left to learn from; 3 of 3 rows: it has no known shape.*line 1, 2, 3$",
        ),
        (
            {"eval_data": "long.jsonl", "max_length": 60},
            r"long.jsonl: no row is left to evaluate on; 2 of 2 rows: nothing to learn",
        ),
        (
            {"eval_data": "strange.jsonl", "skip_bad_rows": True},
            "no row is left to evaluate on; 3 of 3 rows: it has no known shape",
        ),
        ({"eval_split": 0.05}, "`eval_split` 0.05 of 6 documents is none"),
        ({"eval_split": 0.95}, "`eval_split` 0.95 of 6 documents is all of them"),
        ({"train": TrainSettings(warmup=5000)}, "`warmup` 5000 is more than the 1 steps there are"),
        ({"lora": LoraSettings(rank=99999)}, r"`rank` 99999 is more than .*at most 32"),
    ],
)
def test_refusals(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepared(folder, **changes)


def test_rows_held_out_are_accounted_for(folder: Path) -> None:
    path = write_rows(folder / "mixed.jsonl", [LONG, *questions(2)])
    found = prepared(folder, eval_data=path.name, max_length=100)
    assert found.eval_report is not None and len(found.held_out) == 2
    assert found.eval_report.dropped == {"nothing to learn within 100 tokens": 1}
