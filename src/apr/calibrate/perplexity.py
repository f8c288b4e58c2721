"""Perplexity of a language model on a text, and bits per byte, which tokenizers share.

perplexity = exp(mean negative log-likelihood of the predicted tokens). By default the text is
cut into windows that do not overlap and the first token of each is not predicted, the measure of
GPTQ (Frantar et al. 2022, arXiv:2210.17323) and of the pruning papers after it; a last window
that is not full is left out, as there. With a stride smaller than the window, every token but the
text's first is predicted once, from at least `window - stride` tokens where so many come before
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from apr.calibrate.texts import Text
from apr.common.errors import AprError, UsageError
from apr.common.progress import counted
from apr.common.record import versions
from apr.engine.runners.runtime import pick_device, pick_product_dtype
from apr.model.load import load_transformer
from apr.model.opened import OpenedModel, open_model
from apr.model.rope import short_context
from apr.model.transformer import Transformer
from apr.text import Tokenizer

WINDOW = 2048
# Logits in existence at a time: 128 MiB in fp32.
_LOGITS = 1 << 25


@dataclass(frozen=True)
class TokenWindow:
    """Tokens start to end of a text are seen, tokens first to end of these are predicted."""

    start: int
    first: int
    end: int


@dataclass(frozen=True)
class Perplexity:
    """What was measured, over `windows` windows of `window` tokens, `stride` apart.

    nats_per_token: mean negative log-likelihood of the `tokens` predicted tokens. bits_per_byte:
    their sum in bits by the `bytes` of UTF-8 these tokens stand for. text_tokens: of the whole
    text.
    """

    perplexity: float
    bits_per_byte: float
    nats_per_token: float
    tokens: int
    bytes: int
    windows: int
    window: int
    stride: int
    text_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain data; None where a number is not finite."""
        values = asdict(self).items()
        return {name: value if math.isfinite(value) else None for name, value in values}


@dataclass(frozen=True)
class LoadedModel:
    """A model to measure. context: the tokens it can see."""

    opened: OpenedModel
    transformer: Transformer

    @property
    def tokenizer(self) -> Tokenizer:
        return self.opened.tokenizer

    @property
    def context(self) -> int:
        return short_context(self.transformer.config)

    def describe(self) -> dict[str, Any]:
        """How it runs, for the records."""
        return {
            **self.opened.describe(),
            "family": self.transformer.config.family,
            "dtype": str(self.transformer.dtype).removeprefix("torch."),
            "device": str(self.transformer.device),
        }


def load_model(
    ref: str,
    dtype: str = "auto",
    device: str = "auto",
    offline: bool = False,
    adapter: str | None = None,
) -> LoadedModel:
    """Fetch and load a model. dtype "auto": bf16, or fp32 on a CPU that does not multiply bf16;
    device "auto": the best there is.

    Raises UsageError and AprError as `open_model` and `load_transformer` do.
    """
    where = pick_device(device)
    kind = pick_product_dtype(dtype, where)
    opened = open_model(ref, adapter, offline=offline)
    transformer = load_transformer(opened.checkpoint, dtype=kind, device=where)
    return LoadedModel(opened, transformer)


