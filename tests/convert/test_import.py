"""What `import_checkpoint` writes, as transformers reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.checkpoint.model_folder import MANIFEST_NAME
from apr.common.errors import AprError, UsageError
from apr.convert import import_checkpoint as module
from apr.convert.import_checkpoint import import_checkpoint
from apr.text import load_tokenizer
from model.zoo import hf_logits, random_ids, relative_error, transformers

from .models import VOCAB, folder, gguf_file, small_model

TOLERANCE = 1e-4
CASES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama tied": {"tie_word_embeddings": True},
    "Mistral": {"sliding_window": None, "head_dim": 16},
    "Qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "Qwen3": {"head_dim": 16},
    "Gemma3": {
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "Phi3": {"num_key_value_heads": 4},
}


def loaded(path: Path) -> Any:
    """transformers' model of a folder, fp32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("name", CASES)
def test_gguf_to_folder_has_the_same_logits(name: str, tmp_path: Path) -> None:
    model = small_model(name.split()[0], **CASES[name])
    path = gguf_file(tmp_path / "m.gguf", model)
    report = import_checkpoint(path, tmp_path / "out", progress=False)
    ids = random_ids(2, 21, VOCAB)
    assert relative_error(hf_logits(loaded(tmp_path / "out"), ids), hf_logits(model, ids)) < (
        TOLERANCE
    )
    assert report.dtype == "fp32"  # as stored
    assert report.parameters == model.num_parameters()
    assert report.notes == ()


def test_gguf_to_folder_has_the_same_tokenizer(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    import_checkpoint(path, tmp_path / "out", progress=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = load_tokenizer(path)
    text = "def f(a):\n    return a <|im_end|> é\t"
    assert theirs.encode(text) == ours.encode(text)
    chat = [{"role": "user", "content": "return a"}, {"role": "assistant", "content": "def"}]
    rendered = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == ours.render_chat(chat)
    assert rendered.endswith("def<|im_end|>\n<|im_start|>assistant\n")
    assert load_tokenizer(tmp_path / "out").eos_ids == ours.eos_ids
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == set(ours.eos_ids)


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"),
    [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)],
)
def test_dtype(tmp_path: Path, dtype: str, torch_dtype: torch.dtype) -> None:
    model = small_model("Qwen3", head_dim=16)
    path = gguf_file(tmp_path / "m.gguf", model)
    import_checkpoint(path, tmp_path / "out", dtype, progress=False)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(written[name], tensor.to(torch_dtype)), name
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.dtype == torch_dtype


def test_quantized_weights_become_bf16_and_it_is_said(tmp_path: Path) -> None:
    model = small_model("Llama", hidden_size=64, intermediate_size=96)
    path = tmp_path / "q.gguf"
    requantize(gguf_file(tmp_path / "m.gguf", model), path)
    report = import_checkpoint(path, tmp_path / "out", progress=False)
    assert report.dtype == "bf16"
    assert report.notes == (
        "Q8_0 weights were rounded to bf16; --dtype fp32 keeps their exact values",
    )
    import_checkpoint(path, tmp_path / "exact", "fp32", progress=False)
    reader = gguf.GGUFReader(path)
    stored = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(load_file(tmp_path / "exact" / "model.safetensors")[name], expected)
    rounded = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert torch.equal(rounded, expected.bfloat16())


