"""Perplexity against transformers' loss on the same windows, and its closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from apr.calibrate.perplexity import (
    LoadedModel,
    TokenWindow,
    evaluate_perplexity,
    load_model,
    measure,
    token_losses,
    token_windows,
)
from apr.calibrate.texts import BUILTIN, Text, load_text
from apr.common.errors import AprError, UsageError
from convert.models import VOCAB, folder, small_model

from .shared import shared_data

transformers = pytest.importorskip("transformers")

# 1 000 characters with letters of one to four bytes in UTF-8.
TEXT = "def f(a):\n    return a\n\n# ümläut 日本 👍🏽\n" * 25


@pytest.fixture(scope="module", params=["Llama", "Qwen2"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it: random weights, byte-level BPE of 269 tokens."""
    path = tmp_path_factory.mktemp(request.param) / "m"
    return folder(path, small_model(request.param))


def their_loss(path: Path, text: str, windows: list[tuple[int, int, int]], **how: Any) -> float:
    """Mean loss of the predicted tokens, by transformers' model, tokenizer and loss.

    windows: (start, first predicted, end).
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **how).eval()
    # Not AutoTokenizer: for Qwen2 it puts that family's own splitting in place of the file's.
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    ids = tokenizer(text, return_tensors="pt").input_ids
    total, tokens = 0.0, 0
    for start, first, end in windows:
        labels = ids[:, start:end].clone()
        labels[:, : first - start] = -100
        with torch.no_grad():
            loss = model(ids[:, start:end], labels=labels).loss
        total += float(loss) * (end - first)
        tokens += end - first
    return total / tokens


def guide(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """The sliding window of transformers' guide to perplexity; begin, first predicted, end.

    Its first label of a window that begins after the last one's end is lost in the shift.
    """
    found, previous = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        found.append((begin, max(previous, begin + 1), end))
        previous = end
        if end == tokens:
            break
    return found


@pytest.mark.parametrize(("window", "stride"), [(64, None), (128, 128), (100, 37), (50, 49)])
def test_equals_transformers(small: Path, window: int, stride: int | None) -> None:
    found = measure(load_model(str(small), "fp32"), TEXT, window=window, stride=stride)
    windows = guide(found.text_tokens, window, stride or window)
    if stride in (None, window):
        windows = [w for w in windows if w[2] - w[0] == window]  # GPTQ: full windows only
    want = their_loss(small, TEXT, windows, dtype=torch.float32)
    assert found.nats_per_token == pytest.approx(want, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(want), rel=1e-5)
    assert (found.windows, found.window, found.stride) == (len(windows), window, stride or window)
    assert found.tokens == sum(end - first for _, first, end in windows)


def test_bf16_is_near(small: Path) -> None:
    """8 bits of mantissa in weights and activations; the mean evens most of it out."""
    found = measure(load_model(str(small)), TEXT, window=64)
    windows = [w for w in guide(found.text_tokens, 64, 64) if w[2] - w[0] == 64]
    want = their_loss(small, TEXT, windows, dtype=torch.float32)
    assert found.nats_per_token == pytest.approx(want, rel=1e-2)


def test_a_model_that_knows_nothing(small: Path) -> None:
    """Perplexity is the vocabulary's size; bits per byte follow from the tokens' number."""
    model = load_model(str(small), "fp32")
    head = model.transformer.lm_head
    assert head is not None
    head.weight.data.zero_()
    found = measure(model, TEXT, window=100, stride=50)
    assert found.perplexity == pytest.approx(VOCAB, rel=1e-5)
    assert found.tokens == found.text_tokens - 1
    first = model.tokenizer.decode(model.tokenizer.encode(TEXT)[:1])
    assert found.bytes == len(TEXT.encode()) - len(first.encode())
    assert found.bits_per_byte == pytest.approx(found.tokens * math.log2(VOCAB) / found.bytes)


def test_predicted_bytes_of_windows(small: Path) -> None:
    """Bytes counted from the decoded tokens, in ASCII, where every cut is between characters."""
    model = load_model(str(small), "fp32")
    text = TEXT.encode("ascii", "ignore").decode()
    ids = model.tokenizer.encode(text)
    found = measure(model, text, window=60, max_windows=3)
    windows = [ids[start + 1 : start + 60] for start in (0, 60, 120)]
    assert found.bytes == sum(len(model.tokenizer.decode(window)) for window in windows)
    assert found.tokens == 3 * 59


@pytest.mark.parametrize("length", [2, 5, 10, 11, 57])
@pytest.mark.parametrize(("window", "stride"), [(10, 3), (10, 9), (10, 1), (7, 4)])
def test_windows_with_context(length: int, window: int, stride: int) -> None:
    """All tokens but the first once, with context; the same windows as in transformers' guide."""
    found = token_windows(length, window, stride)
    assert [(w.start, w.first, w.end) for w in found] == guide(length, window, stride)
    assert [i for w in found for i in range(w.first, w.end)] == list(range(1, length))
    assert all(w.end - w.start <= window for w in found)


