"""Where the public benchmark files are published, with the checksums that prove a copy.

A file counts as the published one by its SHA-256, whoever hands it over: as published, or packed
or unpacked with gzip on the way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from apr.common.errors import UsageError

EVALPLUS = "https://github.com/evalplus"
GOOGLE = "https://github.com/google-research/google-research/raw/master/mbpp"
OPENAI = "https://github.com/openai"
CRUXEVAL = "https://github.com/facebookresearch/cruxeval"
HUB = "https://huggingface.co/datasets"
LIVECODEBENCH_COMMIT = "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"


@dataclass(frozen=True)
class DataFile:
    """One file. name: in the cache. sha256: of the file as published. unpacked_sha256: of its
    text, if it is published packed: with gzip, or as the file of this name in a zip archive.
    """

    name: str
    url: str
    sha256: str
    unpacked_sha256: str = ""

    @property
    def published_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def is_parquet(self) -> bool:
        """Published as parquet, kept as JSON lines."""
        return self.published_name.endswith(".parquet")


@dataclass(frozen=True)
class DataSet:
    """A benchmark's data. paper: who made it. evalplus_hash: MD5 of the text, as EvalPlus writes
    it into its results.
    """

    name: str
    version: str
    files: tuple[DataFile, ...]
    rows: int
    licence: str
    paper: str
    evalplus_hash: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


def find_dataset(label: str) -> DataSet:
    """`name` (its first version in the table) or `name@version`. Raises UsageError."""
    name, _, version = label.partition("@")
    for dataset in DATASETS:
        if dataset.name == name and (not version or dataset.version == version):
            return dataset
    known = [dataset.label for dataset in DATASETS]
    close = difflib.get_close_matches(label.lower(), known, 1)
    meant = f"{close[0]}? " if close else ""
    raise UsageError(f"data set {label} is unknown", f"{meant}one of {', '.join(known)}")


def _evalplus(
    name: str, version: str, mini: bool, rows: int, sha256: str, unpacked: str, md5: str
) -> DataSet:
    stem = {"humaneval+": "HumanEvalPlus", "mbpp+": "MbppPlus"}[name]
    published = f"{stem}-Mini" if mini else stem
    url = f"{EVALPLUS}/{stem.lower()}_release/releases/download/{version}/{published}.jsonl.gz"
    return DataSet(
        name=name,
        version=f"{version}-mini" if mini else version,
        files=(DataFile(f"{published}-{version}.jsonl.gz", url, sha256, unpacked),),
        rows=rows,
        licence="Apache-2.0" if name == "humaneval+" else "Apache-2.0, CC BY 4.0",
        paper="Liu et al. 2023",
        evalplus_hash=md5,
    )


def _infilling(kind: str, stem: str, rows: int, sha256: str, unpacked: str) -> DataSet:
    name = f"HumanEval-{stem}.jsonl.gz"
    url = f"{OPENAI}/human-eval-infilling/raw/master/data/{name}"
    return DataSet(
        name=f"infilling-{kind}",
        version="",
        files=(DataFile(name, url, sha256, unpacked),),
        rows=rows,
        licence="MIT",
        paper="Bavarian et al. 2022",
    )


def _bigcodebench(name: str, stem: str, rows: int, sha256: str) -> DataSet:
    return DataSet(
        name=name,
        version="v0.1.4",
        files=(
            DataFile(
                f"{stem}-v0.1.4.jsonl.gz",
                f"{HUB}/bigcode/{name}/resolve/main/data/v0.1.4-00000-of-00001.parquet",
                sha256,
            ),
        ),
        rows=rows,
        licence="Apache-2.0",
        paper="Zhuo et al. 2024",
    )


# Part of the file name, rows and SHA-256 of what each release added to the one before.
_LIVECODEBENCH = (
    ("", 400, "2bd02b38beb48e8c46b5b9987095d999ff38cd8efc255ea5d58974317c48f63f"),
    ("2", 111, "095df7c5daf15f882c51a9deb84085cff1e073495a5dbcf95015a564d485f3a3"),
    ("3", 101, "28ed26cc83363ce3f1fe2d5fad9f8393077beb1907b167a31bd3b32f80801b79"),
    ("4", 101, "d711138ddaebfcf5f8ec6a4283ee677298c0f5c5d374a235af92aaf0584510da"),
    ("5", 167, "7f77571c2a6df0c2a72a3277650309f67e01e0008e18117e624633df53f81214"),
    ("6", 175, "bb4c364f71921c4495a6ad15abe1a927350b720009f4933e2e71f8af0f6fd1f5"),
)


def _livecodebench() -> Iterator[DataSet]:
    """The releases, newest first. They share files."""
    url = f"{HUB}/livecodebench/code_generation_lite/resolve/{LIVECODEBENCH_COMMIT}"
    files = [
        DataFile(f"livecodebench-test{part}.jsonl", f"{url}/test{part}.jsonl", sha256)
        for part, _, sha256 in _LIVECODEBENCH
    ]
    for release in range(len(files), 0, -1):
        yield DataSet(
            name="livecodebench",
            version=f"release_v{release}",
            files=tuple(files[:release]),
            rows=sum(rows for _, rows, _ in _LIVECODEBENCH[:release]),
            licence="cc (its card)",
            paper="Jain et al. 2024",
        )


DATASETS: tuple[DataSet, ...] = (
    DataSet(
        name="humaneval",
        version="",
        files=(
            DataFile(
                "HumanEval.jsonl.gz",
                f"{OPENAI}/human-eval/raw/master/data/HumanEval.jsonl.gz",
                "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
                "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
            ),
        ),
        rows=164,
        licence="MIT",
        paper="Chen et al. 2021",
    ),
    _evalplus(
        "humaneval+",
        "v0.1.10",
        mini=False,
        rows=164,
        sha256="272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101",
        unpacked="42526ec0e7d5f3ee0b06d6ced98f8c8bae3d76519151bfb3d36f79010645bd7f",
        md5="fe585eb4df8c88d844eeb463ea4d0302",
    ),
    _evalplus(
        "humaneval+",
        "v0.1.9",
        mini=False,
        rows=164,
        sha256="e62f4130146963d969da64553f407a66e52d095adbfed4ee6733b4d59e14a3ed",
        unpacked="50d50fda1ecf4c9168d762456ae29c1d8b8b922e68c66964f7891c98d93a04b7",
        md5="84f4b93a1270b492e4c54d5212da7a5b",
    ),
    _evalplus(
        "humaneval+",
        "v0.1.10",
        mini=True,
        rows=164,
        sha256="91486741f1627101021fbe50523df08eebb5b0bf5e804b633dcd5ca3c14dbd2f",
        unpacked="78fbba8865b20c5a979cda6e02fd72538e1762e65980af7d1a6e93c3e87e93af",
        md5="401e75ad986361dccc7afecb4121e295",
    ),
    DataSet(
        name="mbpp",
        version="",
        files=(
            DataFile(
                "mbpp.jsonl",
                f"{GOOGLE}/mbpp.jsonl",
                "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
            ),
        ),
        rows=974,
        licence="CC BY 4.0",
        paper="Austin et al. 2021",
    ),
    DataSet(
        name="mbpp-sanitized",
        version="",
        files=(
            DataFile(
                "sanitized-mbpp.json",
                f"{GOOGLE}/sanitized-mbpp.json",
                "ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9",
            ),
        ),
        rows=427,
        licence="CC BY 4.0",
        paper="Austin et al. 2021",
    ),
    _evalplus(
        "mbpp+",
        "v0.2.0",
        mini=False,
        rows=378,
        sha256="af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63",
        unpacked="b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad",
        md5="ee43ecabebf20deef4bb776a405ac5b1",
    ),
    _evalplus(
        "mbpp+",
        "v0.1.0",
        mini=False,
        rows=399,
        sha256="57d639e77667d88930052b2b07212011c25c0bab94dfc1f19d15e1f7f558bfa9",
        unpacked="a855b9de667baea8e2f8aa61f898767a7336872208a85222b35622545e819fe9",
        md5="ebe95df0d5220f00cedd6f4bddea35e4",
    ),
    _infilling(
        "single-line",
        "SingleLineInfilling",
        rows=1033,
        sha256="1277073e7ddce163ef68598c2bca777f688a53df99422f097e37362090f88e1f",
        unpacked="6fffc71ec2f1674372fcc177511f92312f1a27a9eacd8e43255c9f5ee9eca8c8",
    ),
    _infilling(
        "multi-line",
        "MultiLineInfilling",
        rows=5815,
        sha256="2f341612eee1d35da1357a4f365e0c0b3ba6e2b62eb491e88aaefa4855af0349",
        unpacked="5b49f312f0a781420a4ae54f5e73176009b9cfc52731e3a0b9be726b451032d1",
    ),
    _infilling(
        "random-span",
        "RandomSpanInfilling",
        rows=1640,
        sha256="b4f330d8a8ff97bf85d9def497dffcae4d741e506449386a877236e422e33e8d",
        unpacked="4f15be2d4a479b504072c64e79702df184010f13bdf75f8b67ce08e054c48e26",
    ),
    _infilling(
        "random-span-light",
        "RandomSpanInfillingLight",
        rows=164,
        sha256="1432250ecac0cb56e6f97f8faf0970419ef892a98fda7e1f5aa4c4b87209b760",
        unpacked="cbb2b36f90311a3a7d844b6361852bb33e3ab11ab3bca2b7e85bfb9bf78c5891",
    ),
    _bigcodebench(
        "bigcodebench",
        "BigCodeBench",
        rows=1140,
        sha256="d9a4965821c9507ebdfb551c288656b2d5fe553234f5183044333ca8a4018267",
    ),
    _bigcodebench(
        "bigcodebench-hard",
        "BigCodeBench-Hard",
        rows=148,
        sha256="73a4270b43feb81abefad7bb1b592937c768ea45c3263bedc1cabd30a9a6ce79",
    ),
    *_livecodebench(),
    DataSet(
        name="cruxeval-output",
        version="",
        files=(
            DataFile(
                "cruxeval.jsonl",
                f"{CRUXEVAL}/raw/190faf16d175b5847b0af05d937872b1fb395942/data/cruxeval.jsonl",
                "8368b81047dc5014e4caf5a2f97604eff7644e0ecd7415e3ceeb184bbc2e0c96",
            ),
        ),
        rows=800,
        licence="MIT",
        paper="Gu et al. 2024",
    ),
    DataSet(
        name="wikitext-2",
        version="",
        files=(
            DataFile(
                "wiki.test.raw.gz",
                f"{HUB}/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip",
                "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
                "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
            ),
        ),
        rows=4358,
        licence="CC BY-SA 3.0, GFDL",
        paper="Merity et al. 2016",
    ),
)
