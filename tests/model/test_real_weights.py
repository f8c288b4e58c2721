"""Published GGUF files: our reading and our forward against transformers' of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apr.checkpoint import open_checkpoint
from apr.common.errors import AprError
from apr.engine.runners.runner import StepBatch
from apr.engine.runners.torch_runner import TorchRunner
from apr.model.load import load_transformer

from .zoo import hf_logits, read_config, relative_error, transformers

TOLERANCE = 1e-4
pytestmark = pytest.mark.slow  # transformers needs a minute to read a GGUF vocabulary twice


def published(ref: str) -> Path:
    """The model's GGUF file, downloaded on first use; skips where that is not possible."""
    hub = pytest.importorskip("apr.hub")
    try:
        return Path(open_checkpoint(hub.resolve(ref, progress=False)).path)
    except AprError as error:
        pytest.skip(f"{ref} cannot be had here: {error}")


def as_transformers_reads_it(path: Path) -> Any:
    """transformers' own GGUF reader and model, fp32.

    `from_pretrained(gguf_file=...)` is a wrapper around these calls that wants another package.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    parsed = load_gguf_checkpoint(path)["config"]
    config = transformers.AutoConfig.for_model(**parsed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    left = model.load_state_dict(found, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model.float().eval()


def check(path: Path, length: int) -> None:
    ids = torch.randint(5, 40000, (1, length), generator=torch.Generator().manual_seed(0))
    model = load_transformer(path, dtype=torch.float32)
    theirs = as_transformers_reads_it(path)
    want = hf_logits(theirs, ids)
    with torch.no_grad():
        got = model(ids)
    assert relative_error(got, want) <= TOLERANCE
    # transformers derives the same configuration; it keeps norm_eps as stored in 32 bits.
    derived = dataclasses.replace(read_config(theirs), norm_eps=model.config.norm_eps)
    assert derived == model.config
    # And the paged runner agrees, the prompt cut in two.
    runner = TorchRunner(model, num_blocks=-(-length // 64))
    table = np.arange(runner.num_blocks, dtype=np.int32)[None]
    parts, cut = [], length // 3
    for start, stop in ((0, cut), (cut, length)):
        rows = np.arange(stop - start, dtype=np.int32)
        new = ids[0, start:stop].numpy().astype(np.int32)
        starts, context = np.array([0, len(new)], np.int32), np.array([start], np.int32)
        parts.append(runner.forward(StepBatch(new, starts, context, table, rows)))
    assert relative_error(torch.cat(parts), got[0]) <= 1e-5


def test_smollm2() -> None:
    """Llama architecture: permuted rows, tied Q8_0 embeddings, Q4_1 weights."""
    check(published("smollm2-135m"), length=70)


def test_gemma3_270m() -> None:
    """Sliding and full layers, two rope bases, norms with 1 added; longer than the window (512)."""
    check(published("gemma3-270m"), length=540)
