"""A training run by trl: the loss of every step.

    python run_trl.py CASE.json OUT.json

CASE.json: {model, adapter (a PEFT folder to start from), rows: [{input_ids, completion_mask}],
learning_rate, batch_size, steps, nf4}; rows are taken in their order, nf4: in bitsandbytes'
NF4 with double quantization. Run in an environment with trl.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


class InOrder(SFTTrainer):
    def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main() -> None:
    case = json.loads(Path(sys.argv[1]).read_text())
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        case["model"], dtype=torch.float32, quantization_config=nf4 if case["nf4"] else None
    )
    model = PeftModel.from_pretrained(base, case["adapter"], is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=case["steps"],
            per_device_train_batch_size=case["batch_size"],
            learning_rate=case["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            packing=False,
            completion_only_loss=True,
            max_length=None,
            disable_tqdm=True,
        )
        exact = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        trainer = InOrder(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(case["rows"]),
            processing_class=tokenizer,
        )
        for name, parameter in model.named_parameters():
            if name in exact:  # trl rounds adapters on a quantized base to bf16
                parameter.data = exact[name]
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    Path(sys.argv[2]).write_text(json.dumps({"losses": losses}) + "\n")


if __name__ == "__main__":
    main()
