import gguf
import numpy as np
import pytest
import torch

from apr.checkpoint import open_checkpoint
from apr.common.errors import AprError, UsageError

from .gguf_bytes import file_bytes, tensor_entry
from .gguf_bytes import write_with_package as write

Q = gguf.GGMLQuantizationType
PLAIN = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


def packed(kind: Q, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    size = gguf.constants.GGML_QUANT_SIZES[kind][1]
    return np.random.default_rng(seed).integers(0, 64, (rows, blocks * size), dtype=np.uint8)


@pytest.fixture
def mixed(tmp_path):
    tensors = {
        "f32": (PLAIN, None),
        "f16": (PLAIN.astype(np.float16), None),
        "bf16": (gguf.quants.quantize(PLAIN, Q.BF16), Q.BF16),
        "ids": (np.array([3, -4], dtype=np.int32), None),
        "q4_k": (packed(Q.Q4_K, 3, 2), Q.Q4_K),
        "iq2": (packed(Q.IQ2_XXS, 1, 1), Q.IQ2_XXS),
    }
    return write(tmp_path / "mixed.gguf", tensors)


def test_plain_tensors_keep_their_type_and_values(mixed):
    source = open_checkpoint(mixed).tensors
    assert torch.equal(source.get("f32"), torch.from_numpy(PLAIN))
    assert torch.equal(source.get("f16"), torch.from_numpy(PLAIN).half())
    assert torch.equal(source.get("bf16"), torch.from_numpy(PLAIN).bfloat16())
    assert source.get("ids", torch.bfloat16).tolist() == [3, -4]
    assert source.get("ids").dtype == torch.int32
    assert source.get("f32", torch.float16).dtype == torch.float16


def test_quantized_tensors(mixed):
    source = open_checkpoint(mixed).tensors
    expected = torch.from_numpy(gguf.quants.dequantize(packed(Q.Q4_K, 3, 2), Q.Q4_K))
    assert source.get("q4_k").shape == (3, 512)
    assert torch.equal(source.get("q4_k"), expected)
    assert torch.equal(source.get("q4_k", torch.bfloat16), expected.bfloat16())
    blocks, kind = source.get_packed("q4_k")
    assert kind == "Q4_K"
    assert np.array_equal(blocks.numpy(), packed(Q.Q4_K, 3, 2))


def test_info(mixed):
    source = open_checkpoint(mixed).tensors
    assert source.names() == ["f32", "f16", "bf16", "ids", "q4_k", "iq2"]
    info = source.info("q4_k")
    assert (info.shape, info.dtype, info.nbytes) == ((3, 512), "Q4_K", 3 * 2 * 144)


def test_a_type_without_decoder_can_be_listed_and_had_packed(mixed):
    source = open_checkpoint(mixed).tensors
    assert source.info("iq2").dtype == "IQ2_XXS"
    assert source.get_packed("iq2")[1] == "IQ2_XXS"
    with pytest.raises(AprError, match=r"'iq2'.*IQ2_XXS"):
        source.get("iq2")


def test_writing_to_a_tensor_does_not_reach_the_file(mixed):
    before = mixed.read_bytes()
    tensor = open_checkpoint(mixed).tensors.get("f32")
    tensor.fill_(99)
    assert mixed.read_bytes() == before
    assert torch.equal(open_checkpoint(mixed).tensors.get("f32"), torch.from_numpy(PLAIN))


def test_tensors_outlive_their_checkpoint(mixed):
    tensor = open_checkpoint(mixed).tensors.get("f32")
    mixed.unlink()
    assert torch.equal(tensor, torch.from_numpy(PLAIN))


def test_scalar_and_empty_tensors(tmp_path):
    entries = [tensor_entry(b"scalar", (), 0, 0), tensor_entry(b"empty", (0, 3), 0, 32)]
    path = tmp_path / "odd.gguf"
    path.write_bytes(file_bytes([], entries, np.float32(2.5).tobytes().ljust(32, b"\0")))
    source = open_checkpoint(path).tensors
    assert source.get("scalar").item() == 2.5
    assert source.get_packed("scalar")[0].shape == (4,)
    assert source.get("empty").shape == (3, 0)


def test_unknown_name(mixed):
    for ask in ("info", "get", "get_packed"):
        with pytest.raises(AprError, match="no tensor 'nope'"):
            getattr(open_checkpoint(mixed).tensors, ask)("nope")


@pytest.fixture
def split(tmp_path):
    for part in range(3):
        values = np.full((2, 4), part, dtype=np.float32)
        name = f"tiny-{part + 1:05d}-of-00003.gguf"
        write(tmp_path / name, {f"t{part}": (values, None)}, no=part, count=3, tensors_count=3)
    return tmp_path


@pytest.mark.parametrize("part", [1, 2, 3])
def test_any_part_opens_the_whole_split_model(split, part):
    checkpoint = open_checkpoint(split / f"tiny-{part:05d}-of-00003.gguf")
    assert checkpoint.metadata["split.no"] == 0
    assert checkpoint.tensors.names() == ["t0", "t1", "t2"]
    assert checkpoint.tensors.get("t2")[0, 0] == 2


def test_a_folder_with_one_split_model(split):
    assert open_checkpoint(split).tensors.names() == ["t0", "t1", "t2"]


def test_missing_part_is_named(split):
    (split / "tiny-00002-of-00003.gguf").unlink()
    with pytest.raises(UsageError, match=r"tiny-00002-of-00003\.gguf is missing"):
        open_checkpoint(split / "tiny-00001-of-00003.gguf")


def test_swapped_parts_are_noticed(split):
    a, b = split / "tiny-00002-of-00003.gguf", split / "tiny-00003-of-00003.gguf"
    spare = split / "spare"
    a.rename(spare), b.rename(a), spare.rename(b)
    with pytest.raises(AprError, match="says it is part 3 of 3"):
        open_checkpoint(split)


def test_a_renamed_part_is_no_whole_model(split):
    alone = split / "alone.gguf"
    (split / "tiny-00001-of-00003.gguf").rename(alone)
    with pytest.raises(AprError, match="part 1 of 3, its name says 1 of 1"):
        open_checkpoint(alone)


def test_wrong_number_of_tensors(tmp_path):
    for part in range(2):
        name = f"x-{part + 1:05d}-of-00002.gguf"
        write(tmp_path / name, {f"t{part}": (PLAIN, None)}, no=part, count=2, tensors_count=5)
    with pytest.raises(AprError, match="should hold 5 tensors, they hold 2"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_parts(tmp_path):
    for part in range(2):
        name = f"x-{part + 1:05d}-of-00002.gguf"
        write(tmp_path / name, {"same": (PLAIN, None)}, no=part, count=2, tensors_count=2)
    with pytest.raises(AprError, match="'same' is in another part"):
        open_checkpoint(tmp_path)


def assert_all_tensors_equal_package(path, reader):
    source = open_checkpoint(path).tensors
    assert source.names() == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = source.get(tensor.name).numpy()
        assert ours.shape == theirs.shape
        assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)), tensor.name


def test_smollm2_equals_the_gguf_package(smollm2_path, smollm2_reader):
    assert_all_tensors_equal_package(smollm2_path, smollm2_reader)


@pytest.mark.slow
def test_gemma_equals_the_gguf_package(gemma_path):
    assert_all_tensors_equal_package(gemma_path, gguf.GGUFReader(gemma_path))
