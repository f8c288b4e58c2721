"""Training on preferences by trl: what it logs of every step.

    python run_trl_preferences.py CASES.json OUT.json

CASES.json: {model, adapter (a PEFT folder to start from), learning_rate, batch_size, steps, rows:
{pairs, single}, cases: {name: {trainer: dpo, orpo, cpo or kto, and its settings}}}; rows are taken
in their order. Run in an environment with trl.
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
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

KINDS = {
    "dpo": (DPOConfig, DPOTrainer),
    "kto": (KTOConfig, KTOTrainer),
    "cpo": (CPOConfig, CPOTrainer),
    "orpo": (ORPOConfig, ORPOTrainer),
}


def run(given: dict[str, Any], case: dict[str, Any]) -> list[dict[str, float]]:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, given["adapter"], is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    tokenizer.pad_token = "<|endoftext|>"
    settings = dict(case)
    make_config, kind = KINDS[settings.pop("trainer")]
    rows = given["rows"]["single" if kind is KTOTrainer else "pairs"]

    class InOrder(kind):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            output_dir=folder,
            max_steps=given["steps"],
            per_device_train_batch_size=given["batch_size"],
            learning_rate=given["learning_rate"],
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
            max_length=None,
            disable_tqdm=True,
            **settings,
        )
        trainer = InOrder(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.train()
    return [
        {key: value for key, value in line.items() if isinstance(value, int | float)}
        for line in trainer.state.log_history
        if "loss" in line
    ]


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    found = {name: run(given, case) for name, case in given["cases"].items()}
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