def test_windows_side_by_side() -> None:
    assert token_windows(10, 4, 4) == [TokenWindow(0, 1, 4), TokenWindow(4, 5, 8)]
    assert token_windows(8, 4, 4) == [TokenWindow(0, 1, 4), TokenWindow(4, 5, 8)]
    assert token_windows(3, 4, 4) == [TokenWindow(0, 1, 3)]


def test_all_logits_never_exist(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(small), "fp32").transformer
    ids = torch.randint(0, VOCAB, (120,), generator=torch.Generator().manual_seed(1))
    whole = token_losses(model, ids, 20)
    monkeypatch.setattr("apr.calibrate.perplexity._LOGITS", 7 * VOCAB + 3)
    sizes, plain = [], model.logits
    monkeypatch.setattr(model, "logits", lambda h: sizes.append(len(h)) or plain(h))
    torch.testing.assert_close(token_losses(model, ids, 20), whole, rtol=1e-5, atol=1e-6)
    assert (max(sizes), sum(sizes)) == (7, 100)


def test_results_say_what_was_measured(small: Path) -> None:
    text = load_text(BUILTIN)
    options: dict[str, Any] = {"window": 40, "max_windows": 2, "progress": False}
    found = evaluate_perplexity(str(small), text, dtype="fp32", threshold=1.5, **options)
    assert (found["windows"], found["stride"], found["passed"]) == (2, 40, False)
    assert (found["text"], found["dtype"], found["model"]) == (BUILTIN, "float32", str(small))
    again = evaluate_perplexity(str(small), text, dtype="fp32", threshold=1e9, **options)
    assert again["passed"] is True and again["perplexity"] == found["perplexity"]


def test_a_broken_model_is_not_finite(small: Path) -> None:
    model = load_model(str(small), "fp32")
    model.transformer.model.norm.weight.data[3] = math.nan
    found = measure(model, TEXT, window=64, max_windows=1)
    assert math.isnan(found.perplexity)
    assert found.to_json()["perplexity"] is None and found.to_json()["tokens"] == 63


def test_settings_that_make_no_sense(small: Path) -> None:
    model = load_model(str(small), "fp32")
    for options, message in (
        ({"window": 1}, "--window is 1"),
        ({"window": 8, "stride": 9}, "--stride is 9"),
        ({"stride": 0}, "--stride is 0"),
        ({"window": 512}, "--window 512 is more than the 128 tokens"),
        ({"max_windows": 0}, "--max-windows is 0"),
    ):
        with pytest.raises(UsageError, match=message):
            measure(model, TEXT, **options)
    with pytest.raises(UsageError, match="1 tokens long"):
        measure(model, "x")
    with pytest.raises(UsageError, match="--threshold is nan"):
        evaluate_perplexity(str(small), Text("t", TEXT, ""), threshold=math.nan)
    assert measure(model, TEXT).window == 128  # the context, where it is below 2048


def test_a_tokenizer_of_another_model(small: Path, tmp_path: Path) -> None:
    other = load_model(str(folder(tmp_path / "o", small_model("Llama", vocab_size=200))), "fp32")
    mixed = LoadedModel(load_model(str(small)).opened, other.transformer)
    with pytest.raises(AprError, match=r": its tokenizer gives id .*, its embedding has 200"):
        measure(mixed, TEXT)


@pytest.mark.slow
def test_a_real_model_against_transformers(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct on WikiText-2: fp32 to 1e-5, bf16 within 1 % of transformers' fp32."""
    from apr.convert.import_checkpoint import import_checkpoint

    try:
        import_checkpoint("smollm2-135m", tmp_path / "m", "fp32", progress=False)
    except AprError as error:
        pytest.skip(f"smollm2-135m cannot be had here: {error}")
    text = load_text("wikitext-2", shared_data("wikitext-2/wiki.test.raw.gz")).text[:20_000]
    windows = [(start, start + 1, start + 512) for start in range(0, 2048, 512)]
    want = their_loss(tmp_path / "m", text, windows, dtype=torch.float32)
    options: dict[str, Any] = {"window": 512, "max_windows": 4}
    found = measure(load_model(str(tmp_path / "m"), "fp32"), text, **options)
    assert found.nats_per_token == pytest.approx(want, rel=1e-5)
    rounded = measure(load_model(str(tmp_path / "m")), text, **options)
    assert rounded.nats_per_token == pytest.approx(want, rel=1e-2)
