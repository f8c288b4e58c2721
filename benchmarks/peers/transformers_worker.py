"""Times transformers in bf16. Runs in the peer's own environment; protocol as llama_cpp_worker."""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def prompt(length: int, salt: int = 0) -> list[int]:
    return [100 + (i * 37 + salt * 101) % 20000 for i in range(length)]


class Bench:
    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    def prefill(self, length: int) -> tuple[float, int]:
        ids = torch.tensor([prompt(length)])
        start = time.perf_counter()
        self.model(ids, logits_to_keep=1).logits[:, -1].argmax(-1).item()
        return time.perf_counter() - start, length

    def single(self, tokens: int) -> tuple[float, int]:
        token, cache = torch.tensor([[1]]), None
        start = time.perf_counter()
        for _ in range(tokens):
            out = self.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = out.logits[:, -1:].argmax(-1)
        return time.perf_counter() - start, tokens

    def streams(self, count: int, length: int, tokens: int) -> tuple[float, int]:
        ids = torch.tensor([prompt(length, s) for s in range(count)])
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(tokens):
            out = self.model(
                token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1
            )
            token = out.logits[:, -1:].argmax(-1)
        return time.perf_counter() - start, count * tokens


@torch.inference_mode()
def main() -> None:
    bench = Bench(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        seconds, tokens = getattr(bench, name)(*map(int, numbers))
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
