"""Prunes a Llama model with the code of Wanda's or SparseGPT's authors, unchanged.

    python pruning_worker.py CHECKOUT {wanda|sparsegpt} SPARSITY {N:M|-} MODEL IDS.pt [OUT]

CHECKOUT is github.com/locuslab/wanda, which holds both. IDS.pt: int64 (sequences, tokens).
Replaced are calibration data (theirs is downloaded), calls that need a GPU, and what transformers'
layers have come to need since: rotary embeddings as an argument. Prints {"seconds", "peak"}: of
loading and pruning, and of the process, in bytes; OUT gets the pruned model.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM


def authors(checkout: str) -> Any:
    sys.modules["datasets"] = mock.MagicMock()
    sys.path.insert(0, checkout)
    import lib.prune

    torch.cuda.synchronize = lambda *_: None
    return lib.prune


def give_rotary(model: Any) -> None:
    def add(_: Any, given: tuple[torch.Tensor, ...], named: dict[str, Any]) -> Any:
        if named.get("position_embeddings") is None:
            named["position_embeddings"] = model.model.rotary_emb(given[0], named["position_ids"])
        return given, named

    for layer in model.model.layers:
        layer.register_forward_pre_hook(add, with_kwargs=True)


def first_inputs(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What their prepare_calibration_input returns, which has room for 128 sequences always."""
    inputs = torch.cat([model.model.embed_tokens(row[None]) for row in ids])
    return inputs, torch.zeros_like(inputs), None, torch.arange(ids.shape[1])[None]


def main() -> None:
    checkout, method, sparsity, pattern, folder, file = sys.argv[1:7]
    begin = time.perf_counter()
    prune = authors(checkout)
    ids = torch.load(file)
    # fp32: half precision on a CPU is slower in their code, and less exact.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.hf_device_map, model.seqlen = {}, ids.shape[1]
    give_rotary(model)
    prune.get_loaders = lambda *_, **__: ([(row[None],) for row in ids], None)
    prune.prepare_calibration_input = lambda *_: first_inputs(model, ids)
    settings = SimpleNamespace(
        nsamples=len(ids), seed=0, sparsity_ratio=float(sparsity), use_variant=False
    )
    kept, group = map(int, pattern.split(":")) if pattern != "-" else (0, 0)
    cpu = torch.device("cpu")
    printed, sys.stdout = sys.stdout, sys.stderr
    run = prune.prune_wanda if method == "wanda" else prune.prune_sparsegpt
    with torch.no_grad():
        run(settings, model, None, cpu, prune_n=group - kept, prune_m=group)
    sys.stdout = printed
    seconds = time.perf_counter() - begin
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    if len(sys.argv) > 7:
        model.to(torch.bfloat16).save_pretrained(Path(sys.argv[7]))
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()
