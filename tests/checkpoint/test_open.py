import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import apr.checkpoint
from apr.checkpoint import open_checkpoint
from apr.common.errors import AprError, UsageError

from .gguf_bytes import write_with_package as write

TINY = {"w": (np.ones((2, 4), np.float32), None)}


def refusal(path, kind=UsageError):
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gguf_file_and_folder_with_one(tmp_path):
    path = write(tmp_path / "tiny.gguf", TINY)
    for given in (path, str(path), tmp_path):
        checkpoint = open_checkpoint(given)
        assert (checkpoint.format, checkpoint.path, checkpoint.config) == ("gguf", path, None)
        assert checkpoint.metadata["general.architecture"] == "llama"
        assert checkpoint.tensors.get("w").sum() == 8


def test_several_gguf_models_are_listed(tmp_path):
    write(tmp_path / "a.gguf", TINY)
    write(tmp_path / "b.gguf", TINY)
    assert "2 GGUF models: a.gguf, b.gguf" in refusal(tmp_path)


def test_safetensors_come_before_gguf(tmp_path):
    write(tmp_path / "a.gguf", TINY)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).format == "safetensors"


def test_missing_path(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nothing")


def test_empty_folder(tmp_path):
    assert "holds no model" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_refused_with_the_reason(tmp_path, name):
    file = tmp_path / name
    torch.save({"w": torch.zeros(2)}, file)
    for given in (file, tmp_path):
        assert "refused: it is a pickle, which can run any code" in refusal(given)


def test_other_files_are_no_gguf(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert "not a GGUF file: it begins with b'hell'" in refusal(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff\xfe"])
def test_broken_config_is_named(tmp_path, text):
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(tmp_path, AprError)


def test_every_public_name_is_there():
    for name in apr.checkpoint.__all__:
        assert getattr(apr.checkpoint, name) is not None
    with pytest.raises(AttributeError):
        _ = apr.checkpoint.nothing


def test_reading_a_header_does_not_import_torch(tmp_path):
    path = write(tmp_path / "tiny.gguf", TINY)
    code = (
        "import sys; from apr.checkpoint import read_gguf_header, gguf_to_hf, TensorInfo;"
        f"read_gguf_header({str(path)!r}); gguf_to_hf('output.weight', 'llama');"
        "print([m for m in ('torch', 'numba', 'numpy', 'gguf', 'safetensors') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
