"""Times LoRA training steps of a peer: `bare` (transformers + peft, a plain loop) or `trl`.

    python finetune_worker.py {bare|trl} MODEL_FOLDER {bf16|fp32} BATCH LENGTH RANK [nf4]

nf4: the base in bitsandbytes' NF4 with double quantization. Waits for "N" on standard input, takes
N steps, answers {"seconds", "tokens", "peak", "loss"}: peak is the largest resident memory so far,
in bytes. Runs in the peer's own environment.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def tokens(batch: int, length: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(1000, 40000, (batch, length), generator=generator)


def load(folder: str, dtype: str, rank: int) -> Any:
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=kind,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=kind, quantization_config=packed if "nf4" in sys.argv else None
    )
    base.config.use_cache = False
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(base, settings)


class Bare:
    def __init__(self, folder: str, dtype: str, batch: int, length: int, rank: int) -> None:
        self.model = load(folder, dtype, rank).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-4)
        self.shape, self.step = (batch, length), 0

    def run(self, count: int) -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(count):
            ids = tokens(*self.shape, self.step)
            loss = self.model(input_ids=ids, labels=ids).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        return time.perf_counter() - start, float(loss.detach())


class Trl:
    def __init__(self, folder: str, dtype: str, batch: int, length: int, rank: int) -> None:
        self.model = load(folder, dtype, rank)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.dtype, self.shape, self.step = dtype, (batch, length), 0

    def run(self, count: int) -> tuple[float, float]:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer

        rows = []
        for _ in range(count):
            rows += [{"input_ids": ids} for ids in tokens(*self.shape, self.step).tolist()]
            self.step += 1

        class Clock(TrainerCallback):
            total, begun = 0.0, 0.0

            def on_step_begin(self, *arguments: Any, **more: Any) -> None:
                self.begun = time.perf_counter()

            def on_step_end(self, *arguments: Any, **more: Any) -> None:
                self.total += time.perf_counter() - self.begun

        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(
                output_dir=folder,
                max_steps=count,
                per_device_train_batch_size=self.shape[0],
                learning_rate=2e-4,
                lr_scheduler_type="constant",
                logging_steps=count,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                bf16=self.dtype == "bf16",
                gradient_checkpointing=False,
                packing=False,
                max_length=None,
                disable_tqdm=True,
            )
            trainer = SFTTrainer(
                model=self.model,
                args=config,
                train_dataset=Dataset.from_list(rows),
                processing_class=self.tokenizer,
                callbacks=[clock],
            )
            trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        return clock.total, losses[-1]


def main() -> None:
    kind, folder, dtype = sys.argv[1:4]
    batch, length, rank = map(int, sys.argv[4:7])
    worker = {"bare": Bare, "trl": Trl}[kind](folder, dtype, batch, length, rank)
    answers, sys.stdout = sys.stdout, sys.stderr  # trl prints its log
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        count = int(line)
        seconds, loss = worker.run(count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"seconds": seconds, "tokens": count * batch * length, "peak": peak, "loss": loss}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
