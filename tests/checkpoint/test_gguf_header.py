"""Oracle: gguf.GGUFReader on files the gguf package wrote; damaged files byte by byte."""

import struct

import gguf
import numpy as np
import pytest

from apr.checkpoint.gguf_header import read_gguf_header
from apr.common.errors import AprError, UsageError

from .gguf_bytes import ARRAY, F32, STRING, U32, file_bytes, pair, string, tensor_entry
from .gguf_bytes import write_with_package as write


@pytest.fixture
def tiny(tmp_path):
    tensors = {
        "a.weight": (np.arange(12, dtype=np.float32).reshape(3, 4), None),
        "b.weight": (np.zeros((2, 20), np.uint8), gguf.GGMLQuantizationType.Q4_1),
    }
    return write(tmp_path / "tiny.gguf", tensors)


def assert_equals_package(path, reader):
    header = read_gguf_header(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if key[:5] != "GGUF."}
    assert header.metadata == theirs
    ours = {t.name: (t.start, t.nbytes, t.shape, t.kind.name) for t in header.tensors.values()}
    assert ours == {
        t.name: (
            t.data_offset,
            t.n_bytes,
            tuple(reversed(t.shape.tolist())),
            t.tensor_type.name,
        )
        for t in reader.tensors
    }


def test_equals_the_gguf_package(tiny):
    assert_equals_package(tiny, gguf.GGUFReader(tiny))


def test_smollm2_header_equals_the_gguf_package(smollm2_path, smollm2_reader):
    assert_equals_package(smollm2_path, smollm2_reader)


@pytest.mark.slow
def test_gemma_header_equals_the_gguf_package(gemma_path):
    assert_equals_package(gemma_path, gguf.GGUFReader(gemma_path))


def test_version_2_and_nested_arrays(tmp_path):
    inner = struct.pack("<IQ", U32, 2) + struct.pack("<II", 7, 8)
    nested = struct.pack("<IQ", ARRAY, 2) + inner + struct.pack("<IQ", STRING, 1) + string(b"x")
    path = tmp_path / "v2.gguf"
    path.write_bytes(file_bytes([pair(b"nested", ARRAY, nested)], [], version=2))
    header = read_gguf_header(path)
    assert header.version == 2
    assert header.metadata == {"nested": [[7, 8], ["x"]]}


def test_own_alignment(tmp_path):
    pairs = [pair(b"general.alignment", U32, struct.pack("<I", 64))]
    raw = file_bytes(pairs, [tensor_entry(b"t", (2,), 0, 0)])
    raw = raw.ljust((len(raw) + 63) // 64 * 64, b"\0")
    path = tmp_path / "aligned.gguf"
    path.write_bytes(raw + struct.pack("<ff", 1, 2))
    tensor = read_gguf_header(path).tensors["t"]
    assert tensor.start == len(raw)


def test_bytes_that_are_no_utf8_survive(tmp_path):
    tokens = struct.pack("<IQ", STRING, 2) + string(b"\xff\xfe") + string("é".encode())
    path = tmp_path / "raw.gguf"
    path.write_bytes(file_bytes([pair(b"tokens", ARRAY, tokens)], []))
    first, second = read_gguf_header(path).metadata["tokens"]
    assert first.encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert second == "é"


def test_every_truncation_is_told_as_such(tiny, tmp_path):
    raw = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    # Every length inside the header, then the missing last byte of tensor data.
    end_of_data = max(t.start + t.nbytes for t in read_gguf_header(tiny).tensors.values())
    header_end = read_gguf_header(tiny).data_start
    for length in [*range(4, header_end, 3), end_of_data - 1]:
        cut.write_bytes(raw[:length])
        with pytest.raises(AprError, match=r"cut\.gguf is truncated") as caught:
            read_gguf_header(cut)
        assert "\n" not in str(caught.value)


GOOD = pair(b"k", U32, struct.pack("<I", 1))
HUGE = struct.pack("<Q", 2**62)
NESTED = struct.pack("<IQ", ARRAY, 1) * 60
DAMAGED = {
    "no magic": (b"PK\x03\x04" + bytes(60), "is not a GGUF file"),
    "empty": (b"", "is not a GGUF file: it is empty"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
    "version 9": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "GGUF version 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "huge string": (file_bytes([pair(b"k", STRING, HUGE)], []), "truncated"),
    "huge array": (
        file_bytes([pair(b"k", ARRAY, struct.pack("<I", F32) + HUGE)], []),
        "truncated",
    ),
    "huge array of strings": (
        file_bytes([pair(b"k", ARRAY, struct.pack("<I", STRING) + HUGE)], []),
        "truncated",
    ),
    "endless nesting": (file_bytes([pair(b"k", ARRAY, NESTED)], []), "nested deeper"),
    "unknown value type": (file_bytes([pair(b"k", 77, b"")], []), "value type 77"),
    "key twice": (file_bytes([GOOD, GOOD], []), "'k' appears twice"),
    "alignment": (
        file_bytes([pair(b"general.alignment", U32, struct.pack("<I", 33))], []),
        "alignment is 33",
    ),
    "tensor twice": (file_bytes([], [tensor_entry(b"t", (0,), 0, 0)] * 2), "'t' appears twice"),
    "dimensions": (file_bytes([], [tensor_entry(b"t", (1,) * 9, 0, 0)]), "has 9 dimensions"),
    "unknown type": (file_bytes([], [tensor_entry(b"t", (32,), 99, 0)]), "type number 99"),
    "removed type": (file_bytes([], [tensor_entry(b"t", (32,), 4, 0)]), "Q4_2, which ggml"),
    "ragged rows": (
        file_bytes([], [tensor_entry(b"t", (33,), 2, 0)], bytes(99)),
        "rows of 33, not a multiple of Q4_0's 32",
    ),
    "offset beyond the file": (
        file_bytes([], [tensor_entry(b"t", (4,), 0, 2**60)], bytes(99)),
        "truncated: tensor 't'",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_told_in_one_line(case, tmp_path):
    raw, message = DAMAGED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(AprError) as caught:
        read_gguf_header(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_damage_never_escapes_as_another_error(tiny, tmp_path):
    raw = bytearray(tiny.read_bytes())
    end = read_gguf_header(tiny).data_start
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.gguf"
    refused = 0
    for _ in range(400):
        noisy = raw.copy()
        for position in rng.integers(4, end, 3):
            noisy[position] = rng.integers(0, 256)
        path.write_bytes(noisy)
        try:
            read_gguf_header(path)
        except AprError:
            refused += 1
    assert refused > 100  # most such damage contradicts the format


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_gguf_header(tmp_path / "none.gguf")
