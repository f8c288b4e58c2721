"""HumanEval+ beside EvalPlus: programs a second, and from model to score.

    python benchmarks/scoring.py [--rounds 5] [--samples FILE] [--model FOLDER] [--tasks 8]

Scoring: `apr score` and `evalplus.evaluate` judge the same samples file, whole commands, with two
workers; expected answers are computed before, by both. The verdicts must be equal, or the figures
mean nothing: tasks that differ are printed. EvalPlus' least limit for a test is set to today's 4 s.

Model to score (with --model): `evalplus.codegen` with transformers writes greedy solutions for the
first tasks, the fastest way it has for one model on a CPU; `apr eval` generates and judges them.
That EvalPlus cannot judge a part of the benchmark counts in its favour.

Needs the data of HumanEval+ (`apr data pull humaneval+`, or --data FILE). EvalPlus lives in an
environment of its own under benchmarks/.envs. Rounds are interleaved; medians are reported.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from apr.engine.runners.runtime import multiplies_bf16
from apr.hub.data_files import find_data

HERE = Path(__file__).parent
ENVS = HERE / ".envs"
CONSTRAINTS = HERE.parent / "constraints.txt"
WORKERS = 2


def evalplus() -> Path:
    """EvalPlus' Python, installed if it is not there."""
    folder = ENVS / "evalplus"
    if not (folder / "installed").exists():
        print("making the environment of evalplus (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        torch_pin = next(t for t in CONSTRAINTS.read_text().split() if t.startswith("torch=="))
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, torch_pin], check=True)
        pins = folder / "pins.txt"
        pins.write_text(torch_pin + "\n")
        subprocess.run([*pip, "-c", pins, "evalplus==0.3.1", "accelerate"], check=True)
        (folder / "installed").touch()
    return folder / "bin" / "python"


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    begin = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {(done.stdout + done.stderr)[-2000:]}")
    return time.perf_counter() - begin, done.stdout


def written_samples(path: Path, data: Path) -> Path:
    """The canonical solutions, as samples."""
    rows = [json.loads(line) for line in unpacked(data, path).read_text().splitlines()]
    solutions = {row["task_id"]: row["prompt"] + row["canonical_solution"] for row in rows}
    samples = [{"task_id": name, "solution": text} for name, text in solutions.items()]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def unpacked(path: Path, to: Path) -> Path:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as packed:
        to.write_bytes(packed.read())
    return to


def ours(samples: Path, data: Path, cache: Path) -> tuple[float, dict[str, list[bool]]]:
    program = [sys.executable, "-c", "from apr.cli.main import main; main()"]
    arguments = ["score", str(samples), "--benchmark", "humaneval+", "--data", str(data), "--json"]
    arguments += ["--workers", str(WORKERS)]
    seconds, output = timed([*program, *arguments], {"APR_CACHE": str(cache)})
    tasks = json.loads(output)["per_task"]
    return seconds, {name: [v["verdict"] == "passed" for v in vs] for name, vs in tasks.items()}


def theirs(samples: Path, data: Path, cache: Path) -> tuple[float, dict[str, list[bool]]]:
    result = samples.with_name(f"{samples.stem}_eval_results.json")
    result.unlink(missing_ok=True)
    arguments = ["--dataset", "humaneval", "--samples", str(samples), "--parallel", str(WORKERS)]
    arguments += ["--min_time_limit", "4"]
    environment = {"HUMANEVAL_OVERRIDE_PATH": str(data), "XDG_CACHE_HOME": str(cache)}
    seconds, _ = timed([str(evalplus()), "-m", "evalplus.evaluate", *arguments], environment)
    found = json.loads(result.read_text())["eval"]
    return seconds, {
        name: [r["base_status"] == r["plus_status"] == "pass" for r in rows]
        for name, rows in found.items()
    }


def scoring(samples: Path, data: Path, rounds: int, work: Path) -> None:
    plain = unpacked(data, work / "data.jsonl")
    texts = unpacked(samples, work / "samples.jsonl")
    count = sum(1 for line in texts.open() if line.strip())
    ours(texts, data, work), theirs(texts, plain, work)  # expected answers
    seconds: dict[str, list[float]] = {"apr": [], "evalplus": []}
    for number in range(rounds):
        mine, verdicts = ours(texts, data, work)
        other, official = theirs(texts, plain, work)
        seconds["apr"].append(mine)
        seconds["evalplus"].append(other)
        print(f"round {number + 1}: apr {mine:.1f} s, evalplus {other:.1f} s", file=sys.stderr)
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:9} {middle:7.2f} s, {count / middle:6.1f} programs a second")
    ratios = [b / a for a, b in zip(seconds["apr"], seconds["evalplus"], strict=True)]
    print(f"evalplus / apr, time: {statistics.median(ratios):.2f}")
    different = [name for name in official if official[name] != verdicts[name]]
    print(f"verdicts that differ: {', '.join(different) or 'none'}")


def end_to_end(model: Path, data: Path, tasks: int, rounds: int, work: Path) -> None:
    plain = unpacked(data, work / "data.jsonl")
    seconds: dict[str, list[float]] = {"apr": [], "evalplus": []}
    program = [sys.executable, "-c", "from apr.cli.main import main; main()"]
    arguments = ["eval", str(model), "--benchmark", "humaneval+", "--data", str(data)]
    arguments += ["--limit", str(tasks), "--out", str(work / "run"), "--fresh", "--json"]
    # Kernels are compiled and expected answers found once in a model's life.
    timed([*program, *arguments, "--max-tokens", "8"], {"APR_CACHE": str(work)})
    for number in range(rounds):
        mine, _ = timed([*program, *arguments], {"APR_CACHE": str(work)})
        shutil.rmtree(work / "evalplus", ignore_errors=True)
        options = ["--model", str(model), "--dataset", "humaneval", "--backend", "hf"]
        options += ["--greedy", "--root", str(work / "evalplus"), "--id_range", f"[0,{tasks}]"]
        # Its default, bf16, is many times slower where the processor does not multiply it.
        options += ["--attn_implementation", "sdpa"]
        options += ["--dtype", "bfloat16" if multiplies_bf16(torch.device("cpu")) else "float32"]
        environment = {"HUMANEVAL_OVERRIDE_PATH": str(plain), "XDG_CACHE_HOME": str(work)}
        command = [str(evalplus()), "-m", "evalplus.codegen", *options]
        other, _ = timed(command, environment)
        seconds["apr"].append(mine)
        seconds["evalplus"].append(other)
        print(f"round {number + 1}: apr {mine:.1f} s, evalplus {other:.1f} s", file=sys.stderr)
    for name, values in seconds.items():
        print(f"{name:9} {statistics.median(values):7.2f} s for {tasks} tasks")
    ratios = [b / a for a, b in zip(seconds["apr"], seconds["evalplus"], strict=True)]
    print(f"evalplus / apr, time: {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=Path, help="default: the canonical solutions")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; only then end to end")
    parser.add_argument("--tasks", type=int, default=8)
    options = parser.parse_args()
    data = find_data("humaneval+", options.data)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.model is not None:
            end_to_end(options.model, data, options.tasks, options.rounds, work)
            return
        samples = options.samples or written_samples(work / "canonical.jsonl", data)
        scoring(samples, data, options.rounds, work)


if __name__ == "__main__":
    main()
