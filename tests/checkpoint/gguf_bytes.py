"""GGUF files for tests: whole ones by the gguf package, damaged ones byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

STRING, ARRAY, U32, F32 = 8, 9, 4, 6


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor_entry(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """dims in GGUF's order, fastest first."""
    layout = f"<I{len(dims)}QIQ"
    return string(name) + struct.pack(layout, len(dims), *dims, kind, offset)


def file_bytes(
    pairs: list[bytes], tensors: list[bytes], data: bytes = b"", version: int = 3
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(pairs) + b"".join(tensors)
    return head.ljust((len(head) + 31) // 32 * 32, b"\0") + data


def write_with_package(
    path: Path,
    tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType | None]],
    **split: int,
) -> Path:
    """tensors: name → (array, None) as it is or (packed bytes, type)."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_int64("test.negative", -(2**40))
    writer.add_float64("test.double", 1 / 3)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "Ġé", "", "日本"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, 2.25])
    writer.add_array("test.flags", [True, False])
    writer.add_array("test.ids", [1, -2, 3])
    for key, value in split.items():
        kind = writer.add_int32 if key == "tensors_count" else writer.add_uint16
        kind(f"split.{key.replace('_', '.')}", value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
