"""Which files of a Hugging Face repository make up the model a reference means."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from pathlib import PurePosixPath

from apr.common.errors import AprError, UsageError
from apr.hub.model_files import gguf_models, split_siblings
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
