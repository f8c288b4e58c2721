"""CPU inference of SmolLM2-135M in bf16: apr against llama.cpp and transformers, in one run.

    python benchmarks/inference.py [--rounds 5] [--threads N] [--out FILE.json]

Three tests: prefill of 512 tokens; one stream of 128 tokens from an empty context; 32 streams of
128 tokens after 64-token prompts (decode phase only). Greedy everywhere. Each engine is one
process that waits on its standard input while the others work; every round runs each test once in
each engine, in turn, so that a change in the machine's speed meets all of them. Figures are
medians over the rounds; ratios are medians of the rounds' ratios.

The peers live in environments of their own under benchmarks/.envs, made on the first run
(llama-cpp-python is compiled for this machine, which takes about ten minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENVS = HERE / ".envs"
CONSTRAINTS = HERE.parent / "constraints.txt"
MODEL = "smollm2-135m"
TESTS = {
    "prefill 512": ("prefill", 512),
    "1 stream x 128": ("single", 128),
    "32 streams x 128": ("streams", 32, 64, 128),
}
LLAMA_FORMATS = ("bf16", "f16", "q8_0", "q4_0")


def environment(name: str, packages: list[str], variables: dict[str, str]) -> Path:
    """The python of a peer's virtual environment, made if it is not there."""
    python = ENVS / name / "bin" / "python"
    done = ENVS / name / "installed"
    if not done.exists():
        print(f"making the environment of {name} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", ENVS / name], check=True)
        install = [python, "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(install, check=True, env={**os.environ, **variables})
        done.touch()
    return python


class Ended(Exception):
    """An engine's process ended without an answer."""


class Engine:
    """One engine in a process of its own, answering one test at a time."""

    def __init__(self, command: list[str | Path], threads: int) -> None:
        limits = {"OMP_NUM_THREADS": str(threads), "APR_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **limits},
        )
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Ended(f"its process ended, status {self.process.wait()}")
        return json.loads(line)

    def run(self, test: tuple[str | int, ...]) -> float:
        """Tokens per second of one test."""
        assert self.process.stdin is not None
        print(*test, file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer["tokens"] / answer["seconds"]


def engines(threads: int, with_transformers: bool) -> dict[str, Engine]:
    """Those that start; a peer that does not is told and left out."""
    from apr.convert.import_checkpoint import import_checkpoint
    from apr.hub import resolve

    gguf = resolve(MODEL)
    llama = environment(
        "llama.cpp",
        ["llama-cpp-python==0.3.36", "gguf", "numpy"],
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())},
    )
    formats = ENVS / "formats"
    subprocess.run(
        [llama, HERE / "peers/gguf_formats.py", gguf, formats],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    worker = [sys.executable, HERE / "peers/apr_worker.py"]
    commands: dict[str, list[str | Path]] = {
        "apr bf16": [*worker, formats / "bf16.gguf"],
        "apr as stored": [*worker, gguf],  # the published file's own blocks
    }
    for kind in LLAMA_FORMATS:
        command = [llama, HERE / "peers/llama_cpp_worker.py", formats / f"{kind}.gguf"]
        commands[f"llama.cpp {kind}"] = [*command, str(threads), "flash"]
    if with_transformers:
        python = environment(
            "transformers", ["-c", str(CONSTRAINTS), "torch", "transformers", "numpy"], {}
        )
        folder = ENVS / "hf-bf16"
        if not folder.exists():
            import_checkpoint(gguf, folder, dtype="bf16")
        theirs = [python, HERE / "peers/transformers_worker.py", folder, str(threads)]
        commands["transformers bf16"] = theirs
    found = {}
    for name, command in commands.items():
        try:
            found[name] = Engine(command, threads)
        except Ended as error:
            leave_out(name, error)
    return found


def leave_out(name: str, error: Ended) -> None:
    """A peer's crash is told; ours ends the run."""
    if name.startswith("apr"):
        raise SystemExit(f"{name}: {error}")
    print(f"{name} is left out: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    running = engines(args.threads, not args.without_transformers)
    rates: dict[str, dict[str, list[float]]] = {t: {e: [] for e in running} for t in TESTS}
    for name, test in TESTS.items():
        for number in range(args.rounds + 1):  # the first is for warming up
            for label, engine in list(running.items()):
                try:
                    rate = engine.run(test)
                except Ended as error:
                    leave_out(f"{label}, {name}", error)
                    del running[label]
                    continue
                if number:
                    rates[name][label].append(rate)
            print(f"{name}: round {number} of {args.rounds}", file=sys.stderr)
    report(rates)
    if args.out:
        args.out.write_text(json.dumps(rates, indent=1))


def report(rates: dict[str, dict[str, list[float]]]) -> None:
    for test, by_engine in rates.items():
        print(f"\n{test}")
        ours = by_engine["apr bf16"]
        for engine, values in by_engine.items():
            if len(values) < len(ours):
                continue  # it crashed
            ratios = [a / b for a, b in zip(ours, values, strict=True)]
            print(
                f"  {engine:18} {statistics.median(values):8.1f} tok/s"
                f"  (min {min(values):.1f}, max {max(values):.1f})"
                f"  apr/this {statistics.median(ratios):5.2f}"
            )


if __name__ == "__main__":
    main()
