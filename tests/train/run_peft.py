"""LoRA's numbers from PEFT and transformers, on the models of `cases.py`.

    python run_peft.py MODELS OUT

MODELS/<model>/ are Hugging Face folders. Writes OUT/<case>/: the adapter as PEFT saves it, and
expected.safetensors with the logits of each document, the summed loss, and every adapter gradient
under the name its weight has in the adapter. Run in an environment with peft and transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from cases import CASES, DOCUMENTS, LABELS
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def saved_name(name: str) -> str:
    name = name.replace(".default.weight", ".weight").replace("_vector.weight", "_vector")
    return name.removesuffix(".default")


def main() -> None:
    models, out = Path(sys.argv[1]), Path(sys.argv[2])
    for case, (folder, settings) in CASES.items():
        torch.manual_seed(5)
        base = AutoModelForCausalLM.from_pretrained(
            models / folder, dtype=torch.float32, attn_implementation="eager"
        )
        tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape)
                if "magnitude" in name:
                    parameter.data.abs_()
        tuned.save_pretrained(out / case)
        total, expected = torch.zeros(()), {}
        for number, (ids, labels) in enumerate(zip(DOCUMENTS, LABELS, strict=True)):
            logits = tuned(input_ids=torch.tensor([ids])).logits[0]
            expected[f"logits.{number}"] = logits.detach().clone()
            total = total + F.cross_entropy(
                logits[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"
            )
        total.backward()
        expected["loss"] = total.detach()
        for name, parameter in tuned.named_parameters():
            if parameter.grad is not None:
                expected["grad." + saved_name(name)] = parameter.grad
        save_file(expected, out / case / "expected.safetensors")


if __name__ == "__main__":
    main()
