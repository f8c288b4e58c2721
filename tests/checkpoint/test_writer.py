"""Oracles: safetensors and transformers load what was written; huggingface_hub's way to split."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apr.checkpoint import CheckpointWriter, open_checkpoint, writer
from apr.checkpoint.dtypes import STORED_NAMES
from apr.common.errors import AprError, UsageError

DTYPES = [*STORED_NAMES]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, tensors, **options):
    with CheckpointWriter(folder, **options) as out:
        for name, tensor in tensors.items():
            out.add(name, tensor)


def load(folder):
    """All tensors by the safetensors library alone, through the index where there is one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    tensors = {}
    for name, shard in json.loads(index.read_text())["weight_map"].items():
        with safe_open(folder / shard, framework="pt") as file:
            tensors[name] = file.get_tensor(name)
    return tensors


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].flatten().view(torch.uint8).tolist() == (
            tensor.contiguous().flatten().view(torch.uint8).tolist()
        )


def test_every_dtype_shape_and_stride(tmp_path):
    tensors = {str(d): torch.randint(0, 2, (3, 5)).to(d) for d in DTYPES}
    tensors |= {
        "transposed": torch.randn(4, 6).T,
        "sliced": torch.randn(4, 6)[1:, ::2],
        "expanded": torch.randn(1, 3).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        'naïve"name\\\n': torch.ones(1),
    }
    write(tmp_path / "m", tensors)
    assert names_in(tmp_path / "m") == ["model.safetensors"]
    assert_same(load(tmp_path / "m"), tensors)


def test_bytes_equal_those_of_the_safetensors_library(tmp_path):
    # one type, in the order of names: the library sorts by these
    tensors = {f"layer.{i}": torch.randn(3, i + 1) for i in range(9)}
    write(tmp_path / "m", tensors)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "m/model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=25), limit=st.integers(4, 120))
