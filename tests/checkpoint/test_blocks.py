"""Oracles: gguf.quants.dequantize, bit by bit; blocks computed by hand from the layouts."""

import os
import struct
import threading

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.checkpoint.blocks import CHUNK_ELEMENTS, DECODERS, dequantize
from apr.checkpoint.gguf_header import GGML_TYPES
from apr.common.errors import AprError

# Byte offsets of the fp16 numbers of a block.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "IQ4_NL": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_XS": [0],
}
# zeros of both signs, smallest and largest subnormals, smallest normal, 1, largest, infinities, NaN
ODD_HALVES = [0, 0x8000, 1, 0x8001, 0x3FF, 0x83FF, 0x400, 0x3C00, 0x7BFF, 0xFBFF]
NOT_FINITE = [0x7C00, 0xFC00, 0x7E00, 0x7D01]


def reference(packed: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])


def assert_same_bits(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Equal bit patterns; NaN in the same places, whatever its payload."""
    mine = ours.numpy()
    assert mine.dtype == theirs.dtype == np.float32 and mine.shape == theirs.shape
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(mine), nan)
    np.testing.assert_array_equal(mine.view(np.uint32)[~nan], theirs.view(np.uint32)[~nan])


def random_blocks(name: str, count: int, seed: int, halves: list[int] | None = None) -> np.ndarray:
    """Any bits as integers; scales any bits too, or drawn from `halves`."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (count, GGML_TYPES[name].block_bytes), dtype=np.uint8)
    if halves is not None:
        for offset in HALVES[name]:
            chosen = rng.choice(np.array(halves, dtype=np.uint16), count)
            packed[:, offset : offset + 2] = chosen.view(np.uint8).reshape(-1, 2)
    return packed


@pytest.mark.parametrize("name", HALVES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    halves=st.one_of(
        st.none(),
        st.just(ODD_HALVES),
        st.just(ODD_HALVES + NOT_FINITE),
        st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=3),
    ),
)
def test_equals_the_gguf_package_bit_by_bit(name, seed, count, halves):
    packed = random_blocks(name, count, seed, halves)
    assert_same_bits(dequantize(torch.from_numpy(packed), name), reference(packed, name))


def test_every_decoder_has_an_oracle():
    assert set(HALVES) | {"Q8_K"} == set(DECODERS)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_equal_the_gguf_package(name):
    packed = np.random.default_rng(0).integers(0, 256, (3, 64), dtype=np.uint8)
    assert_same_bits(dequantize(torch.from_numpy(packed), name), reference(packed, name))


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K"])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_chunks_and_a_short_last_one(name, threads):
    count = 5 * CHUNK_ELEMENTS // (2 * GGML_TYPES[name].block_elements) + 3
    packed = random_blocks(name, count, 1, ODD_HALVES)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values = dequantize(torch.from_numpy(packed), name)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same_bits(values, reference(packed, name))


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_the_rounded_fp32(name, dtype):
    packed = torch.from_numpy(random_blocks(name, 50, 2, ODD_HALVES if name in HALVES else None))
    exact, narrow = dequantize(packed, name), dequantize(packed, name, dtype)
    assert narrow.dtype == dtype
    assert torch.equal(narrow.nan_to_num(7.0), exact.to(dtype).nan_to_num(7.0))


def test_rows_keep_their_shape():
    packed = torch.from_numpy(random_blocks("Q4_0", 24, 3)).view(2, 3, 4 * 18)
    values = dequantize(packed, "Q4_0")
    assert values.shape == (2, 3, 4 * 32)
    assert_same_bits(values, reference(packed.numpy(), "Q4_0"))


def test_strided_input():
    packed = torch.from_numpy(random_blocks("Q5_K", 20, 4))
    assert_same_bits(dequantize(packed[::2], "Q5_K"), reference(packed[::2].numpy(), "Q5_K"))


def test_results_are_aligned_like_torch_tensors():
    values = dequantize(torch.from_numpy(random_blocks("Q4_0", 9, 3)), "Q4_0", torch.bfloat16)
    assert values.data_ptr() % 64 == 0


