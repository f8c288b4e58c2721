"""Logits of adapters that apr wrote, from PEFT.

    python load_in_peft.py MODELS ADAPTERS

Writes ADAPTERS/<case>.safetensors with the logits of each document.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from cases import CASES, DOCUMENTS
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main() -> None:
    models, adapters = Path(sys.argv[1]), Path(sys.argv[2])
    for case, (folder, _) in CASES.items():
        base = AutoModelForCausalLM.from_pretrained(
            models / folder, dtype=torch.float32, attn_implementation="eager"
        )
        tuned = PeftModel.from_pretrained(base, adapters / case)
        logits = {
            f"logits.{number}": tuned(input_ids=torch.tensor([ids])).logits[0].clone()
            for number, ids in enumerate(DOCUMENTS)
        }
        save_file(logits, adapters / f"{case}.safetensors")


if __name__ == "__main__":
    main()
