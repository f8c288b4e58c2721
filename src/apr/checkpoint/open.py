"""Opening a checkpoint: which format a path holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apr.checkpoint.gguf_header import split_parts
from apr.checkpoint.tensors import Checkpoint, read_json_object
from apr.common.errors import UsageError

REFUSED_SUFFIXES = {".bin": "a pickle", ".pt": "a pickle", ".pth": "a pickle", ".ckpt": "a pickle"}


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

    path = split_parts(path)[0]  # which alone has the metadata
    source = GgufSource(path)
    return Checkpoint("gguf", path, None, source.metadata, source)


def _gguf_models(folder: Path) -> list[Path]:
    """GGUF files of a folder, a split model counted once (by its first part)."""
    models = {split_parts(file)[0] for file in folder.glob("*.gguf") if file.is_file()}
    return sorted(models)


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    return read_json_object(path)


def _refused(path: Path) -> UsageError:
    kind = REFUSED_SUFFIXES[path.suffix]
    return UsageError(
        f"{path} is refused: it is {kind}, which can run any code when it is read",
        "use the safetensors version of this model, or convert it where you trust the file",
    )
