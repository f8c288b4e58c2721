"""Times steps of apr on preferences. Protocol and settings as align_worker.py.

The reference's log-probabilities are computed in each step, as in the first epoch of a run; later
epochs, and later runs on the same data, have them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from apr.align.align_settings import PreferenceSettings
from apr.align.losses import preference
from apr.align.preferences import Preference, make_batch
from apr.checkpoint import open_checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.train.base import load_base
from apr.train.lora import adapters_off, add_lora
from apr.train.objective import target_logprobs
from apr.train.optimizer import Optimizer
from apr.train.packing import Document
from apr.train.train_settings import LoraSettings, TrainSettings


def main() -> None:
    method, folder, dtype = sys.argv[1:4]
    batch, prompt, answer, rank = map(int, sys.argv[4:8])
    model = load_base(open_checkpoint(folder), "lora", DTYPES[dtype], torch.device("cpu"))
    add_lora(model, LoraSettings(rank=rank, alpha=2.0 * rank))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = Optimizer(trained, TrainSettings(learning_rate=1e-5))
    settings = PreferenceSettings(method)  # type: ignore[arg-type]
    objective = preference(settings)
    learned, step = np.ones(answer, bool), 0
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        for _ in range(count):
            generator = torch.Generator().manual_seed(step)
            size = (batch, prompt + 2 * answer)
            ids = torch.randint(1000, 40000, size, generator=generator).numpy().astype(np.int32)
            rows = [
                Preference(
                    row[:prompt],
                    tuple(Document(part, learned) for part in np.split(row[prompt:], 2)),
                    (True, False),
                )
                for row in ids
            ]
            data = make_batch(rows, over_prompts=settings.nll_over == "sequence")
            if settings.uses_reference:
                with torch.no_grad(), adapters_off(model):
                    known = target_logprobs(model.eval(), data.packed)
                data = replace(data, reference=known)
            loss, _ = objective(model.train(), data)
            (loss / batch).backward()
            optimizer.step(1e-5)
            step += 1
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"seconds": seconds, "pairs": count * batch, "peak": peak}
        print(json.dumps({**found, "loss": float(loss.detach()) / batch}), flush=True)


if __name__ == "__main__":
    main()
