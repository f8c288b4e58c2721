"""Times steps of trl on preferences: DPO (its adapter-off model as reference) or ORPO, LoRA.

    python align_worker.py {dpo|orpo} MODEL_FOLDER {bf16|fp32} BATCH PROMPT ANSWER RANK

Prompts and answers are random tokens of these lengths. Waits for "N" on standard input, takes N
steps, answers {"seconds", "pairs", "peak", "loss"}. Runs in the peer's own environment.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class Clock(TrainerCallback):
    total, begun = 0.0, 0.0

    def on_step_begin(self, *arguments: Any, **more: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        self.total += time.perf_counter() - self.begun


def main() -> None:
    method, folder, dtype = sys.argv[1:4]
    batch, prompt, answer, rank = map(int, sys.argv[4:8])
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    base.config.use_cache = False
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    make_config, trainer_of = {
        "dpo": (DPOConfig, DPOTrainer),
        "orpo": (ORPOConfig, ORPOTrainer),
    }[method]
    words = [t for t in range(1000, 40000) if tokenizer.decode([t]).strip().isalpha()]
    step = 0

    def rows(count: int) -> list[dict[str, str]]:
        nonlocal step
        found = []
        for _ in range(count):
            generator = torch.Generator().manual_seed(step)
            size = (batch, prompt + 2 * answer)
            for row in torch.randint(len(words), size, generator=generator).tolist():
                ids = [words[i] for i in row]
                parts = ids[:prompt], ids[prompt : prompt + answer], ids[prompt + answer :]
                texts = [tokenizer.decode(part) for part in parts]
                found.append(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)))
            step += 1
        return found

    answers, sys.stdout = sys.stdout, sys.stderr  # trl prints its log
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        count, clock = int(line), Clock()
        with tempfile.TemporaryDirectory() as output:
            config = make_config(
                output_dir=output,
                max_steps=count,
                per_device_train_batch_size=batch,
                learning_rate=1e-5,
                logging_steps=count,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                bf16=dtype == "bf16",
                gradient_checkpointing=False,
                max_length=prompt + answer,
                disable_tqdm=True,
            )
            trainer = trainer_of(
                model=model,
                args=config,
                train_dataset=Dataset.from_list(rows(count)),
                processing_class=tokenizer,
                callbacks=[clock],
            )
            trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"seconds": clock.total, "pairs": count * batch, "peak": peak, "loss": losses[-1]}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