def requantize(source: Path, target: Path) -> None:
    """Matrices of a GGUF file as Q8_0, by the gguf package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if data.ndim < 2:
            writer.add_tensor(tensor.name, data)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor.name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- from folders ----


def test_folder_is_copied_as_stored(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", small_model("Qwen2"))
    for name in ("README.md", "pytorch_model.bin", "LICENSE"):
        (source / name).write_text(name)
    report = import_checkpoint(source, tmp_path / "out", progress=False)
    assert report.dtype == "as stored"
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "LICENSE", "tokenizer.json", "chat_template.jinja"} <= names
    assert "pytorch_model.bin" not in names
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_folder_changes_dtype(tmp_path: Path) -> None:
    model = small_model("Llama")
    source = folder(tmp_path / "in", model)
    import_checkpoint(source, tmp_path / "out", "bf16", progress=False)
    ids = random_ids(1, 9, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():  # not model.bfloat16(): that rounds the rotary table
            parameter.copy_(parameter.bfloat16())
    error = relative_error(hf_logits(loaded(tmp_path / "out"), ids), hf_logits(model, ids))
    assert error < TOLERANCE
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config.get("dtype"), config.get("torch_dtype")} - {None} == {"bfloat16"}


def test_shards_load(tmp_path: Path) -> None:
    model = small_model("Llama")
    path = gguf_file(tmp_path / "m.gguf", model)
    import_checkpoint(path, tmp_path / "out", max_shard_bytes=60_000, progress=False)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    ids = random_ids(1, 9, VOCAB)
    error = relative_error(hf_logits(loaded(tmp_path / "out"), ids), hf_logits(model, ids))
    assert error < TOLERANCE
    # And back in from the shards.
    import_checkpoint(tmp_path / "out", tmp_path / "again", progress=False)
    assert not (tmp_path / "again" / "model.safetensors.index.json").exists()
    error = relative_error(hf_logits(loaded(tmp_path / "again"), ids), hf_logits(model, ids))
    assert error < TOLERANCE


# ---- the record ----


def test_manifest(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    import_checkpoint(path, tmp_path / "out", "bf16", progress=False)
    value = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert value["command"] == "import"
    assert value["settings"]["dtype"] == "bf16"
    assert value["inputs"] == [
        {
            "path": "m.gguf",
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    ]
    assert value["versions"]["torch"] == torch.__version__
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert value["tensors"] == {
        name: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in written.items()
    }
    for name, sha256 in value["files"].items():
        content = (tmp_path / "out" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256


# ---- refusals ----


def test_existing_target_is_kept(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty .*`force`"):
        import_checkpoint(path, tmp_path / "out", progress=False)
    # Even --force replaces models only.
    with pytest.raises(UsageError, match="other things than a model"):
        import_checkpoint(path, tmp_path / "out", force=True, progress=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious.txt"]
    with pytest.raises(UsageError, match="is a file"):
        import_checkpoint(path, tmp_path / "out" / "precious.txt", progress=False)


def test_force_replaces_a_model(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    import_checkpoint(path, tmp_path / "out", progress=False)
    (tmp_path / "out" / "stale.json").write_text("{}")
    import_checkpoint(path, tmp_path / "out", "bf16", force=True, progress=False)
    assert not (tmp_path / "out" / "stale.json").exists()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", small_model("Llama"))
    with pytest.raises(UsageError, match="holds the model that is to be read"):
        import_checkpoint(source, source, "bf16", force=True, progress=False)
    inside = gguf_file(source / "m.gguf", small_model("Llama"))
    with pytest.raises(UsageError, match="holds the model that is to be read"):
        import_checkpoint(inside, source, force=True, progress=False)
    assert inside.exists()


def test_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dtype 'int3' is unknown .*bf16, fp16, fp32"):
        import_checkpoint("smollm2-135m", tmp_path / "out", "int3")


def test_values_beyond_fp16(tmp_path: Path) -> None:
    model = small_model("Llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 70000.0
    path = gguf_file(tmp_path / "m.gguf", model)
    with pytest.raises(AprError, match=r"layers\.1\.mlp\.up_proj\.weight .*use `dtype` bf16"):
        import_checkpoint(path, tmp_path / "out", "fp16", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_unknown_architecture(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "mamba9"}')
    save_file({"a": torch.zeros(2)}, source / "model.safetensors")
    with pytest.raises(UsageError, match="mamba9"):
        import_checkpoint(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    whole = module.load_weights

    def interrupted(*args: Any) -> Any:
        for number, item in enumerate(whole(*args)):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(module, "load_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(path, tmp_path / "out", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
