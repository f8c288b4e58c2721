"""An adapter merged into its base, in fp32, and the proof that nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from apr.calibrate.texts import BUILTIN, load_text
from apr.common.errors import UsageError
from apr.hub import resolve
from apr.merge.merge import prepare, run_merge
from apr.merge.settings import make_settings
from apr.model.load import load_transformer
from apr.text import load_tokenizer
from apr.train.adapter_files import load_adapter

SAMPLE_TOKENS = 256


def merge_adapter(
    model: str, adapter: Path, folder: Path, *, force: bool = False, offline: bool = False
) -> dict[str, Any]:
    """Write model + adapter as one fp32 model, and compare the two on a piece of Python.

    Raises UsageError and AprError as merging does.
    """
    if not adapter.exists():
        raise UsageError(f"{adapter}: no such folder", "name a PEFT adapter's folder")
    settings = make_settings(
        {
            "merge_method": "passthrough",
            "models": [{"model": f"{model}+{adapter}"}],
            "dtype": "float32",
        },
        "apr finetune --merge",
    )
    report = run_merge(prepare(settings, offline=offline), folder, force=force)
    path = resolve(model, offline=offline)
    ids = load_tokenizer(path).encode(load_text(BUILTIN).text)[:SAMPLE_TOKENS]
    with torch.inference_mode():
        tokens = torch.tensor([ids])
        merged = load_transformer(folder, torch.float32)(tokens)
        adapted = load_transformer(path, torch.float32)
        load_adapter(adapted, adapter)
        wanted = adapted.eval()(tokens)
    return {
        **report.to_json(),
        "max_logit_difference": float((merged - wanted).abs().max()),
        "max_logit": float(wanted.abs().max()),
        "tokens_compared": len(ids),
    }