def test_splits_as_huggingface_hub_does(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("split") / "m"
    tensors = {f"t{i}": torch.full((n,), i, dtype=torch.float32) for i, n in enumerate(sizes)}
    write(folder, tensors, max_shard_bytes=limit)
    theirs = split_torch_state_dict_into_shards(tensors, max_shard_size=limit)
    expected = set(theirs.filename_to_tensors)
    if theirs.is_sharded:
        expected.add("model.safetensors.index.json")
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == theirs.tensor_to_filename
        assert index["metadata"] == theirs.metadata
    assert set(names_in(folder)) == expected
    assert_same(load(folder), tensors)
    shutil.rmtree(folder)


@pytest.mark.parametrize("copy_below", [0, 2**40], ids=["padded", "copied"])
@pytest.mark.parametrize("room", [64, 1 << 18], ids=["header too long", "header fits"])
def test_all_ways_to_place_the_header(tmp_path, monkeypatch, copy_below, room):
    monkeypatch.setattr(writer, "COPY_BELOW", copy_below)
    monkeypatch.setattr(writer, "HEADER_ROOM", room)
    tensors = {f"t{i}": torch.randn(1000, i + 1) for i in range(20)}
    write(tmp_path / "m", tensors)
    assert_same(load(tmp_path / "m"), tensors)
    with safe_open(tmp_path / "m/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    size = (tmp_path / "m/model.safetensors").stat().st_size
    padded = copy_below == 0 and room > 64
    assert (size == room + sum(t.nbytes for t in tensors.values())) == padded


def test_moves_data_larger_than_a_piece_both_ways(tmp_path, monkeypatch):
    tensors = {f"{'long' * 9}{i}": torch.randn(1_500_000) for i in range(2)}
    for room in (8, 1 << 18):
        monkeypatch.setattr(writer, "HEADER_ROOM", room)
        write(tmp_path / str(room), tensors)
        assert_same(load(tmp_path / str(room)), tensors)


@pytest.mark.parametrize("shard", [1e4, 5e9])
def test_transformers_loads_it_with_the_same_logits(tmp_path, shard):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with CheckpointWriter(tmp_path / "m", max_shard_bytes=shard) as out:
        for name, tensor in model.state_dict().items():
            out.add(name, tensor)
        out.add_file("config.json", config.to_json_string().encode())
    assert (tmp_path / "m/model.safetensors").exists() == (shard > 1e6)
    again, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "m", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.arange(10)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert_same(
        {n: open_checkpoint(tmp_path / "m").tensors.get(n) for n in model.state_dict()},
        dict(model.state_dict()),
    )


def test_other_files(tmp_path):
    source = tmp_path / "tokenizer.json"
    source.write_text("{}")
    with CheckpointWriter(tmp_path / "m") as out:
        out.add("w", torch.ones(1))
        out.add_file("config.json", b"{1}")
        out.add_file("tokenizer.json", source)
        out.add_file("extra/notes.txt", b"hi")
    assert names_in(tmp_path / "m") == [
        "config.json",
        "extra",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "m/extra/notes.txt").read_bytes() == b"hi"


def test_refused_files(tmp_path):
    with CheckpointWriter(tmp_path / "m") as out:
        out.add("w", torch.ones(1))
        out.add_file("config.json", b"{}")
        for name in ("/etc/x", "../x", "a/../../x", "", "model.safetensors", "config.json"):
            with pytest.raises(AprError):
                out.add_file(name, b"")
        with pytest.raises(AprError, match="nowhere"):
            out.add_file("notes", tmp_path / "nowhere")
    assert names_in(tmp_path) == ["m"]


def test_refused_tensors(tmp_path):
    with CheckpointWriter(tmp_path / "m") as out:
        out.add("w", torch.ones(1))
        with pytest.raises(AprError, match="'w' is written twice"):
            out.add("w", torch.ones(1))
        with pytest.raises(AprError, match=r"'c' of type torch\.complex64"):
            out.add("c", torch.ones(1, dtype=torch.complex64))
    assert list(load(tmp_path / "m")) == ["w"]


def test_needs_a_with_block_and_a_tensor(tmp_path):
    with pytest.raises(AprError, match="not open"):
        CheckpointWriter(tmp_path / "m").add("w", torch.ones(1))
    with pytest.raises(AprError, match="no tensor"), CheckpointWriter(tmp_path / "m"):
        pass
    assert names_in(tmp_path) == []


def test_existing_targets(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    write(folder, {"w": torch.zeros(1)})  # empty: fine
    with pytest.raises(UsageError, match="not empty"):
        write(folder, {"w": torch.ones(1)})
    assert load(folder)["w"].item() == 0
    (folder / "stale.txt").write_text("x")
    write(folder, {"w": torch.ones(1)}, overwrite=True)
    assert load(folder)["w"].item() == 1
    assert names_in(folder) == ["model.safetensors"]
    assert names_in(tmp_path) == ["m"]


def test_overwrite_spares_what_is_no_model(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match="other things than a model"):
        write(home, {"w": torch.ones(1)}, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        write(home / "diary.txt", {"w": torch.ones(1)}, overwrite=True)
    assert (home / "diary.txt").read_text() == "dear"


def test_overwriting_the_model_being_read(tmp_path):
    write(tmp_path / "m", {"a": torch.arange(4.0), "b": torch.ones(2)})
    source = open_checkpoint(tmp_path / "m").tensors
    with CheckpointWriter(tmp_path / "m", overwrite=True) as out:
        for name in source.names():
            out.add(name, source.get(name) * 2)
    assert load(tmp_path / "m")["a"].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error), CheckpointWriter(tmp_path / "new/m", max_shard_bytes=8) as out:
        out.add("a", torch.ones(2))
        out.add("b", torch.ones(2))
        out.add_file("config.json", b"{}")
        raise error
    assert names_in(tmp_path / "new") == []


def test_an_exception_keeps_the_old_model(tmp_path):
    write(tmp_path / "m", {"w": torch.zeros(1)})
    with pytest.raises(ValueError), CheckpointWriter(tmp_path / "m", overwrite=True) as out:
        out.add("w", torch.ones(1))
        raise ValueError
    assert load(tmp_path / "m")["w"].item() == 0
    assert names_in(tmp_path) == ["m"]


def run(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


HALF_WAY = """
    import sys, time, torch
    from apr.checkpoint import CheckpointWriter
    with CheckpointWriter(sys.argv[1], max_shard_bytes=1000) as out:
        out.add_file("config.json", b"{}")
        for i in range(5):
            out.add(f"t{i}", torch.ones(200))
        print("half way", flush=True)
        time.sleep(60)
"""


def test_kill_leaves_nothing_that_looks_like_a_model(tmp_path):
    process = run(HALF_WAY, tmp_path / "m")
    try:
        assert process.stdout.readline() == "half way\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "m").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".m.partial-")
    assert not list(tmp_path.rglob("*.safetensors*"))
    with pytest.raises(Exception, match="header"):
        load_file(max(left.glob("tensors-*")))
    with pytest.raises(UsageError, match="holds no model"):
        open_checkpoint(left)
    # The next writer to the same place succeeds and clears it away.
    write(tmp_path / "m", {"w": torch.ones(1)})
    assert names_in(tmp_path) == ["m"]


def test_a_living_writer_is_left_alone(tmp_path):
    with CheckpointWriter(tmp_path / "m") as first:
        first.add("w", torch.zeros(1))
        write(tmp_path / "m", {"w": torch.ones(1)})
        (tmp_path / "m").rename(tmp_path / "second")
    assert load(tmp_path / "m")["w"].item() == 0
    assert load(tmp_path / "second")["w"].item() == 1


FILL = """
    import sys, torch
    from apr.checkpoint import CheckpointWriter
    from apr.common.errors import AprError
    try:
        with CheckpointWriter(sys.argv[1]) as out:
            for i in range(40):
                out.add(f"t{i}", torch.ones(100_000))
    except AprError as error:
        print(error)
"""


def test_a_write_the_system_refuses_is_one_line(tmp_path):
    limit = 4_000_000
    process = run(
        FILL,
        tmp_path / "m",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    output, errors = process.communicate(timeout=60)
    assert output == f"cannot write {tmp_path / 'm'}: File too large\n", errors
    assert names_in(tmp_path) == []


def test_disk_full_is_one_line(tmp_path):
    """On a file system of 4 MB, where the system lets an ordinary user mount one."""
    script = (
        f"mount -t tmpfs -o size=4m none {tmp_path} || exit 77; "
        f'{sys.executable} -c "$CODE" {tmp_path}/m; ls -A {tmp_path}'
    )
    if shutil.which("unshare") is None:
        pytest.skip("no `unshare` program")
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=os.environ | {"CODE": textwrap.dedent(FILL)},
        capture_output=True,
        text=True,
    )
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip("this system does not let users mount a tmpfs")
    expected = "No space left on device (free some space or choose another disk)"
    assert result.stdout == f"cannot write {tmp_path}/m: {expected}\n", result.stderr


STREAM = """
    import resource, sys, torch
    from apr.checkpoint import CheckpointWriter
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with CheckpointWriter(sys.argv[1], max_shard_bytes=100e6) as out:
        out.add("first", torch.ones(1_000_000))
        before = peak()
        for i in range(100):
            out.add(f"t{i}", torch.full((1_000_000,), float(i)))
    print(peak() - before)
"""


def test_memory_stays_at_about_one_tensor(tmp_path):
    output, errors = run(STREAM, tmp_path / "m").communicate(timeout=60)
    # 400 MB in shards of 100 MB, tensors of 4 MB, pieces of 8 MiB to move the last, small shard.
    assert int(output) < 40, errors
    assert load(tmp_path / "m")["t99"][0].item() == 99
