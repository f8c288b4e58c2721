"""Adapters in PEFT's layout: written for peft, vLLM and `apr merge`; read to train on; merged."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apr.calibrate.texts import BUILTIN, load_text
from apr.checkpoint import CheckpointWriter
from apr.checkpoint.adapter import CONFIG_FILE, KEEP_ZEROS, WEIGHTS_FILE, open_adapter
from apr.common.errors import UsageError
from apr.hub import resolve
from apr.merge.merge import prepare, run_merge
from apr.merge.recipe import make_settings
from apr.model.load import load_transformer
from apr.model.opened import open_model
from apr.model.transformer import Transformer
from apr.model.weights import Embedding, matrix_shapes
from apr.text import load_tokenizer
from apr.train.lora import (
    Adapter,
    LoraEmbedding,
    LoraLinear,
    adaptable_modules,
    adapters_of,
    attach,
)

STEM = Path(WEIGHTS_FILE).stem
_PREFIX = "base_model.model."
SAMPLE_TOKENS = 256  # a merged model is compared on


def adapter_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """The adapters' weights under PEFT's names, fp32."""
    found: dict[str, torch.Tensor] = {}
    for name, adapter in adapters_of(model).items():
        key = _PREFIX + name
        a, b = adapter_names(adapter)
        found[f"{key}.{a}"] = adapter.lora_a.detach()
        found[f"{key}.{b}"] = adapter.lora_b.detach()
        if adapter.magnitude is not None:
            found[f"{key}.lora_magnitude_vector"] = adapter.magnitude.detach()
    return found


def adapter_names(adapter: Adapter) -> tuple[str, str]:
    """What PEFT calls the two factors of such an adapter."""
    if isinstance(adapter, LoraEmbedding):
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def adapter_config(model: Transformer, base: str) -> dict[str, Any]:
    """adapter_config.json for the adapters a model carries. base: what it was trained on."""
    adapters = adapters_of(model)
    ranks = {name: adapter.rank for name, adapter in adapters.items()}
    (rank, _), *_ = Counter(ranks.values()).most_common(1)
    # A scaling is written as lora_alpha / r, so that every adapter can be told.
    alphas = {name: _whole(adapter.scaling * adapter.rank) for name, adapter in adapters.items()}
    (alpha, _), *_ = Counter(alphas.values()).most_common(1)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(adapter.dropout for adapter in adapters.values()),
        "rank_pattern": _exceptions(ranks, rank),
        "alpha_pattern": _exceptions(alphas, alpha),
        "use_rslora": False,
        "use_dora": any(adapter.magnitude is not None for adapter in adapters.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": _target_names(adapters, adaptable_modules(model)),
        "inference_mode": True,
        **({KEEP_ZEROS: True} if any(a.keep_zeros for a in adapters.values()) else {}),
    }


def save_adapter(
    model: Transformer, folder: Path, base: str, files: Mapping[str, bytes], overwrite: bool = True
) -> None:
    """Write the folder, or nothing. files: what else belongs in it."""
    with CheckpointWriter(folder, overwrite=overwrite, stem=STEM) as writer:
        for name, tensor in adapter_tensors(model).items():
            writer.add(name, tensor)
        config = json.dumps(adapter_config(model, base), indent=2) + "\n"
        for file, content in {**files, CONFIG_FILE: config.encode()}.items():
            writer.add_file(file, content)


def load_adapter(
    model: Transformer, folder: str | Path, dropout: float | None = None
) -> list[Adapter]:
    """Freeze a model and put a saved adapter on it, ready to be run or trained on.

    dropout: None for the one the adapter was trained with. Raises UsageError (kinds of adapters
    that are not covered), AprError (an adapter of another model).
    """
    saved = open_adapter(folder)
    model.requires_grad_(False)
    shapes = matrix_shapes(model)
    saved.check(shapes)
    for name, tensor in saved.saved.items():
        own = model.get_parameter(name)
        # PEFT saves the matrix under an adapter of the output layer along with it.
        if not torch.equal(tensor.to(own), own):
            raise UsageError(f"{folder}: whole tensors in an adapter ({name}) cannot be trained")
    drop = float(saved.config.get("lora_dropout") or 0.0) if dropout is None else dropout
    adapters = []
    for name, factors in saved.factors.items():
        module = name.removesuffix(".weight")
        embedding = isinstance(model.get_submodule(module), Embedding)
        if factors.bias is not None or factors.transposed != embedding:
            raise UsageError(f"{folder}: the adapter of {name} is of a kind that cannot be trained")
        adapter = attach(
            model, module, factors.a.shape[0], factors.scaling, drop, factors.keep_zeros
        )
        with torch.no_grad():
            adapter.lora_a.copy_(factors.a)
            adapter.lora_b.copy_(factors.b)
        if isinstance(adapter, LoraLinear) and factors.magnitude is not None:
            adapter.magnitude = nn.Parameter(factors.magnitude.to(adapter.lora_a.device))
        adapters.append(adapter)
    return adapters


def _whole(number: float) -> int | float:
    """A number as people write it: 32, not 32.00000001."""
    return round(number) if abs(number - round(number)) < 1e-9 * abs(number) else number


def _exceptions(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """PEFT's patterns: regular expressions that match the end of a name."""
    return {re.escape(name): value for name, value in values.items() if value != usual}


def _target_names(chosen: Iterable[str], modules: Iterable[str]) -> list[str]:
    """PEFT's target_modules: last parts of names where they say it all, else whole names."""
    wanted = set(chosen)
    ends = {name.rpartition(".")[2] for name in wanted}
    if wanted == {name for name in modules if name.rpartition(".")[2] in ends}:
        return sorted(ends)
    return sorted(wanted)


def merge_adapter(
    model: str, adapter: Path, folder: Path, *, force: bool = False, offline: bool = False
) -> dict[str, Any]:
    """Write model + adapter as one fp32 model, and compare the logits of the two on Python code.

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
        if open_adapter(adapter).saved:  # whole tensors: no form that is trained
            opened = open_model(model, adapter, offline=offline)
            adapted = load_transformer(opened.checkpoint, torch.float32)
        else:
            adapted = load_transformer(path, torch.float32)
            load_adapter(adapted, adapter)
        wanted = adapted.eval()(tokens)
    return {
        **report.to_json(),
        "max_logit_difference": float((merged - wanted).abs().max()),
        "max_logit": float(wanted.abs().max()),
        "tokens_compared": len(ids),
    }
