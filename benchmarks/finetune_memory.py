"""Peak memory of fine-tuning a model of Qwen2.5-1.5B's shape, and what `--plan` says of it.

    python benchmarks/finetune_memory.py [--layers 28] [--dtype bf16] [--out FILE.json]

Random weights in bf16; one step of one sequence of 512 tokens, rank 16 on q_proj and v_proj. Each
method is a process of its own; memory is its largest resident set (Linux). The model, 3.1 GB, is
written once, into benchmarks/.envs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune import model_folder
from inference import ENVS

SHAPE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
RUNS = {
    "LoRA": ["--method", "lora"],
    "LoRA, --recompute": ["--method", "lora", "--recompute"],
    "QLoRA": ["--method", "qlora"],
    "QLoRA, --no-recompute": ["--method", "qlora", "--no-recompute"],
}
# Runs apr's command line and prints the process's largest resident set, in bytes. (What getrusage
# says would begin with that of the process which started it.)
SCRIPT = """
from apr.cli.main import main
try:
    main()
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024)
"""


def random_model(layers: int) -> Path:
    """The shape's checkpoint with a tokenizer that stays inside its vocabulary."""
    import torch
    from safetensors.torch import save_file

    from apr.model.hf_config import config_from_hf
    from apr.model.transformer import Transformer

    folder = ENVS / f"qwen2.5-1.5b-shaped-{layers}"
    if folder.exists():
        return folder
    config = {**SHAPE, "num_hidden_layers": layers}
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Transformer(config_from_hf(config)).named_parameters()}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=ENVS) as temporary:
        made = Path(temporary, "model")
        made.mkdir()
        for file in model_folder().glob("*token*"):
            shutil.copy(file, made)
        (made / "config.json").write_text(json.dumps(config))
        tensors = {n: torch.randn(s, dtype=torch.bfloat16) * 0.02 for n, s in shapes.items()}
        save_file(tensors, made / "model.safetensors", {"format": "pt"})
        made.rename(folder)
    return folder


def measured(arguments: list[Any]) -> tuple[dict[str, Any], int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "finetune", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    answer, peak = done.stdout.strip().splitlines()
    return json.loads(answer), int(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = random_model(args.layers)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary, "rows.jsonl")
        text = Path(argparse.__file__).read_text()
        rows.write_text(json.dumps({"text": text}) + "\n")
        for name, flags in RUNS.items():
            run = [model, "--data", rows, *flags, "--dtype", args.dtype, "--batch-size", 1]
            run += ["--max-seq-len", 512, "--max-steps", 1]
            planned = measured([*run, "--plan"])[0]["peak_memory_bytes"]
            _, peak = measured([*run, "-o", Path(temporary, name)])
            found[name] = {"planned": planned, "peak": peak}
            print(
                f"  {name:22} peak {peak / 1e9:.2f} GB, planned {planned / 1e9:.2f}"
                f" ({planned / peak - 1:+.0%}), {peak / found['LoRA']['peak']:.0%} of LoRA's",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
