"""Training of SmolLM2-135M on preferences on CPU: apr against trl, DPO and ORPO.

    python benchmarks/align.py [--methods dpo,orpo] [--rounds 3] [--steps 1] [--dtype bf16]
        [--prompt 256] [--answer 256] [--threads N] [--peer-python PYTHON] [--out FILE.json]

Rank 16 on q_proj and v_proj, batch 4. A prompt and an answer have 512 tokens together; apr reads
the prompt once for both answers. Every engine is a process that waits while the others work; each
round takes steps in each, in turn. Ratios are medians of the rounds'; memory is the largest
resident set. The reference's log-probabilities are part of every step on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune import Engine, model_folder
from inference import CONSTRAINTS, HERE, environment

BATCH, RANK = 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="dpo,orpo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    peer = args.peer_python or environment(
        "trl", ["-c", str(CONSTRAINTS), "torch", "transformers", "peft", "trl", "datasets"], {}
    )
    shape = [model_folder(), args.dtype, BATCH, args.prompt, args.answer, RANK]
    found: dict[str, Any] = {}
    for method in args.methods.split(","):
        engines = {
            "apr": Engine(
                [sys.executable, HERE / "peers/apr_align_worker.py", method, *shape], args.threads
            ),
            "trl": Engine([peer, HERE / "peers/align_worker.py", method, *shape], args.threads),
        }
        for engine in engines.values():
            engine.run(1)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for number in range(args.rounds):
            for name, engine in engines.items():
                rounds[name].append(engine.run(args.steps))
            print(f"{method}: round {number + 1} of {args.rounds}", file=sys.stderr)
        for engine in engines.values():
            engine.process.kill()
        found[method] = rounds
        report(method, rounds)
    if args.out:
        command = " ".join(["python benchmarks/align.py", *sys.argv[1:]])
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True)
        facts = {"command": command, "commit": commit.stdout.decode().strip()}
        facts |= {"processor": processor(), "threads": args.threads}
        args.out.write_text(json.dumps({**facts, "rounds": found}, indent=1) + "\n")


def report(method: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    rates = {name: [r["pairs"] / r["seconds"] for r in runs] for name, runs in rounds.items()}
    peaks = {name: runs[-1]["peak"] for name, runs in rounds.items()}
    for name, values in rates.items():
        print(
            f"{method} {name}: {statistics.median(values):.3f} pairs/s, {peaks[name] / 1e9:.2f} GB"
        )
    ratios = [a / b for a, b in zip(rates["apr"], rates["trl"], strict=True)]
    print(
        f"{method}: apr {statistics.median(ratios):.2f} times trl's pairs/s (min {min(ratios):.2f},"
        f" max {max(ratios):.2f}), {peaks['apr'] / peaks['trl']:.2f} of its memory"
    )


def processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
