"""hf://datasets/ against a server in this process that speaks the hub's interface."""

from __future__ import annotations

import pytest

from apr.common.errors import AprError, UsageError
from apr.hub.datasets import choose_rows, dataset_files

from .server import FakeHub

ROWS = b'{"text": "a"}\n'
FILES = {
    "README.md": b"# words",
    "dataset_infos.json": b"{}",
    "data/train-00001-of-00002.jsonl": ROWS * 300,
    "data/train-00000-of-00002.jsonl": ROWS,
    "data/test-00000-of-00001.jsonl": ROWS * 2,
}
REF = "hf://datasets/org/rows"


def test_the_training_split_in_order(hub: FakeHub) -> None:
    hub.add_repo("org/rows", FILES, kind="datasets")
    found = dataset_files(REF, progress=False)
    assert [path.read_bytes() for path in found] == [ROWS, ROWS * 300]
    hub.server.requests.clear()
    assert dataset_files(REF, offline=True, progress=False) == found
    assert hub.server.requests == []
    found[1].unlink()
    with pytest.raises(AprError, match="1 of 2 parts are in the cache"):
        dataset_files(REF, offline=True, progress=False)


def test_a_file_a_folder_a_pattern_a_revision(hub: FakeHub) -> None:
    hub.add_repo("org/rows", FILES, kind="datasets")
    hub.add_repo("org/rows", {"rows.jsonl": ROWS}, revision="v2", commit="d" * 40, kind="datasets")
    (test,) = dataset_files(f"{REF}/data/test-00000-of-00001.jsonl", progress=False)
    assert test.read_bytes() == ROWS * 2
    assert len(dataset_files(f"{REF}/data", progress=False)) == 3
    assert dataset_files(f"{REF}/data/test-*.jsonl", progress=False) == [test]
    (other,) = dataset_files(f"{REF}@v2", progress=False)
    assert other.name == "rows.jsonl"


def test_which_files_are_rows() -> None:
    assert choose_rows(REF, "", ["b.jsonl", "a.jsonl.gz", "x.txt"]) == ["a.jsonl.gz", "b.jsonl"]
    assert choose_rows(REF, "", ["constraint.parquet", "train.parquet"]) == ["train.parquet"]
    with pytest.raises(UsageError, match=r"it has a\.jsonl"):
        choose_rows(REF, "b.jsonl", ["a.jsonl"])
    with pytest.raises(UsageError, match=r"it has no file of \.jsonl"):
        choose_rows(REF, "", ["a.txt"])
    with pytest.raises(UsageError, match=r"is there as jsonl and parquet"):
        choose_rows(REF, "", ["a.jsonl", "a.parquet"])


def test_what_cannot_be_had(hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="not a data set"):
        dataset_files("hf://datasets/rows", progress=False)
    with pytest.raises(AprError, match=r"hf://datasets/org/none"):
        dataset_files("hf://datasets/org/none", progress=False)
    with pytest.raises(AprError, match=r"hf://datasets/org/rows is not in the cache"):
        dataset_files(REF, offline=True, progress=False)
