"""Inputs of other kinds: GGUF files, and models whose tokenizers differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.common.errors import UsageError
from apr.merge.inputs import FileReader, Memory, open_input
from apr.merge.merge import prepare, run_merge
from apr.merge.recipe import make_settings
from apr.text import load_tokenizer
from convert.models import gguf_file, small_model
from merge.mergekit_cases import CONFIG
from merge.vocabulary.folders import pair

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def merge(settings: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    run_merge(prepare(make_settings(settings)), out, progress=False)
    return load_file(out / "model.safetensors")


def linear(*models: Path, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": entries, **more}


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_gguf_files_merge_as_the_models_they_hold(family: str, tmp_path: Path) -> None:
    """Of the llama architecture, rows of q and k lie in another order there."""
    models, files = [], []
    for i in range(2):
        torch.manual_seed(i)
        models.append(small_model(family))
        files.append(gguf_file(tmp_path / f"{i}.gguf", models[-1]))
    merged = merge(linear(*files, dtype="float32"), tmp_path / "out")
    states = [model.state_dict() for model in models]
    assert merged
    for name, tensor in merged.items():
        expected = (states[0][name] + states[1][name]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    assert load_tokenizer(tmp_path / "out").vocab_size == load_tokenizer(files[0]).vocab_size


def with_weights(folder: Path, rows: int, seed: int, tied: bool) -> None:
    """A one-layer model beside a tokenizer."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {EMBEDDING: draw(rows, 8), "model.layers.0.mlp.up_proj.weight": draw(12, 8),
               "model.norm.weight": draw(8)}  # fmt: skip
    if not tied:
        tensors[HEAD] = draw(rows, 8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**CONFIG, "num_hidden_layers": 1, "vocab_size": rows, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, bool]:
    first, second = pair(tmp_path)
    for seed, folder in enumerate((first, second)):
        rows = max(load_tokenizer(folder).backend.get_vocab().values()) + 1 + 5 * (1 - seed)
        with_weights(folder, rows, seed, request.param)
    return first, second, request.param


def test_different_tokenizers_are_refused(two: tuple[Path, Path, bool]) -> None:
    with pytest.raises(UsageError, match=r"tokenizers of .* differ.*`tokenizer_source`"):
        prepare(make_settings(linear(two[0], two[1])))


@pytest.mark.parametrize("source", ["base", "union"])
def test_rows_of_a_joint_vocabulary(
    two: tuple[Path, Path, bool], source: str, tmp_path: Path
) -> None:
    """Tokens both have are averaged by name; others are as in the model that has them; padding of
    the base stays.
    """
    first, second, tied = two
    settings = linear(first, second, base_model=str(first), tokenizer_source=source)
    merged = merge(settings, tmp_path / "out")
    ids = [load_tokenizer(f).backend.get_vocab() for f in (first, second, tmp_path / "out")]
    inputs = [load_file(f / "model.safetensors") for f in (first, second)]
    wanted = set(ids[0]) if source == "base" else {*ids[0], *ids[1]}
    assert set(ids[2]) == wanted
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        matrix = merged[name]
        assert config["vocab_size"] == len(matrix) >= len(inputs[0][name])
        for token, row in ids[2].items():
            have = [inputs[m][name][ids[m][token]] for m in (0, 1) if token in ids[m]]
            torch.testing.assert_close(matrix[row], sum(have) / len(have), rtol=1e-6, atol=1e-6)
    assert tied == (HEAD not in merged)
    other = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(merged[other], (inputs[0][other] + inputs[1][other]) / 2)


def test_a_source_needs_tokenizers(two: tuple[Path, Path, bool]) -> None:
    for file in two[1].glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UsageError, match="has no tokenizer"):
        prepare(make_settings(linear(two[0], two[1], tokenizer_source="union")))


def test_readers_give_the_same_blocks_however_they_read(tmp_path: Path) -> None:
    """Whole or in blocks, in any order, into memory that another reader has left."""
    values = torch.randn(1000).bfloat16()
    save_file({"long": values, "short": values[:10].float()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model, memory = open_input(str(tmp_path)), Memory()
    for whole in (True, False, True):
        for name, expected in (("short", values[:10].float()), ("long", values)):
            reader = FileReader(model, name, memory)
            reader.whole = whole
            end = len(expected)
            for first, last in ((0, end // 2), (end // 2, end), (3, 7), (0, end), (end, end)):
                assert torch.equal(reader(first, last), expected[first:last]), (name, whole)
            reader.close()