def test_no_rows():
    assert dequantize(torch.empty((0, 144), dtype=torch.uint8), "Q4_K").shape == (0, 256)


def test_q4_0_by_hand():
    # d = 0.5; byte i = element i low, element i + 16 high
    block = struct.pack("<e", 0.5) + bytes([0x80 | i for i in range(16)])
    expected = [0.5 * (i - 8) for i in range(16)] + [0.0] * 16
    assert dequantize(torch.frombuffer(bytearray(block), dtype=torch.uint8), "Q4_0").tolist() == (
        expected
    )


def test_q5_1_by_hand():
    # the fifth bit of elements 0 and 31 set, all others clear; q low 3, high 1
    block = struct.pack("<eeI", 2.0, -1.0, 0x80000001) + bytes([0x13] * 16)
    values = dequantize(torch.frombuffer(bytearray(block), dtype=torch.uint8), "Q5_1").tolist()
    assert values == [2.0 * 19 - 1] + [5.0] * 15 + [1.0] * 15 + [2.0 * 17 - 1]


def test_q6_k_by_hand():
    # q - 32 with low bits 1 and high bits 2 is 1; the scale of sub-block i is i - 8
    scales = bytes((i - 8) & 0xFF for i in range(16))
    block = bytes([0x11] * 128) + bytes([0b10101010] * 64) + scales + struct.pack("<e", 0.25)
    values = dequantize(torch.frombuffer(bytearray(block), dtype=torch.uint8), "Q6_K").tolist()
    assert values == [0.25 * (i // 16 - 8) * 1 for i in range(256)]


@settings(max_examples=50, deadline=None)
@given(
    scales=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    seed=st.integers(0, 2**32 - 1),
)
def test_q8_k_is_scale_times_integer(scales, seed):
    """The gguf package has no decoder for Q8_K; its layout (fp32 d, 256 int8, sums) says it all."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-128, 128, (len(scales), 256), dtype=np.int8)
    d = np.array(scales, dtype=np.float32)
    sums = q.reshape(-1, 16, 16).sum(-1, dtype=np.int16)
    packed = np.concatenate(
        [d.view(np.uint8).reshape(-1, 4), q.view(np.uint8), sums.view(np.uint8)], axis=1
    )
    with np.errstate(over="ignore"):
        expected = d[:, None] * q.astype(np.float32)
    assert_same_bits(dequantize(torch.from_numpy(packed), "Q8_K"), expected)


def test_unsupported_type_is_named_with_the_supported_ones():
    with pytest.raises(AprError, match=r"IQ2_XXS.*Q4_K"):
        dequantize(torch.zeros(66, dtype=torch.uint8), "IQ2_XXS")


def test_partial_blocks_are_refused():
    with pytest.raises(AprError, match="Q4_0 blocks of 18 bytes"):
        dequantize(torch.zeros(20, dtype=torch.uint8), "Q4_0")


def test_inside_inference_mode():
    packed = torch.from_numpy(random_blocks("Q4_K", 3000, 5, ODD_HALVES))
    with torch.inference_mode():
        values = dequantize(packed, "Q4_K")
    assert_same_bits(values, reference(packed.numpy(), "Q4_K"))


def test_callers_at_the_same_time():
    packed = {
        name: torch.from_numpy(random_blocks(name, 4000, 6, ODD_HALVES))
        for name in ("Q2_K", "Q3_K", "Q4_K", "Q6_K")
    }
    results: dict[str, torch.Tensor] = {}

    def work(name: str) -> None:
        results[name] = dequantize(packed[name], name)

    threads = [threading.Thread(target=work, args=(name,)) for name in packed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, blocks in packed.items():
        assert_same_bits(results[name], reference(blocks.numpy(), name))


def test_new_threads_keep_torch_parallel():
    dequantize(torch.from_numpy(random_blocks("Q4_0", 10, 7)), "Q4_0")
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [torch.get_num_threads()]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads():
    packed = torch.from_numpy(random_blocks("Q4_0", 10, 8, ODD_HALVES))
    expected = dequantize(packed, "Q4_0")
    child = os.fork()
    if child == 0:
        same = torch.equal(dequantize(packed, "Q4_0"), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
