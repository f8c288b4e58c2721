"""Published GGUF models, imported and read by transformers: logits, token ids, chat rendering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from apr.common.errors import AprError
from apr.convert.check_model import check_model
from apr.convert.import_checkpoint import import_checkpoint
from apr.hub import resolve
from apr.model.load import load_transformer
from apr.text import load_tokenizer
from model.zoo import hf_logits, relative_error, transformers

TOLERANCE = 1e-4
pytestmark = pytest.mark.slow

PROMPTS = [
    "def fibonacci(n: int) -> int:\n    ",
    "class Stack:\n\tdef __init__(self):\n\t\tself.items = []\n\n    # 12345 ½ é 日本語 👩‍👩‍👧",
    "<|im_start|>user\nhello<|im_end|>\n",
    "",
    "    \n\n\n\t x",
]


def published(ref: str) -> Path:
    try:
        return resolve(ref, progress=False)
    except AprError as error:
        pytest.skip(f"{ref} cannot be had here: {error}")


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(GGUF file, the folder imported from it in fp32)."""
    path = published(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "imported"
    import_checkpoint(request.param, folder, "fp32", progress=False)
    return path, folder


def test_same_logits(pair: tuple[Path, Path]) -> None:
    path, folder = pair
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = load_transformer(path, dtype=torch.float32)
    ids = torch.tensor([load_tokenizer(path).encode(PROMPTS[0] + PROMPTS[1] * 4)])
    with torch.no_grad():
        got = ours(ids)
    assert relative_error(hf_logits(theirs, ids), got) <= TOLERANCE


def test_same_token_ids(pair: tuple[Path, Path]) -> None:
    path, folder = pair
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(path)
    for prompt in PROMPTS:
        assert theirs.encode(prompt) == ours.encode(prompt), prompt
        ids = ours.encode(prompt)
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)


def test_same_chat(pair: tuple[Path, Path]) -> None:
    path, folder = pair
    ours = load_tokenizer(path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    if ours.chat_template is None:
        assert theirs.chat_template is None
        return
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Write a function.\n"},
        {"role": "assistant", "content": "def f(): ..."},
        {"role": "user", "content": "Another."},
    ]
    for messages in (chat, chat[1:2]):
        rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == ours.render_chat(messages)


def test_generation_stops_where_the_model_stops(pair: tuple[Path, Path]) -> None:
    path, folder = pair
    config = transformers.GenerationConfig.from_pretrained(folder)
    assert set(config.eos_token_id) == set(load_tokenizer(path).eos_ids)


def test_checks_pass(pair: tuple[Path, Path]) -> None:
    path, folder = pair
    assert check_model(str(path), forward=True, progress=False).problems == ()
    assert check_model(str(folder), progress=False).problems == ()


def test_a_half_sized_copy(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path, folder = pair
    report = import_checkpoint(path, tmp_path / "bf16", progress=False)
    assert report.dtype == "bf16"
    assert "rounded to bf16" in report.notes[0]
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    half = sum(file.stat().st_size for file in (tmp_path / "bf16").glob("*.safetensors"))
    assert 0.49 * whole < half < 0.52 * whole
    config = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
