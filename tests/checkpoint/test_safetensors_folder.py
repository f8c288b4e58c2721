"""Oracle: files the safetensors library wrote."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from apr.checkpoint import open_checkpoint
from apr.common.errors import AprError, UsageError

TENSORS = {
    "model.a": torch.randn(3, 5),
    "model.b": torch.randn(4).bfloat16(),
    "model.c": torch.randn(2, 2, 2).half(),
    "ids": torch.arange(6, dtype=torch.int64),
    "scalar": torch.tensor(1.5),
    "flags": torch.tensor([True, False, True]),
    "eight": torch.randn(4).to(torch.float8_e4m3fn),
}
DTYPES = ("F32", "BF16", "F16", "I64", "F32", "BOOL", "F8_E4M3")


def write_shards(folder, mapping):
    """mapping: shard file → names. Returns the path of the index."""
    for shard, names in mapping.items():
        save_file({n: TENSORS[n] for n in names}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: s for s, names in mapping.items() for n in names}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def assert_holds_everything(source):
    assert set(source.names()) == set(TENSORS)
    for (name, tensor), dtype in zip(TENSORS.items(), DTYPES, strict=True):
        read = source.get(name)
        assert read.dtype == tensor.dtype
        assert read.tolist() == tensor.tolist()
        info = source.info(name)
        assert (info.name, info.shape, info.dtype) == (name, tuple(tensor.shape), dtype)
        assert info.nbytes == tensor.numel() * tensor.element_size()


def test_single_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.path) == ("safetensors", tmp_path)
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.metadata is None
    assert_holds_everything(checkpoint.tensors)


def test_shards(tmp_path):
    names = list(TENSORS)
    parts = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    write_shards(tmp_path, {parts[0]: names[:3], parts[1]: names[3:]})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config is None
    assert_holds_everything(checkpoint.tensors)


def test_the_file_itself(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "weights.safetensors")
    assert checkpoint.config == {}
    assert_holds_everything(checkpoint.tensors)
    assert_holds_everything(open_checkpoint(tmp_path).tensors)


def test_conversion_leaves_integers_alone(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    source = open_checkpoint(tmp_path).tensors
    assert torch.equal(source.get("model.a", torch.bfloat16), TENSORS["model.a"].bfloat16())
    assert source.get("ids", torch.bfloat16).dtype == torch.int64


def test_reading_is_zero_copy_and_private(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    source = open_checkpoint(tmp_path).tensors
    first = source.get("w")
    assert first.data_ptr() == source.get("w").data_ptr()
    first.fill_(1)
    assert path.read_bytes() == before


def test_get_packed_and_unknown_names(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    source = open_checkpoint(tmp_path).tensors
    with pytest.raises(AprError, match=r"'model\.a' is F32, not packed"):
        source.get_packed("model.a")
    for ask in (source.get, source.info, source.get_packed):
        with pytest.raises(AprError, match="no tensor 'nope'"):
            ask("nope")


def refusal(path, kind=AprError):
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_index_names_a_missing_shard(tmp_path):
    write_shards(tmp_path, {"a.safetensors": ["ids"], "b.safetensors": ["scalar"]})
    (tmp_path / "b.safetensors").unlink()
    assert "names the shard b.safetensors, which is missing" in refusal(tmp_path)


def test_index_and_shards_of_a_tied_output_layer(tmp_path):
    """Some writers list its name and store nothing; others store what they do not list."""
    index = write_shards(tmp_path, {"a.safetensors": ["ids"], "b.safetensors": ["scalar"]})
    listed = {"ids": "a.safetensors", "lm_head.weight": "a.safetensors"}
    index.write_text(json.dumps({"weight_map": listed}))
    assert open_checkpoint(tmp_path).tensors.names() == ["ids"]
    write_shards(tmp_path, {"a.safetensors": ["ids", "scalar"]})
    index.write_text(json.dumps({"weight_map": {"ids": "a.safetensors"}}))
    assert set(open_checkpoint(tmp_path).tensors.names()) == {"ids", "scalar"}


def test_index_names_a_missing_tensor(tmp_path):
    index = write_shards(tmp_path, {"a.safetensors": ["ids"], "b.safetensors": ["scalar"]})
    index.write_text(json.dumps({"weight_map": {"ids": "a.safetensors", "x": "b.safetensors"}}))
    assert "places tensor 'x' in b.safetensors, which does not hold it" in refusal(tmp_path)
    # in a shard, but not in the one the index says
    index.write_text(
        json.dumps({"weight_map": {"ids": "b.safetensors", "scalar": "a.safetensors"}})
    )
    assert "which does not hold it" in refusal(tmp_path)


def test_index_must_not_lead_outside(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"ids": TENSORS["ids"]}, tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"ids": "../secret.safetensors"}}))
    assert "outside its folder" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(tmp_path)


def test_shards_without_index(tmp_path):
    write_shards(tmp_path, {"model-00001-of-00002.safetensors": ["ids"]}).unlink()
    assert "but no model.safetensors.index.json" in refusal(tmp_path, UsageError)


def test_an_adapter_is_no_model(tmp_path):
    save_file({"ids": TENSORS["ids"]}, tmp_path / "adapter_model.safetensors")
    assert "holds an adapter, not a model" in refusal(tmp_path, UsageError)


def test_every_truncation_is_told_as_such(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    raw = path.read_bytes()
    for length in [*range(0, len(raw), 37), len(raw) - 1]:
        path.write_bytes(raw[:length])
        assert f"{path} is truncated or not a safetensors file" in refusal(tmp_path)


@pytest.mark.parametrize("raw", [struct.pack("<Q", 8) + b"{not it}", b"\x80\x04" + bytes(90)])
def test_other_bytes(tmp_path, raw):
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert "not a safetensors file" in refusal(tmp_path)


def test_git_lfs_pointer(tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "model.safetensors").write_text(text)
    assert "git lfs pull" in refusal(tmp_path, UsageError)


def test_plain_reading_gives_the_bytes_of_the_map(tmp_path):
    index = write_shards(
        tmp_path,
        {
            "model-00001-of-00002.safetensors": ["model.a", "ids", "flags"],
            "model-00002-of-00002.safetensors": ["model.b", "model.c", "scalar", "eight"],
        },
    )
    source = open_checkpoint(index.parent).tensors
    for name, tensor in TENSORS.items():
        raw = tensor.reshape(-1).view(torch.uint8)
        for first in (0, len(raw) // 2):
            read = torch.empty(len(raw) - first, dtype=torch.uint8)
            source.read_into(name, first, read)
            assert torch.equal(read, raw[first:]), name


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"long": torch.zeros(100_000)}, path)
    (tmp_path / "config.json").write_text("{}")
    source = open_checkpoint(tmp_path).tensors
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(AprError, match=r"model\.safetensors ended early"):
        source.read_into("long", 0, torch.empty(400_000, dtype=torch.uint8))