def evaluate_perplexity(
    ref: str,
    text: Text,
    *,
    window: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    threshold: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    offline: bool = False,
    adapter: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Perplexity of the model a reference names, as the plain data of a result.

    window None: 2048, or the model's context where that is shorter. threshold: `passed` says
    whether the perplexity is not above it (None without one). Raises UsageError and AprError as
    `load_model` and `measure` do.
    """
    check_windows(window, stride, max_windows)
    if threshold is not None and not threshold > 0:
        raise UsageError(f"--threshold is {threshold}", "a perplexity, 1 or more")
    model = load_model(ref, dtype, device, offline, adapter)
    found = measure(
        model, text.text, window=window, stride=stride, max_windows=max_windows, progress=progress
    )
    return {
        **found.to_json(),
        "threshold": threshold,
        "passed": None if threshold is None else found.perplexity <= threshold,
        "text": text.name,
        "text_sha256": text.sha256,
        **model.describe(),
        "versions": versions(),
    }


def measure(
    model: LoadedModel,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    progress: bool = False,
) -> Perplexity:
    """Perplexity of a loaded model on a text; special tokens in it count as such.

    window, stride: tokens (stride None: the window). max_windows: only the first. A text shorter
    than a window is one window. Raises UsageError (settings, a text of fewer than two tokens),
    AprError (token ids beyond the embedding).
    """
    check_windows(window, stride, max_windows)
    size = min(WINDOW, model.context) if window is None else window
    if size > model.context:
        raise UsageError(
            f"--window {size} is more than the {model.context} tokens the model can see",
            f"at most --window {model.context}",
        )
    encoded = model.tokenizer.backend.encode(text)
    ids = torch.tensor(encoded.ids)
    _check_ids(ids, model)
    step = size if stride is None else stride
    chosen = token_windows(len(ids), size, step)[:max_windows]
    total, tokens = window_losses(model.transformer, ids, chosen, progress)
    ends = [end for _, end in encoded.offsets]  # in characters of the text
    spans = (text[ends[w.first - 1] : ends[w.end - 1]] for w in chosen)
    predicted_bytes = sum(len(span.encode()) for span in spans)
    mean = total / tokens
    return Perplexity(
        perplexity=math.exp(mean) if mean < 700 else mean * math.inf,
        bits_per_byte=total / math.log(2) / max(predicted_bytes, 1),
        nats_per_token=mean,
        tokens=tokens,
        bytes=predicted_bytes,
        windows=len(chosen),
        window=size,
        stride=step,
        text_tokens=len(ids),
    )


def check_windows(window: int | None, stride: int | None, max_windows: int | None) -> None:
    """Raises UsageError for settings no text and no model could be measured with."""
    if window is not None and window < 2:
        raise UsageError(f"--window is {window}", "it must be 2 or more")
    if stride is not None and not 1 <= stride <= (window or WINDOW):
        raise UsageError(f"--stride is {stride}", "from 1 to --window")
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"--max-windows is {max_windows}", "it must be 1 or more")


def token_windows(tokens: int, window: int, stride: int) -> list[TokenWindow]:
    """The windows over a text of so many tokens, at least 2; stride <= window."""
    if tokens <= window:
        return [TokenWindow(0, 1, tokens)]
    if stride == window:
        return [TokenWindow(i, i + 1, i + window) for i in range(0, tokens - window + 1, window)]
    found = [TokenWindow(0, 1, window)]
    while found[-1].end < tokens:
        seen = found[-1].end
        end = min(seen + stride, tokens)
        # The last one begins where its stride puts it, not earlier, as in transformers' guide.
        found.append(TokenWindow(len(found) * stride, seen, end))
    return found


def window_losses(
    model: Transformer, ids: torch.Tensor, windows: Iterable[TokenWindow], progress: bool = False
) -> tuple[float, int]:
    """Sum of the negative log-likelihoods (nats) of all predicted tokens, and their number.

    ids: integers (tokens,) of the whole text.
    """
    total, tokens = 0.0, 0
    for window in counted(list(windows), "perplexity, window", progress):
        seen = ids[window.start : window.end].to(model.device)
        losses = token_losses(model, seen, window.first - window.start)
        total += float(losses.double().sum())
        tokens += len(losses)
    return total, tokens


@torch.inference_mode()
def token_losses(model: Transformer, ids: torch.Tensor, first: int = 1) -> torch.Tensor:
    """Negative log-likelihood in nats, fp32 (T - first,), of ids[first:], each given all before.

    ids: integers (T,) on the model's device; first >= 1. Logits and log-softmax are fp32, over a
    slice of positions at a time, so that (T, V) never exists.
    """
    hidden = model.hidden_states(ids[None])[0, first - 1 : -1]
    rows = max(1, _LOGITS // model.config.vocab_size)
    pieces = zip(hidden.split(rows), ids[first:].split(rows), strict=True)
    return torch.cat([F.cross_entropy(model.logits(h), t, reduction="none") for h, t in pieces])


def _check_ids(ids: torch.Tensor, model: LoadedModel) -> None:
    if len(ids) < 2:
        raise UsageError(f"the text is {len(ids)} tokens long", "it takes 2 or more")
    rows = model.transformer.config.vocab_size
    if int(ids.max()) >= rows:
        raise AprError(
            f"{model.opened.name}: its tokenizer gives id {int(ids.max())}, its embedding has"
            f" {rows} rows",
            "the tokenizer belongs to another model",
        )
