"""GGUF v2/v3 headers: metadata, tensor types and tensor table, parsed straight from a memory map.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all little-endian:

    4 bytes  "GGUF"
    u32      version                (2 and 3 have the same layout)
    u64      number of tensors
    u64      number of metadata pairs
    pairs    key string, u32 value type, value
    tensors  name string, u32 dimensions, u64 per dimension (fastest first), u32 type, u64 offset
    padding  to `general.alignment` (32 unless said otherwise)
    data     each tensor at its offset from here

A string is a u64 length and that many bytes of UTF-8. An array is a u32 element type, a u64 count
and its elements. Nothing here imports torch or numpy.

Source of the types: `enum ggml_type` and `ggml_type_traits` of ggml
(https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

import array
import mmap
import struct
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from apr.common.errors import AprError, UsageError
from apr.hub.model_files import split_names

DEFAULT_ALIGNMENT = 32
SUPPORTED_VERSIONS = (2, 3)
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_ARRAY_DEPTH = 4  # no real file nests arrays at all; a damaged one must not recurse for ever

_BOOL, _STRING, _ARRAY = 7, 8, 9
# value type → struct code; the array module uses the same letters for the same widths
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    10: "Q",
    11: "q",
    12: "d",
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class GgmlType:
    """A storage type: `block_bytes` bytes hold `block_elements` consecutive elements of a row."""

    number: int
    name: str
    block_elements: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_elements


# number, name, elements a block, bytes a block
_TABLE = (
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
)

GGML_TYPES: dict[str, GgmlType] = {row[1]: GgmlType(*row) for row in _TABLE}
TYPE_BY_NUMBER: dict[int, GgmlType] = {kind.number: kind for kind in GGML_TYPES.values()}

# Numbers ggml once used and gave up: files with them need a conversion by the program of their day.
REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies. shape: torch order (slowest dimension first)."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    start: int  # from the beginning of the file, bytes
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the tensor data. metadata: key → int, float, bool, str or list of these.

    Strings that are not valid UTF-8 keep their bytes as surrogate escapes.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_start: int


class _Damaged(Exception):
    """The bytes contradict the format; turned into an AprError that names the file."""


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Read metadata and tensor table of one GGUF file (of a split model: of that part alone).

    Raises UsageError when the file is missing, not a GGUF, of another version or byte order, and
    AprError when it is truncated or damaged or holds a tensor type unknown by number.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file", "check the path")
    with open(path, "rb") as file:
        _check_magic(path, file.read(64))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_gguf_header(path, data)


def parse_gguf_header(path: Path, data: mmap.mmap) -> GgufHeader:
    """As `read_gguf_header`, from an open memory map of the whole file."""
    _check_magic(path, data[:64])
    try:
        version, tensor_count, pair_count = struct.unpack_from("<IQQ", data, 4)
        metadata, position = _parse_metadata(data, 24, pair_count)
        alignment = _alignment(metadata)
        entries, position = _parse_tensor_table(data, position, tensor_count)
        data_start = (position + alignment - 1) // alignment * alignment
        tensors = {
            name: _locate(name, shape, number, data_start + offset, len(data))
            for name, shape, number, offset in entries
        }
    except (struct.error, OverflowError):  # a length beyond the file, or beyond any file
        raise _truncated(path, f"its header runs past the end at byte {len(data)}") from None
    except _Damaged as damage:
        if damage.args[0] == "truncated":
            raise _truncated(path, damage.args[1]) from None
        raise AprError(f"{path}: damaged GGUF: {damage}", "download it again") from None
    return GgufHeader(path, version, metadata, tensors, data_start)


def _truncated(path: Path, detail: str) -> AprError:
    return AprError(f"{path} is truncated: {detail}", "download it again")


def _check_magic(path: Path, start: bytes) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path} is a Git LFS pointer, not the file itself", "run `git lfs pull`")
    if start[:4] != b"GGUF":
        what = f"it begins with {start[:4]!r}" if start else "it is empty"
        raise UsageError(f"{path} is not a GGUF file: {what}", "expected the bytes 'GGUF'")
    if len(start) < 24:
        raise _truncated(path, f"{len(start)} bytes do not hold a header")
    version = _U32.unpack_from(start, 4)[0]
    if version not in SUPPORTED_VERSIONS:
        if version & 0xFFFF == 0:
            reason, hint = "is a big-endian GGUF file", "apr reads little-endian files"
        else:
            reason, hint = f"is GGUF version {version}", "apr reads versions 2 and 3"
        raise UsageError(f"{path} {reason}", f"{hint}; convert it again with a current converter")


def _text(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogateescape")


def _read_string(data: mmap.mmap, position: int) -> tuple[str, int]:
    (length,) = _U64.unpack_from(data, position)
    end = position + 8 + length
    if end > len(data):
        raise _Damaged("truncated", f"a string at byte {position} claims {length} bytes")
    return _text(data[position + 8 : end]), end


def _read_strings(data: mmap.mmap, position: int, count: int) -> tuple[list[str], int]:
    """The hot loop: vocabularies have up to some 260,000 entries."""
    unpack = _U64.unpack_from
    strings: list[str] = []
    append = strings.append
    for _ in range(count):
        start = position + 8
        position = start + unpack(data, position)[0]
        append(str(data[start:position], "utf-8", "surrogateescape"))
    if position > len(data):
        raise _Damaged("truncated", f"an array of {count} strings runs past its end")
    return strings, position


def _read_numbers(
    data: mmap.mmap, position: int, count: int, code: str
) -> tuple[list[int] | list[float], int]:
    end = position + count * struct.calcsize("<" + code)
    if end > len(data):
        raise _Damaged("truncated", f"an array of {count} numbers at byte {position}")
    # "i" and friends have their struct widths on every platform CPython supports; "l" would not.
    numbers: array.array = array.array(code, data[position:end])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist(), end


def _read_value(data: mmap.mmap, position: int, kind: int, depth: int = 0) -> tuple[Any, int]:
    if kind == _STRING:
        return _read_string(data, position)
    if kind == _BOOL:
        return struct.unpack_from("<B", data, position)[0] != 0, position + 1
    if kind in _SCALARS:
        code = "<" + _SCALARS[kind]
        return struct.unpack_from(code, data, position)[0], position + struct.calcsize(code)
    if kind != _ARRAY:
        raise _Damaged(f"unknown metadata value type {kind} at byte {position}")
    element, count = struct.unpack_from("<IQ", data, position)
    return _read_array(data, position + 12, element, count, depth)


def _read_array(
    data: mmap.mmap, position: int, element: int, count: int, depth: int
) -> tuple[list[Any], int]:
    if element == _STRING:
        return _read_strings(data, position, count)
    if element in _SCALARS:
        return _read_numbers(data, position, count, _SCALARS[element])
    if element == _BOOL:
        flags, position = _read_numbers(data, position, count, "B")
        return [flag != 0 for flag in flags], position
    if depth >= MAX_ARRAY_DEPTH:
        raise _Damaged(f"arrays nested deeper than {MAX_ARRAY_DEPTH} at byte {position}")
    values = []
    for _ in range(count):
        value, position = _read_value(data, position, element, depth + 1)
        values.append(value)
    return values, position


def _parse_metadata(data: mmap.mmap, position: int, count: int) -> tuple[dict[str, Any], int]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key, position = _read_string(data, position)
        (kind,) = _U32.unpack_from(data, position)
        value, position = _read_value(data, position + 4, kind)
        if key in metadata:
            raise _Damaged(f"metadata key {key!r} appears twice")
        metadata[key] = value
    return metadata, position


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Damaged(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _parse_tensor_table(
    data: mmap.mmap, position: int, count: int
) -> tuple[list[tuple[str, tuple[int, ...], int, int]], int]:
    """Return [(name, shape in torch order, type number, offset in the data)] and the end."""
    entries = []
    seen: set[str] = set()
    for _ in range(count):
        name, position = _read_string(data, position)
        (dimensions,) = _U32.unpack_from(data, position)
        if dimensions > MAX_DIMENSIONS:
            raise _Damaged(f"tensor {name!r} has {dimensions} dimensions")
        layout = f"<{dimensions}QIQ"
        *shape, number, offset = struct.unpack_from(layout, data, position + 4)
        position += 4 + struct.calcsize(layout)
        if name in seen:
            raise _Damaged(f"tensor {name!r} appears twice")
        seen.add(name)
        entries.append((name, tuple(reversed(shape)), number, offset))
    return entries, position


def _locate(
    name: str, shape: tuple[int, ...], number: int, start: int, file_bytes: int
) -> GgufTensor:
    kind = TYPE_BY_NUMBER.get(number)
    if kind is None:
        known = REMOVED_TYPES.get(number)
        which = f"{known}, which ggml removed" if known else "unknown to apr"
        raise _Damaged(f"tensor {name!r} has type number {number} ({which})")
    row = shape[-1] if shape else 1
    if row % kind.block_elements:
        raise _Damaged(
            f"tensor {name!r} has rows of {row}, not a multiple of {kind.name}'s "
            f"{kind.block_elements}"
        )
    nbytes = prod(shape) // kind.block_elements * kind.block_bytes
    if start + nbytes > file_bytes:
        raise _Damaged(
            "truncated",
            f"tensor {name!r} ends at byte {start + nbytes}, the file at byte {file_bytes}",
        )
    return GgufTensor(name, shape, kind, start, nbytes)


def split_parts(path: Path) -> list[Path]:
    """All parts of the split model that `path` is any part of; [path] for an ordinary file.

    Raises UsageError naming the first part that is missing.
    """
    parts = [path.with_name(name) for name in split_names(path.name)]
    for part in parts:
        if len(parts) > 1 and not part.is_file():
            raise UsageError(
                f"{path.name} is one of {len(parts)} parts and {part} is missing",
                "put all parts in one folder",
            )
    return parts
