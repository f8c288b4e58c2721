"""Which of a set of file names are models."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

_SPLIT = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<total>\d{5})\.gguf")


def split_siblings(name: str, names: Collection[str]) -> list[str]:
    """All files of the split GGUF model `name` belongs to, or just `name` if it is whole."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return [name]
    pattern = re.compile(rf"{re.escape(match['stem'])}-\d{{5}}-of-{match['total']}\.gguf")
    return sorted(filter(pattern.fullmatch, names))


def gguf_models(names: Collection[str]) -> list[str]:
    """The GGUF models among some paths, a split one named by its first file."""
    files = [name for name in names if name.endswith(".gguf")]
    return sorted({split_siblings(name, files)[0] for name in files})


def models_among(names: Collection[str]) -> list[str]:
    """The models among relative paths: GGUF models, and folders of config.json + safetensors."""
    weights = {PurePosixPath(n).parent for n in names if n.endswith(".safetensors")}
    configs = {PurePosixPath(n).parent for n in names if PurePosixPath(n).name == "config.json"}
    return gguf_models(names) + sorted(str(folder) for folder in weights & configs)
