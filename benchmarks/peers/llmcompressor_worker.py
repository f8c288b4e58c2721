"""Prunes a model with llm-compressor; protocol as pruning_worker.py, without CHECKOUT.

    python llmcompressor_worker.py {wanda|sparsegpt} SPARSITY {N:M|-} MODEL IDS.pt [OUT]

The model in the type it is stored in (bf16; fp32 where the CPU multiplies no bf16), layer by layer
(its sequential pipeline), one sequence at a time, as it comes.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from transformers import AutoModelForCausalLM


def main() -> None:
    method, sparsity, pattern, folder, file = sys.argv[1:6]
    printed, sys.stdout = sys.stdout, sys.stderr
    begin = time.perf_counter()
    ids = torch.load(file)
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # else bf16 is several times slower
    kind = "auto" if fast else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
    kept, group = map(int, pattern.split(":")) if pattern != "-" else (0, 0)
    modifier = WandaPruningModifier if method == "wanda" else SparseGPTModifier
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=modifier(
            sparsity=float(sparsity),
            mask_structure=f"{group - kept}:{group}",
            targets=["Linear"],
            ignore=["re:.*lm_head"],
        ),
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )
    seconds = time.perf_counter() - begin
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    if len(sys.argv) > 6:
        model.save_pretrained(sys.argv[6], save_compressed=False)
    sys.stdout = printed
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()
