"""Times LoRA training steps of apr. Protocol as finetune_worker.py; its loss and optimizer."""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import torch

from apr.checkpoint import open_checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.common.memory import return_large_blocks
from apr.train.base import load_base
from apr.train.lora import add_lora
from apr.train.objective import token_loss
from apr.train.optimizer import Optimizer
from apr.train.packing import Document, make_batch
from apr.train.train_settings import LoraSettings, TrainSettings


def main() -> None:
    folder, dtype = sys.argv[1:3]
    batch, length, rank = map(int, sys.argv[3:6])
    recompute = "recompute" in sys.argv
    if recompute or "nf4" in sys.argv:
        return_large_blocks()
    method = "qlora" if "nf4" in sys.argv else "lora"
    model = load_base(open_checkpoint(folder), method, DTYPES[dtype], torch.device("cpu"))
    add_lora(model, LoraSettings(rank=rank, alpha=2.0 * rank))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = Optimizer(trained, TrainSettings(learning_rate=2e-4))
    learned = np.ones(length, bool)
    step = 0
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        for _ in range(count):
            generator = torch.Generator().manual_seed(step)
            ids = torch.randint(1000, 40000, (batch, length), generator=generator).numpy()
            documents = [Document(row.astype(np.int32), learned) for row in ids]
            data = make_batch(documents)
            loss = token_loss(model.train(), data, recompute) / data.weight
            loss.backward()
            optimizer.step(2e-4)
            step += 1
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {
            "seconds": seconds,
            "tokens": count * batch * length,
            "peak": peak,
            "loss": float(loss.detach()),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
