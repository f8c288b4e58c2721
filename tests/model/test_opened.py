"""A model opened with an adapter, against PEFT's logits and the model that merging writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

from apr.checkpoint import open_checkpoint
from apr.checkpoint.adapter import Adapter, open_adapter
from apr.common.errors import AprError, UsageError
from apr.convert.export_gguf import export_gguf
from apr.hub import Pulled
from apr.merge.merge import prepare, run_merge
from apr.merge.recipe import make_settings
from apr.model.load import load_transformer
from apr.model.opened import OpenedModel, adapted_checkpoint, open_model
from apr.model.transformer import Transformer
from apr.text import FIM_FILE, load_tokenizer
from apr.train.adapter_files import adapter_tensors, merge_adapter, save_adapter
from apr.train.lora import add_lora
from apr.train.train_settings import LoraSettings
from convert.models import folder, gguf_file, small_model
from train.cases import CASES, DOCUMENTS

from .zoo import CASES_BY_NAME, make_hf, relative_error

PEFT = Path(__file__).parents[1] / "train/data/peft"


def write_adapter(path: Path, model: Transformer, files: dict[str, bytes] | None = None) -> Path:
    """What `add_lora` put on a model, with numbers of the size a training gives them."""
    torch.manual_seed(1)
    for tensor in adapter_tensors(model).values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    save_adapter(model, path, "base", files or {})
    return path


def opened_logits(base: Path, adapter: Path | None, dtype: torch.dtype) -> torch.Tensor:
    model = load_transformer(open_model(str(base), adapter).checkpoint, dtype)
    with torch.inference_mode():
        return model(torch.arange(24)[None] * 5 % 97 + 3)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_pefts(case: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_hf(CASES_BY_NAME[CASES[case][0]]).save_pretrained(base)
    adapter = open_adapter(PEFT / case)
    model = load_transformer(adapted_checkpoint(open_checkpoint(base), adapter), torch.float32)
    expected = load_file(PEFT / case / "expected.safetensors")
    for number, ids in enumerate(DOCUMENTS):
        with torch.inference_mode():
            logits = model(torch.tensor([ids]))[0]
        assert relative_error(logits, expected[f"logits.{number}"]) < 1e-5


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,embed_tokens"])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_the_merged_model(family: str, kind: str, targets: str, tmp_path: Path) -> None:
    """The same weights, so the same logits bit by bit; Gemma's embedding is tied."""
    hf = small_model(family)
    base = gguf_file(tmp_path / "m.gguf", hf) if kind == "gguf" else folder(tmp_path / "m", hf)
    model = load_transformer(base, torch.float32)
    add_lora(model, LoraSettings(rank=4, targets=tuple(targets.split(","))))
    adapter = write_adapter(tmp_path / "adapter", model)
    merged = tmp_path / "merged"
    merge_adapter(str(base), adapter, merged)
    for dtype in (torch.float32, torch.bfloat16):
        found = opened_logits(base, adapter, dtype)
        assert torch.equal(found, opened_logits(merged, None, dtype))
    assert not torch.allclose(found, opened_logits(base, None, torch.bfloat16), atol=1e-2)


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end2|>{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def enlarged(path: Path, base: Path, hf: Any, prefix: str) -> Path:
    """An adapter as PEFT writes it after `resize_token_embeddings`, its tokenizer beside it; hf
    becomes the model it stands for.
    """
    tokenizer = Backend.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|tool|>", "<|end2|>"])
    hf.resize_token_embeddings(tokenizer.get_vocab_size(), mean_resizing=False)
    state = hf.state_dict()
    a, b = torch.randn(2, 48), torch.randn(state["model.layers.1.mlp.up_proj.weight"].shape[0], 2)
    tensors = {
        "model.layers.1.mlp.up_proj.lora_A.weight": a,
        "model.layers.1.mlp.up_proj.lora_B.weight": b,
        "model.embed_tokens.weight": state["model.embed_tokens.weight"].clone(),
        "lm_head.weight": state["lm_head.weight"].clone(),
    }
    state["model.layers.1.mlp.up_proj.weight"] += 4 / 2 * b @ a
    path.mkdir()
    keys = {name: f"base_model.model.{name}" for name in tensors}
    keys |= {n: f"base_model.model.{prefix}{n[6:]}" for n in tensors if n.startswith("model.")}
    written = {keys[name]: tensor for name, tensor in tensors.items()}
    if prefix != "model.":
        written["base_model.model.model.vision_tower.fc1.lora_A.weight"] = torch.randn(2, 5)
    save_file(written, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tokenizer.save(str(path / "tokenizer.json"))
    stated = {"eos_token": "<|end2|>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(stated))
    return path


@pytest.mark.parametrize(
    ("tied", "prefix"),
    [
        (False, "model."),
        (True, "model."),
        (False, "model.language_model."),
        (False, "language_model.model."),
        (True, ""),
    ],
)
def test_a_folder_of_its_own_tokenizer_and_larger_embeddings(
    tied: bool, prefix: str, tmp_path: Path
) -> None:
    """Opened, merged and exported it is the model that was trained."""
    torch.manual_seed(0)
    hf = small_model("Llama", tie_word_embeddings=tied)
    base = folder(tmp_path / "m", hf)
    old = load_tokenizer(base)
    adapter = enlarged(tmp_path / "a", base, hf, prefix)
    opened = open_model(str(base), adapter)
    fingerprint = opened.fingerprint
    plan = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    settings = make_settings({**plan, "dtype": "float32"}, "here")
    merged, exported = tmp_path / "merged", tmp_path / "m.gguf"
    run_merge(prepare(settings), merged, progress=False)
    export_gguf(merged, exported, "fp32", progress=False)
    rows = hf.config.vocab_size
    ids = torch.tensor([[5, 9, rows - 1, 30, rows - 2, 12]])
    with torch.inference_mode():
        want = hf(ids).logits
        for model in (opened.checkpoint, merged, exported):
            assert relative_error(load_transformer(model, torch.float32)(ids), want) < 1e-5
    messages = [{"role": "user", "content": "hi <|tool|>"}]
    for tokenizer in (opened.tokenizer, load_tokenizer(merged), load_tokenizer(exported)):
        prompt = tokenizer.encode_chat(messages)
        assert tokenizer.decode(prompt, False) == "[user]hi <|tool|><|end2|>[a]"
        assert set(prompt) & {rows - 2, rows - 1} == {rows - 2, rows - 1}
        assert tokenizer.eos_ids == old.eos_ids | {rows - 1}
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end2|>"}))
    changed = open_model(str(base), adapter)
    assert changed.fingerprint != fingerprint
    assert changed.tokenizer.chat_template == old.chat_template


def test_a_template_alone_in_an_adapters_folder(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    adapter = enlarged(tmp_path / "a", base, small_model("Llama"), "model.")
    (adapter / "tokenizer.json").unlink()
    assert open_model(str(base), adapter).tokenizer.chat_template == TEMPLATE
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    found = open_model(str(base), adapter).tokenizer
    assert found.chat_template == "{{ messages }}"
    assert found.to_files()["chat_template.jinja"] == b"{{ messages }}"
    assert found.encode("hi") == load_tokenizer(base).encode("hi")


def test_a_folder_that_does_not_fit_its_base(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    adapter = enlarged(tmp_path / "a", base, small_model("Llama"), "model.")
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "lm_head" not in k}, weights)
    with pytest.raises(AprError, match=r"embedding has \d+ rows, the output layer \d+"):
        open_model(str(base), adapter)
    save_file(tensors, weights)
    moved = json.loads((adapter / "tokenizer.json").read_text())
    vocabulary = moved["model"]["vocab"]
    vocabulary["de"], vocabulary["ur"] = vocabulary["ur"], vocabulary["de"]
    (adapter / "tokenizer.json").write_text(json.dumps(moved))
    with pytest.raises(AprError, match=r"its tokenizer gives '(de|ur)' id \d+, the base's \d+"):
        _ = open_model(str(base), adapter).tokenizer


def test_what_fills_gaps_comes_along(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    model = load_transformer(base, torch.float32)
    add_lora(model, LoraSettings(rank=2))
    named = {"prefix": "a", "suffix": "b", "middle": "c"}
    adapter = write_adapter(tmp_path / "a", model, {FIM_FILE: json.dumps(named).encode()})
    assert open_model(str(base), adapter).tokenizer.fim_tokens == ("a", "b", "c")
    assert open_model(str(base)).tokenizer.fim_tokens == ()


def test_fingerprints_follow_the_adapter(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    model = load_transformer(base, torch.float32)
    add_lora(model, LoraSettings(rank=2))
    adapter = write_adapter(tmp_path / "a", model)
    first = open_model(str(base), adapter).fingerprint
    assert first != open_model(str(base)).fingerprint
    assert first == open_model(str(base), str(adapter)).fingerprint
    write_adapter(adapter, model)  # with other numbers
    assert first != open_model(str(base), adapter).fingerprint


@pytest.mark.parametrize(
    ("said", "ref", "told"),
    [
        ("base", "hf://org/base", False),
        ("org/Base", "hf://org/base@main", False),
        ("org/other", "hf://org/base", True),
        ("HERE/m", "HERE/m", False),
        ("HERE/a", "HERE/m", True),
        ("/gone/m", "HERE/m", False),
        (None, "HERE/m", False),
    ],
)
def test_another_base_is_told(said: str | None, ref: str, told: bool, tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    config: dict[str, Any] = {
        "base_model_name_or_path": said and said.replace("HERE", str(tmp_path))
    }
    (tmp_path / "a").mkdir()
    ref = ref.replace("HERE", str(tmp_path))
    model = OpenedModel(ref, Pulled(ref, base, None, True), Adapter(tmp_path / "a", config, {}, {}))
    assert any("the adapter says it was trained on" in note for note in model.notes) == told


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    wide = folder(tmp_path / "w", small_model("Llama", hidden_size=64))
    deep = folder(tmp_path / "d", small_model("Llama", num_hidden_layers=4))
    for other, message in ((wide, r"q_proj.weight is \("), (deep, "layers.3")):
        model = load_transformer(other, torch.float32)
        add_lora(model, LoraSettings(rank=2))
        adapter = write_adapter(tmp_path / f"{other.name}-adapter", model)
        with pytest.raises(AprError, match=message):
            open_model(str(base), adapter)
    with pytest.raises(UsageError, match=r"has no adapter_config\.json"):
        open_model(str(base), base)
    with pytest.raises(UsageError, match=r"has no adapter_config\.json"):
        open_model(str(base), tmp_path / "none")
