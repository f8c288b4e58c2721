"""Reading GGUF: apr against the gguf package, as ratios of their times.

    python benchmarks/dequant.py [--model FILE.gguf] [--rounds 5] [--elements N] [--json]

Per block type, N elements of random blocks to fp32; with --model, also opening that file and
dequantizing all its tensors to fp32 and bf16. Every round runs each contestant once, in turn, so
that a change in the machine's speed meets all of them; the figure is the median of the rounds.
Threads are torch's (OMP_NUM_THREADS sets them); the gguf package uses one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import torch

from apr.checkpoint import GGML_TYPES, dequantize, open_checkpoint
from apr.checkpoint.blocks import DECODERS


def interleaved_medians(
    contestants: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Seconds, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def random_blocks(type_name: str, elements: int) -> np.ndarray:
    """Rows of 4096 elements of any bits, but small ones, lest scales be infinite."""
    kind = GGML_TYPES[type_name]
    shape = (elements // 4096, 4096 // kind.block_elements * kind.block_bytes)
    return np.random.default_rng(0).integers(0, 64, shape, dtype=np.uint8)


def compare_type(type_name: str, elements: int, rounds: int) -> dict[str, float]:
    packed = random_blocks(type_name, elements)
    theirs, tensor = gguf.GGMLQuantizationType[type_name], torch.from_numpy(packed)
    return interleaved_medians(
        {
            "gguf": lambda: gguf.quants.dequantize(packed, theirs),
            "apr": lambda: dequantize(tensor, type_name),
        },
        rounds,
    )


def compare_model(path: str, rounds: int) -> dict[str, dict[str, float]]:
    reader, source = gguf.GGUFReader(path), open_checkpoint(path).tensors

    def theirs() -> None:
        for tensor in reader.tensors:
            gguf.quants.dequantize(tensor.data, tensor.tensor_type)

    def ours(dtype: torch.dtype) -> None:
        for name in source.names():
            source.get(name, dtype)

    opening = interleaved_medians(
        {"gguf": lambda: gguf.GGUFReader(path), "apr": lambda: open_checkpoint(path)}, rounds
    )
    reading = interleaved_medians(
        {
            "gguf": theirs,
            "apr": lambda: ours(torch.float32),
            "apr bf16": lambda: ours(torch.bfloat16),
        },
        rounds,
    )
    to_bf16 = {"gguf": reading["gguf"], "apr": reading.pop("apr bf16")}
    return {"open": opening, "all tensors to fp32": reading, "all tensors to bf16": to_bf16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a .gguf file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    # The gguf package has no decoder for Q8_K.
    for type_name in sorted(DECODERS.keys() - {"Q8_K"}):
        results[type_name] = compare_type(type_name, options.elements, options.rounds)
    if options.model:
        results |= compare_model(options.model, options.rounds)
    report(results, options)


def report(results: dict[str, dict[str, float]], options: Any) -> None:
    if options.json:
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        json.dump({"seconds": results, **machine}, sys.stdout, indent=2)
        return
    print(f"{torch.get_num_threads()} threads, {options.elements} elements a type; medians, ms")
    print(f"{'':22}{'gguf':>10}{'apr':>10}{'gguf/apr':>10}")
    for name, seconds in results.items():
        ratio = seconds["gguf"] / seconds["apr"]
        print(f"{name:22}{seconds['gguf'] * 1e3:10.1f}{seconds['apr'] * 1e3:10.1f}{ratio:10.1f}")


if __name__ == "__main__":
    main()
