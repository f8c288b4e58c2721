"""Which of a set of file names are models, and which of a repository's files make one up."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from pathlib import PurePosixPath

from apr.common.errors import AprError, UsageError
from apr.hub.refs import HfRef

# What a model folder needs; weights in other formats, samples and images stay away.
_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "LICEN[CS]E*",
    "NOTICE*",
)
# Mistral repositories carry the same weights twice.
_LEFT_OUT = ("consolidated*.safetensors",)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
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


def choose_files(ref: HfRef, names: Collection[str]) -> set[str]:
    """The paths to fetch: safetensors with configuration and tokenizer, or one GGUF model.

    Raises UsageError when the named file is absent or several GGUF models are there to choose
    from, AprError when there is no model `apr` reads.
    """
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if ref.file is not None:
        if ref.file not in names:
            listed = ", ".join(gguf_models(gguf)) or "no .gguf file"
            raise UsageError(f"{ref}: no such file in the repository", f"it has {listed}")
        return set(split_siblings(ref.file, names))
    kept = {name for name in names if _is_model_file(name)}
    if any(name.endswith(".safetensors") for name in kept):
        return kept
    return set(_only_gguf(ref, names, gguf))


def _is_model_file(name: str) -> bool:
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _LEFT_OUT):
        return False
    # fnmatch lets * match a slash, but only the top folder holds the model.
    depth = len(PurePosixPath(name).parts) - 1
    return any(
        fnmatch.fnmatchcase(name, pattern) and pattern.count("/") == depth for pattern in _PATTERNS
    )


def _only_gguf(ref: HfRef, names: Collection[str], gguf: list[str]) -> list[str]:
    models = gguf_models(gguf)
    if len(models) == 1:
        return split_siblings(models[0], gguf)
    if models:
        raise UsageError(
            f"{ref} holds {len(models)} GGUF models and no safetensors",
            f"name one, as hf://{ref.repo}/{models[0]}; it has {', '.join(models)}",
        )
    if any(name.endswith(_PICKLES) for name in names):
        raise AprError(
            f"{ref} has its weights only as pickles, which can run any code when they are read",
            "use a repository with .safetensors or .gguf files",
        )
    raise AprError(f"{ref} holds no model", "expected .safetensors or .gguf files")
