"""LoRA training of SmolLM2-135M on CPU: apr against trl and a bare transformers + peft loop.

    python benchmarks/finetune.py [--qlora] [--rounds 5] [--steps 2] [--dtype bf16]
        [--peer-dtype fp32] [--peers bare,trl] [--threads N] [--warm-up 1] [--model FOLDER]
        [--peer-python PYTHON] [--out FILE.json]

Rank 16 on q_proj and v_proj, sequences of 512 tokens, all with loss, batch 4, AdamW. Every engine
is a process that waits while the others work; each round takes a few steps in each, in turn.
Figures are medians over the rounds, ratios medians of the rounds' ratios; memory is the largest
resident set. --qlora: the base in NF4, against trl with bitsandbytes. trl runs without activation
recomputation (its default keeps less and is slower). --peer-dtype: where a processor multiplies no
bf16, peers are fastest in fp32, and there --warm-up 0 --steps 1 --rounds 1 spares a step of several
minutes in bf16. The peers' environment is made on the first run unless --peer-python names one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from inference import CONSTRAINTS, ENVS, HERE, MODEL, environment

BATCH, LENGTH, RANK = 4, 512, 16
OURS = "apr"
PEERS = {"bare": "transformers + peft", "trl": "trl"}


class Engine:
    def __init__(self, command: list[Any], threads: int) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended early")
        return json.loads(line)

    def run(self, steps: int) -> dict[str, float]:
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self._answer()


def model_folder() -> Path:
    from apr.convert.import_checkpoint import import_checkpoint
    from apr.hub import resolve

    folder = ENVS / "hf-bf16"
    if not folder.exists():
        import_checkpoint(resolve(MODEL), folder, dtype="bf16")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qlora", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the first round")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--peer-dtype", choices=["bf16", "fp32"], help="[default: --dtype]")
    parser.add_argument("--peers", default="bare,trl", help="which of the two")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if unknown := [kind for kind in args.peers.split(",") if kind not in PEERS]:
        parser.error(f"--peers {unknown[0]} is unknown: bare, trl")
    peer = args.peer_python or environment(
        "trl", ["-c", str(CONSTRAINTS), "torch", "transformers", "peft", "trl", "datasets",
                "bitsandbytes"], {},
    )  # fmt: skip
    folder = args.model or model_folder()
    shape = [BATCH, LENGTH, RANK]
    peer_dtype = args.peer_dtype or args.dtype
    ours = [sys.executable, HERE / "peers/apr_finetune_worker.py", folder, args.dtype, *shape]
    nf4 = ["nf4"] if args.qlora else []

    def theirs(kind: str) -> Engine:
        worker = HERE / "peers/finetune_worker.py"
        return Engine([peer, worker, kind, folder, peer_dtype, *shape, *nf4], args.threads)

    engines = {
        OURS: Engine([*ours, *nf4], args.threads),
        "apr, recomputing": Engine([*ours, *nf4, "recompute"], args.threads),
    }
    for kind in args.peers.split(","):
        engines[PEERS[kind]] = theirs(kind)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for engine in engines.values():
        if args.warm_up:
            engine.run(args.warm_up)
    for number in range(args.rounds):
        for name, engine in engines.items():
            rounds[name].append(engine.run(args.steps))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    kinds = args.dtype if peer_dtype == args.dtype else f"{args.dtype}, peers {peer_dtype}"
    report(f"{kinds}, NF4" if args.qlora else kinds, rounds)
    if args.out:
        args.out.write_text(json.dumps(rounds, indent=1))


def report(dtype: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    print(f"{dtype}, batch {BATCH} of {LENGTH} tokens, rank {RANK} on q_proj and v_proj")
    rates = {name: [r["tokens"] / r["seconds"] for r in runs] for name, runs in rounds.items()}
    ours, memory = rates[OURS], rounds[OURS][-1]["peak"]
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(ours, values, strict=True)]
        peak = rounds[name][-1]["peak"]
        print(
            f"  {name:20} {statistics.median(values):7.1f} tok/s"
            f" (min {min(values):.1f}, max {max(values):.1f})  apr/this"
            f" {statistics.median(ratios):5.2f}  peak {peak / 1e9:.2f} GB"
            f"  apr/this {memory / peak:.2f}  loss {rounds[name][-1]['loss']:.3f}"
        )


if __name__ == "__main__":
    main()
