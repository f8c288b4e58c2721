"""Benchmark files: the table of what is published, and pulling from a server or a local copy."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from apr.common.errors import AprError, UsageError
from apr.hub.data_files import cached_path, find_data, find_data_files, pull_data
from apr.hub.data_registry import DATASETS, DataFile, DataSet, find_dataset
from hub.server import LocalServer, running_server, sha256

from .shared import shared_data

TEXT = b'{"task_id": 1}\n' * 5000
PACKED = gzip.compress(TEXT, mtime=1)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("apr.hub.download.PAUSE", 0.0)
    with running_server() as running:
        yield running


def made_up(server: LocalServer, *names: str) -> DataSet:
    """A data set of packed files on the local server."""
    files = []
    for name in names:
        server.add(f"/v1/{name}", PACKED)
        url = f"{server.url}/v1/{name}"
        files.append(DataFile(f"mine-{name}", url, sha256(PACKED), sha256(TEXT)))
    return DataSet("mine", "v1", tuple(files), 5000, "MIT", "made up")


def test_names_and_versions() -> None:
    labels = [dataset.label for dataset in DATASETS]
    assert len(set(labels)) == len(labels)
    assert find_dataset("humaneval+").version == "v0.1.10"
    assert find_dataset("humaneval+@v0.1.9").evalplus_hash.startswith("84f4b93a")
    assert find_dataset("livecodebench").rows == 1055
    assert find_dataset("livecodebench@release_v5").rows == 880
    # release sizes as the LiveCodeBench README gives them
    sizes = [find_dataset(f"livecodebench@release_v{i}").rows for i in range(1, 7)]
    assert sizes == [400, 511, 612, 713, 880, 1055]
    with pytest.raises(UsageError, match=r"one of humaneval, .*livecodebench@release_v1"):
        find_dataset("humanevil")
    with pytest.raises(UsageError, match="unknown"):
        find_dataset("mbpp@v9")


def test_a_cached_name_belongs_to_one_content() -> None:
    found: dict[str, str] = {}
    for file in (file for dataset in DATASETS for file in dataset.files):
        assert found.setdefault(file.name, file.sha256) == file.sha256
        assert len(file.sha256) == 64 and file.url.startswith("https://")


# Of the rest, BigCodeBench 0.1.4 and LiveCodeBench whole have no copy beside the repository, and
# of random-span there is one half. CRUXEval's rows lie there under other names (test_cruxeval).
WITH_COPIES = [
    dataset.label
    for dataset in DATASETS
    if dataset.name not in ("livecodebench", "bigcodebench", "bigcodebench-hard", "cruxeval-output")
    and dataset.label != "infilling-random-span"
]


@pytest.mark.parametrize("label", WITH_COPIES)
def test_real_copies_are_what_the_table_says(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, and the checksum that EvalPlus itself writes into its results."""
    folder = shared_data()
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    dataset = find_dataset(label)
    pulled = pull_data(dataset, folder, progress=False)
    path = find_data(label)
    assert pulled.paths == (path,)
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    rows = json.loads(text) if path.suffix == ".json" else text.splitlines()
    assert len(rows) == dataset.rows
    if dataset.evalplus_hash:
        assert hashlib.md5(text).hexdigest() == dataset.evalplus_hash


def test_half_of_random_span_is_not_random_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    half = shared_data() / "humaneval_infilling/HumanEval-RandomSpanInfilling-spans1-5.jsonl.gz"
    with pytest.raises(AprError, match=r"not HumanEval-RandomSpanInfilling.jsonl.gz as published"):
        pull_data(find_dataset("infilling-random-span"), half)
    with pytest.raises(UsageError, match="apr data pull infilling-random-span"):
        find_data("infilling-random-span")


def test_a_download_is_checked_and_kept(server: LocalServer) -> None:
    dataset = made_up(server, "a.jsonl.gz", "b.jsonl.gz")
    first = pull_data(dataset, progress=False)
    assert [path.read_bytes() for path in first.paths] == [PACKED, PACKED]
    assert not first.from_cache and first.paths == tuple(map(cached_path, dataset.files))
    server.requests.clear()
    assert pull_data(dataset, progress=False).from_cache
    assert server.requests == []


def test_a_broken_download_goes_on_where_it_stopped(server: LocalServer) -> None:
    dataset = made_up(server, "a.jsonl.gz")
    server.resources["/v1/a.jsonl.gz"].cut = [100]
    (path,) = pull_data(dataset, progress=False).paths
    assert path.read_bytes() == PACKED
    assert [r.headers.get("Range") for r in server.gets()] == [None, "bytes=100-"]


