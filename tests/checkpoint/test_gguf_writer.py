"""Oracles: the gguf package's reader, and its writer byte by byte."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import gguf
import numpy as np
import pytest
import torch

from apr.checkpoint import GgufWriter, TensorInfo, open_checkpoint, read_gguf_header
from apr.checkpoint.dtypes import GGUF_DTYPES
from apr.common.errors import AprError, UsageError

METADATA = {
    "general.name": "tiny é",
    "llama.block_count": 2,
    "llama.rope.freq_base": 1e5,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["<s>", "Ġé", "日本", "\n"],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.25, -3.0],
    "tokenizer.ggml.token_type": [3, 1, 1, 6],
    "test.flags": [True, False],
    "test.large": 2**40,
    "test.negative": -3,
}


def info(name, tensor, kind=None):
    kind = kind or next(k for k, dtype in GGUF_DTYPES.items() if dtype == tensor.dtype)
    return TensorInfo(name, tuple(tensor.shape), kind, tensor.nbytes)


def write(path, tensors, metadata=METADATA, **options):
    plan = [info(name, tensor) for name, tensor in tensors.items()]
    with GgufWriter(path, "llama", metadata, plan, **options) as out:
        for name, tensor in tensors.items():
            out.add(name, tensor)
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_package_reads_every_type_and_stride(tmp_path):
    tensors = {str(d): torch.randint(0, 100, (3, 5)).to(d) for d in GGUF_DTYPES.values()}
    tensors |= {
        "transposed": torch.randn(4, 6).T,
        "sliced": torch.randn(4, 6)[1:, ::2],
        "vector": torch.randn(7),
        "parameter": torch.nn.Parameter(torch.randn(2, 3, 4)),
    }
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf", tensors))
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for stored in reader.tensors:
        tensor = tensors[stored.name].detach()
        assert stored.shape.tolist() == list(reversed(tensor.shape))
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        assert bytes(stored.data.tobytes()) == raw.numpy().tobytes()


def test_the_package_reads_the_metadata_with_llama_cpps_types(tmp_path):
    fields = gguf.GGUFReader(write(tmp_path / "m.gguf", {"w": torch.ones(1)})).fields
    assert {key: fields[key].contents() for key in METADATA} == METADATA
    kinds = {key: [kind.name for kind in fields[key].types] for key in METADATA}
    assert kinds == {
        "general.name": ["STRING"],
        "llama.block_count": ["UINT32"],
        "llama.rope.freq_base": ["FLOAT32"],
        "tokenizer.ggml.add_bos_token": ["BOOL"],
        "tokenizer.ggml.tokens": ["ARRAY", "STRING"],
        "tokenizer.ggml.scores": ["ARRAY", "FLOAT32"],
        "tokenizer.ggml.token_type": ["ARRAY", "INT32"],
        "test.flags": ["ARRAY", "BOOL"],
        "test.large": ["UINT64"],
        "test.negative": ["INT32"],
    }
    assert fields["general.architecture"].contents() == "llama"


def test_same_bytes_as_the_package(tmp_path):
    tensors = {f"t{i}": torch.randn(3, i + 1) for i in range(9)}
    ours = write(tmp_path / "m.gguf", tensors, {"llama.block_count": 2, "general.name": "x"})
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_block_count(2)
    writer.add_name("x")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_packed_blocks(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 64), np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    packed = torch.from_numpy(gguf.quants.quantize(values, kind))
    plan = [TensorInfo("w", (4, 64), "Q8_0", packed.nbytes)]
    with GgufWriter(tmp_path / "m.gguf", "llama", {}, plan) as out:
        out.add("w", packed)
    (stored,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert stored.tensor_type == kind and stored.shape.tolist() == [64, 4]
    assert np.array_equal(stored.data, packed.numpy())


def test_bytes_that_are_no_text_come_back(tmp_path):
    tokens = ["\udcff\udc80x", "ok"]
    path = write(tmp_path / "m.gguf", {"w": torch.ones(1)}, {"t.tokens": tokens, "t.none": []})
    metadata = read_gguf_header(path).metadata
    assert metadata == {"general.architecture": "llama", "t.tokens": tokens}


def test_refused_tensors(tmp_path):
    plan = [info("a", torch.ones(2)), info("b", torch.ones(2))]
    cases = [
        (("b", torch.ones(2)), "comes where 'a' is due"),
        (("a", torch.ones(3)), "announced were 8 of torch.float32"),
        (("a", torch.ones(2, dtype=torch.int32)), "announced were 8 of torch.float32"),
    ]
    for arguments, message in cases:
        with (
            pytest.raises(AprError, match=message),
            GgufWriter(tmp_path / "m.gguf", "llama", {}, plan) as out,
        ):
            out.add(*arguments)
    with (
        pytest.raises(AprError, match="'b' was announced but not written"),
        GgufWriter(tmp_path / "m.gguf", "llama", {}, plan) as out,
    ):
        out.add("a", torch.ones(2))
    with pytest.raises(AprError, match="use it in a with block"):
        GgufWriter(tmp_path / "m.gguf", "llama", {}, plan).add("a", torch.ones(2))
    assert names_in(tmp_path) == []


def test_existing_targets(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"precious")
    tensors = {"w": torch.ones(1)}
    for name, message in [
        ("folder.gguf", "is a folder"),
        ("m.gguf", "`force` to replace it"),
        ("m.bin", "does not end in .gguf"),
    ]:
        with pytest.raises(UsageError, match=message):
            write(tmp_path / name, tensors)
    assert (tmp_path / "m.gguf").read_bytes() == b"precious"
    write(tmp_path / "m.gguf", tensors, overwrite=True)
    assert open_checkpoint(tmp_path / "m.gguf").tensors.get("w").tolist() == [1.0]
    write(tmp_path / "new" / "m.gguf", tensors)
    assert names_in(tmp_path / "new") == ["m.gguf"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    write(tmp_path / "m.gguf", {"w": torch.ones(1)})
    before = (tmp_path / "m.gguf").read_bytes()
    plan = [info("w", torch.zeros(1))]
    with (
        pytest.raises(error),
        GgufWriter(tmp_path / "m.gguf", "llama", {}, plan, overwrite=True) as out,
    ):
        out.add("w", torch.zeros(1))
        raise error
    assert names_in(tmp_path) == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == before


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
    from apr.checkpoint import GgufWriter, TensorInfo
    plan = [TensorInfo(f"t{i}", (200,), "F32", 800) for i in range(5)]
    with GgufWriter(sys.argv[1], "llama", {}, plan) as out:
        for info in plan:
            out.add(info.name, torch.ones(200))
        print("all but done", flush=True)
        time.sleep(60)
"""


