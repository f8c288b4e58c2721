"""What `--plan` says against the memory that a process really took."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apr.checkpoint import open_checkpoint
from apr.model.families import config_from_checkpoint
from apr.train.memory_plan import layer_bytes
from apr.train.train_settings import LoraSettings

from .tiny import write_model, write_rows

# Large enough for its weights and activations, and not the interpreter, to decide: 85 million.
SIZES = {
    "vocab_size": 24000,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    write_model(folder / "model", **SIZES)
    text = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(120)) for i in range(40)]
    write_rows(folder / "rows.jsonl", [{"text": t} for t in text])
    return folder


def test_dropout_and_dora_keep_more(folder: Path) -> None:
    """Numbers kept of a token in a layer with all its linear layers learned, in bf16."""
    config = config_from_checkpoint(open_checkpoint(folder / "model"))
    every = LoraSettings(targets=("all-linear",))
    plain = 4 * 512 + 2 * 512 + 2 * 128 + 3 * 2048
    assert layer_bytes(config, 2, "lora", every) == 2 * plain
    # Instead of what q, k, v share, gate and up share, and down's input: an input and a mask each.
    inputs = 3 * 512 + 512 + 2 * 512 + 2048
    dropout = plain - 2 * 512 - 2048 + inputs + inputs // 2
    assert layer_bytes(config, 2, "lora", replace(every, dropout=0.1)) == 2 * dropout
    outputs = 512 + 2 * 128 + 512 + 2 * 2048 + 512
    assert layer_bytes(config, 2, "lora", replace(every, dora=True)) == 2 * (plain + outputs)


@pytest.mark.skipif(sys.platform != "linux", reason="peak resident set is read from /proc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="weights lie on the GPU")
@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "lora"],
        *(
            pytest.param(flags, marks=pytest.mark.slow)
            for flags in (
                ["--method", "qlora", "--targets", "all-linear,embed_tokens"],
                ["--recompute", "--targets", "all-linear"],
                ["--targets", "all-linear", "--dora"],
                ["--targets", "all-linear", "--lora-dropout", "0.1"],
                ["--method", "qlora", "--no-recompute"],
                ["--recompute", "--dtype", "fp32"],
                ["--method", "full"],
                ["--method", "full", "--dtype", "fp32", "--recompute"],
                ["--method", "full", "--accumulate", "2"],
            )
        ),
    ],
)
def test_the_plan_is_within_15_percent_of_the_peak(
    folder: Path, tmp_path: Path, flags: list[str]
) -> None:
    command = [
        "finetune", str(folder / "model"), "--data", str(folder / "rows.jsonl"), *flags,
        "--max-seq-len", "512", "--batch-size", "4", "--max-steps", "2", "--json",
    ]  # fmt: skip
    script = (
        "import sys; from apr.cli.main import main\n"
        "try: main()\n"
        "finally: print('peak', *(l.split()[1] for l in open('/proc/self/status') if 'VmHWM' in l))"
    )

    def run(*more: str) -> tuple[dict[str, object], int]:
        done = subprocess.run(
            [sys.executable, "-c", script, *command, *more], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        answer, peak = done.stdout.strip().splitlines()
        return json.loads(answer), int(peak.split()[1]) * 1024

    planned, _ = run("--plan")
    _, peak = run("-o", str(tmp_path / "run"))
    expected = planned["peak_memory_bytes"]
    assert isinstance(expected, int)
    assert abs(expected / peak - 1) < 0.15, (
        f"planned {expected / 1e9:.2f}, took {peak / 1e9:.2f} GB"
    )