def test_a_changed_file_is_refused_and_the_old_one_stays(server: LocalServer) -> None:
    dataset = made_up(server, "a.jsonl.gz")
    changed = gzip.compress(TEXT[:-1], mtime=1)
    server.add("/v1/a.jsonl.gz", changed)
    with pytest.raises(AprError, match=f"has sha256 {sha256(changed)}, expected"):
        pull_data(dataset, progress=False)
    assert not cached_path(dataset.files[0]).exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(server: LocalServer) -> None:
    dataset = made_up(server, "a.jsonl.gz")
    (path,) = pull_data(dataset, progress=False).paths
    path.write_bytes(PACKED[:-5])
    again = pull_data(dataset, progress=False)
    assert not again.from_cache and path.read_bytes() == PACKED


def test_an_unreachable_server(server: LocalServer) -> None:
    dataset = made_up(server, "a.jsonl.gz")
    server.add("/v1/a.jsonl.gz", status=503)
    with pytest.raises(AprError, match=r"answered 503 .*--from FILE"):
        pull_data(dataset, progress=False)


def test_files_of_the_hub_come_from_the_hub_in_use(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    dataset = made_up(server, "a.jsonl.gz")
    (file,) = dataset.files
    published = replace(file, url="https://huggingface.co/v1/a.jsonl.gz")
    pull_data(replace(dataset, files=(published,)), progress=False)
    assert cached_path(published).read_bytes() == PACKED


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", PACKED),
        ("mine-a.jsonl.gz", gzip.compress(TEXT, compresslevel=1, mtime=0)),
        ("deep/a.jsonl", TEXT),
    ],
)
def test_local_copies_packed_otherwise_or_unpacked(
    server: LocalServer, tmp_path: Path, name: str, content: bytes
) -> None:
    dataset = made_up(server, "a.jsonl.gz")
    copy = tmp_path / "copies" / name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(content)
    for source in (tmp_path / "copies", copy):
        (path,) = pull_data(dataset, source, progress=False).paths
        assert gzip.decompress(path.read_bytes()) == TEXT
        path.unlink()
    assert server.requests == []


def test_a_packed_copy_of_a_plain_file(server: LocalServer, tmp_path: Path) -> None:
    file = DataFile("plain.json", f"{server.url}/plain.json", sha256(TEXT))
    copy = tmp_path / "plain.json.gz"
    copy.write_bytes(PACKED)
    dataset = DataSet("mine", "", (file,), 5000, "MIT", "made up")
    (path,) = pull_data(dataset, copy, progress=False).paths
    assert path.read_bytes() == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [(PACKED[:-9], "another checksum"), (b"", "another checksum"), (None, "no such file")],
)
def test_bad_copies(
    server: LocalServer, tmp_path: Path, content: bytes | None, message: str
) -> None:
    dataset = made_up(server, "a.jsonl.gz")
    copy = tmp_path / "a.jsonl.gz"
    if content is not None:
        copy.write_bytes(content)
    with pytest.raises(AprError, match=message):
        pull_data(dataset, copy, progress=False)
    assert not cached_path(dataset.files[0]).exists()


def test_a_folder_without_a_copy(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no a\.jsonl.gz"):
        pull_data(made_up(server, "a.jsonl.gz"), tmp_path / "empty", progress=False)


def test_finding_data(server: LocalServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="apr data pull mbpp fetches it"):
        find_data("mbpp")
    own = tmp_path / "own.jsonl"
    with pytest.raises(UsageError, match=r"`data` .*own.jsonl: no such file"):
        find_data("mbpp", own)
    own.write_text("{}")
    assert find_data("mbpp", own) == own
    assert find_data_files("livecodebench", own) == (own,)


def parquet_set(server: LocalServer, content: bytes) -> DataSet:
    server.add("/rows.parquet", content)
    file = DataFile("rows.jsonl.gz", f"{server.url}/rows.parquet", sha256(content))
    return DataSet("mine", "", (file,), 2, "MIT", "made up")


def test_parquet_becomes_json_lines(server: LocalServer, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"task_id": "a/0", "libs": ["é"]}, {"task_id": "a/1", "libs": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    dataset = parquet_set(server, (tmp_path / "rows.parquet").read_bytes())
    (path,) = pull_data(dataset, progress=False).paths
    assert [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()] == rows
    first = path.read_bytes()
    assert pull_data(dataset, progress=False).from_cache
    path.unlink()
    pull_data(dataset, tmp_path, progress=False)
    assert path.read_bytes() == first


def test_parquet_without_its_reader(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else real(name)
    )
    with pytest.raises(AprError, match="pip install pyarrow"):
        pull_data(parquet_set(server, b"PAR1"), progress=False)
    assert server.requests == []
