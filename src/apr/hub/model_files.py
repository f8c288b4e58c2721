"""Which of a set of file names are models."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

_SPLIT = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<parts>\d{5})\.gguf")


def split_names(name: str) -> list[str]:
    """The names of all files of the split GGUF model `name` belongs to; [name] if it is whole."""
    match = _SPLIT.fullmatch(name)
    count = int(match["parts"]) if match else 0
    if match is None or count == 0:
        return [name]
    return [f"{match['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]


def split_siblings(name: str, names: Collection[str]) -> list[str]:
    """Those of `names` that `name` makes a split GGUF model with; just `name` if it is whole."""
    whole = split_names(name)
    return [part for part in whole if part in names] if len(whole) > 1 else [name]


def gguf_models(names: Collection[str]) -> list[str]:
    """The GGUF models among some paths, a split one named by its first file."""
    files = [name for name in names if name.endswith(".gguf")]
    return sorted({split_siblings(name, files)[0] for name in files})


def models_among(names: Collection[str]) -> list[str]:
    """The models among relative paths: GGUF models, and folders of config.json + safetensors."""
    weights = {PurePosixPath(n).parent for n in names if n.endswith(".safetensors")}
    configs = {PurePosixPath(n).parent for n in names if PurePosixPath(n).name == "config.json"}
    return gguf_models(names) + sorted(str(folder) for folder in weights & configs)