def test_kill_leaves_nothing_that_looks_like_a_model(tmp_path):
    process = run(HALF_WAY, tmp_path / "m.gguf")
    try:
        assert process.stdout.readline() == "all but done\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".m.gguf.partial-")
    with pytest.raises(ValueError, match="magic"):
        gguf.GGUFReader(left)
    with pytest.raises(UsageError, match="not a GGUF file"):
        open_checkpoint(left)
    with pytest.raises(UsageError, match="holds no model"):
        open_checkpoint(tmp_path)
    # The next writer to the same place succeeds and clears it away.
    write(tmp_path / "m.gguf", {"w": torch.ones(1)})
    assert names_in(tmp_path) == ["m.gguf"]


def test_a_living_writer_is_left_alone(tmp_path):
    path = tmp_path / "m.gguf"
    with GgufWriter(path, "llama", {}, [info("w", torch.zeros(1))], overwrite=True) as first:
        first.add("w", torch.zeros(1))
        write(path, {"w": torch.ones(1)})
        path.rename(tmp_path / "second.gguf")
    assert open_checkpoint(path).tensors.get("w").item() == 0
    assert open_checkpoint(tmp_path / "second.gguf").tensors.get("w").item() == 1
    assert names_in(tmp_path) == ["m.gguf", "second.gguf"]


FILL = """
    import sys, torch
    from apr.checkpoint import GgufWriter, TensorInfo
    from apr.common.errors import AprError
    plan = [TensorInfo(f"t{i}", (100_000,), "F32", 400_000) for i in range(40)]
    tokens = ["token"] * int(sys.argv[2])
    try:
        with GgufWriter(sys.argv[1], "llama", {"t.tokens": tokens}, plan) as out:
            for info in plan:
                out.add(info.name, torch.ones(100_000))
    except AprError as error:
        print(error)
"""


@pytest.mark.parametrize("tokens", [10, 500_000])
def test_a_write_the_system_refuses_is_one_line(tmp_path, tokens):
    """Among the tensors, and already in the header."""
    limit = 4_000_000
    process = run(
        FILL,
        tmp_path / "m.gguf",
        tokens,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    output, errors = process.communicate(timeout=60)
    assert output == f"cannot write {tmp_path / 'm.gguf'}: File too large\n", errors
    assert names_in(tmp_path) == []


def test_disk_full_is_one_line(tmp_path):
    """On a file system of 4 MB, where the system lets an ordinary user mount one."""
    script = (
        f"mount -t tmpfs -o size=4m none {tmp_path} || exit 77; "
        f'{sys.executable} -c "$CODE" {tmp_path}/m.gguf 10; ls -A {tmp_path}'
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
    assert result.stdout == f"cannot write {tmp_path}/m.gguf: {expected}\n", result.stderr


STREAM = """
    import resource, sys, torch
    from apr.checkpoint import GgufWriter, TensorInfo
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    plan = [TensorInfo(f"t{i}", (1_000_000,), "F32", 4_000_000) for i in range(40)]
    with GgufWriter(sys.argv[1], "llama", {}, plan) as out:
        out.add("t0", torch.zeros(1_000_000))
        before = peak()
        for i in range(1, 40):
            out.add(f"t{i}", torch.full((1_000_000,), float(i)))
    print(peak() - before)
"""


def test_memory_stays_at_about_one_tensor(tmp_path):
    output, errors = run(STREAM, tmp_path / "m.gguf").communicate(timeout=60)
    assert int(output) < 20, errors  # MiB; 160 MB in tensors of 4 MB
    assert open_checkpoint(tmp_path / "m.gguf").tensors.get("t39")[0].item() == 39
