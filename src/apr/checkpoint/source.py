"""What a checkpoint looks like to the rest of `apr`, whatever file format it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from apr.common.errors import AprError, UsageError

if TYPE_CHECKING:
    import torch

REFUSED_SUFFIXES = {".bin": "a pickle", ".pt": "a pickle", ".pth": "a pickle", ".ckpt": "a pickle"}


@dataclass(frozen=True)
class TensorInfo:
    """shape: torch order (out, in). dtype: as the file names it ("BF16", "F32", "Q4_K", ...).

    nbytes: bytes on disk.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class TensorSource(Protocol):
    """Named tensors on disk, read when asked for. Unknown names raise AprError."""

    def names(self) -> list[str]:
        """All names, in file order."""
        ...

    def info(self, name: str) -> TensorInfo: ...

    def get(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor on the CPU, a view of the file where its storage allows.

        dtype None keeps F32, F16, BF16 and integers as stored and dequantizes blocks to fp32;
        otherwise floating-point tensors are converted to dtype and integers pass unchanged.
        Writing into the result never changes the file, but may be seen by later calls.
        """
        ...

    def get_packed(self, name: str) -> tuple[torch.Tensor, str]:
        """(uint8 tensor (..., bytes per row), ggml type name). AprError outside GGUF."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. config: config.json of a Hugging Face folder. metadata: GGUF pairs."""

    format: Literal["safetensors", "gguf"]
    path: Path
    config: dict[str, Any] | None
    metadata: dict[str, Any] | None
    tensors: TensorSource


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, a .safetensors file or a .gguf file (any part of a split one).

    A folder may hold safetensors (preferred) or a single GGUF model. Headers are read and checked
    now, tensor data when asked for. Raises UsageError when this is no model `apr` reads, AprError
    when a file is truncated or damaged or the index contradicts the shards.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder", "check the path")
    if path.suffix == ".safetensors":
        from apr.checkpoint.safetensors_folder import SafetensorsSource

        config = _read_config(path.parent / "config.json")
        return Checkpoint("safetensors", path, config, None, SafetensorsSource.from_file(path))
    if path.suffix in REFUSED_SUFFIXES:
        raise _refused(path)
    return _open_gguf(path)


def _open_folder(folder: Path) -> Checkpoint:
    # Imported here: reading GGUF metadata must not wait for torch.
    from apr.checkpoint.safetensors_folder import SafetensorsSource, find_weights

    config = _read_config(folder / "config.json")
    weights = find_weights(folder)
    if weights is not None:
        return Checkpoint("safetensors", folder, config, None, SafetensorsSource.from_file(weights))
    models = _gguf_models(folder)
    if len(models) == 1:
        return _open_gguf(models[0])
    if models:
        listed = ", ".join(model.name for model in models)
        raise UsageError(f"{folder} holds {len(models)} GGUF models: {listed}", "name one of them")
    for file in sorted(folder.iterdir()):
        if file.suffix in REFUSED_SUFFIXES and file.stem.startswith(("pytorch_model", "model")):
            raise _refused(file)
    raise UsageError(
        f"{folder} holds no model",
        "expected model.safetensors, model.safetensors.index.json or a .gguf file",
    )


def _open_gguf(path: Path) -> Checkpoint:
    from apr.checkpoint.gguf_file import GgufSource

    source = GgufSource(path)
    return Checkpoint("gguf", path, None, source.metadata, source)


def _gguf_models(folder: Path) -> list[Path]:
    """GGUF files of a folder, a split model counted once (by its first part)."""
    from apr.checkpoint.gguf_header import split_parts

    models = {split_parts(file)[0] for file in folder.glob("*.gguf") if file.is_file()}
    return sorted(models)


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; AprError naming the file when it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AprError(f"{path} cannot be read as JSON: {error}", "download it again") from None
    if not isinstance(value, dict):
        raise AprError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def _refused(path: Path) -> UsageError:
    kind = REFUSED_SUFFIXES[path.suffix]
    return UsageError(
        f"{path} is refused: it is {kind}, which can run any code when it is read",
        "use the safetensors version of this model, or convert it where you trust the file",
    )
