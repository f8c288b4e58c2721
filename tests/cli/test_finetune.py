"""`apr finetune` on a tiny model: training, killed and resumed runs, plans, merging, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from train.tiny import questions, write_model, write_rows

from .command import Command

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny")
    write_rows(folder / "rows.jsonl", questions(60))
    return folder


@pytest.fixture
def apr(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    return Command(monkeypatch, capfd)


RUN = ("finetune", "tiny", "--data", "rows.jsonl", "--max-seq-len", 160, "--batch-size", 2)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_an_adapter_learns_and_loads_in_the_merge(apr: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = apr(*RUN, "--epochs", 3, "--lr", 5e-2, "--eval-split", 0.2, "-o", run, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["last_eval"] < result["first_eval"] - 0.2 and result["best_epoch"] == 3
    assert result["trainable_parameters"] == 2 * 16 * (32 + 128 + 32 + 64)
    assert {path.name for path in run.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "apr_manifest.json", "best",
        "checkpoints", "last", "loss.png", "metrics.jsonl", "report.json", "report.md", "run.json",
    }  # fmt: skip
    manifest = json.loads((run / "apr_manifest.json").read_text())
    assert manifest["command"] == "finetune" and len(manifest["settings"]["data_sha256"]) == 1
    merged = apr("finetune", "tiny", "--adapter", run, "--merge", "-o", tmp_path / "merged")
    assert merged.code == 0 and "largest logit difference" in merged.out
    again = apr("finetune", "tiny", "--adapter", run, "--merge", "-o", tmp_path / "other", "--json")
    value = json.loads(again.out)
    # fp32 sums in another order, of logits around 1.
    assert value["max_logit_difference"] < 1e-4 * value["max_logit"]


def test_the_same_command_again_goes_on(apr: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = apr(*RUN, "--max-steps", 3, "-o", run)
    assert first.code == 0 and first.out.startswith(f"{run}\n3 steps")
    refused = apr(*RUN, "--max-steps", 3, "-o", run)
    assert refused.code == 2 and "it is complete (--force" in refused.err
    other = apr(*RUN, "--max-steps", 3, "--lr", 1e-3, "-o", run)
    assert other.code == 2
    assert "other settings: train.learning_rate was 0.0002, now 0.001" in other.err
    forced = apr(*RUN, "--max-steps", 2, "-o", run, "--force")
    assert forced.code == 0 and len(metrics(run)) == 2


def test_killed_runs_have_the_same_losses(folder: Path, tmp_path: Path) -> None:
    """kill -9, at any moment, with dropout: every line of the metrics is the same."""
    arguments = [*RUN, "--epochs", 4, "--lora-dropout", 0.1, "--save-every", 3, "--eval-split", 0.1]

    def start(run: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "apr", *map(str, arguments), "-o", str(run)]
        environment = {**os.environ, "APR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    whole = start(tmp_path / "whole")
    _, error = whole.communicate()
    assert whole.returncode == 0, error.decode()
    wanted = metrics(tmp_path / "whole")
    assert len(wanted) > 20
    parts = tmp_path / "parts"
    for reached in (5, 12):
        killed = start(parts)
        while killed.poll() is None:
            lines = parts / "metrics.jsonl"
            if lines.exists() and lines.read_text().count("\n") >= reached:
                break
            time.sleep(0.002)
        assert killed.poll() is None, "ended before it was killed"
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    last = start(parts)
    _, error = last.communicate()
    assert last.returncode == 0, error.decode()
    assert metrics(parts) == wanted
    theirs = (tmp_path / "whole/adapter_model.safetensors").read_bytes()
    assert (parts / "adapter_model.safetensors").read_bytes() == theirs


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_whole_model(apr: Command, tmp_path: Path, dtype: str) -> None:
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    done = apr(*RUN, "--method", "full", "--lr", 3e-3, "--dtype", dtype, "-o", run, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["last_loss"] < result["first_loss"] - 0.5
    model = AutoModelForCausalLM.from_pretrained(run)
    assert model.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    before = AutoModelForCausalLM.from_pretrained("tiny", dtype=model.dtype).state_dict()
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert "model.norm.weight" in changed and len(changed) > 15


def test_training_goes_on_from_an_adapter(apr: Command, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    apr(*RUN, "--lr", 5e-2, "-o", first, "--targets", "all-linear", "--rank", 4)
    done = apr(*RUN, "--adapter", first, "-o", second, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["first_loss"] < metrics(first)[0]["loss"] - 0.15
    config = json.loads((second / "adapter_config.json").read_text())
    assert config["r"] == 4 and len(config["target_modules"]) == 7


def test_filling_in_the_middle_is_learned(apr: Command, folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(40)]
    data = write_rows(tmp_path / "text.jsonl", rows)
    run = tmp_path / "run"
    fim = ("--fim-rate", 0.8, "--fim-spm-rate", 0.5, "--fim-tokens", "<|im_start|>,@,`")
    arguments = ("finetune", "tiny", "--data", data, *fim, "--lr", 5e-2, "--epochs", 3)
    done = apr(*arguments, "--eval-split", 0.2, "-o", run, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["last_eval"] < result["first_eval"] - 0.1
    assert sum(result["data"]["forms"].values()) == 40 and result["data"]["forms"]["SPM"] > 8
    shown = apr(*arguments, "--show-samples", 5)
    assert "«<|im_start|>" in shown.out
    # What it was trained with stays with it: adapter, merged model, and whoever runs that.
    named = {"prefix": "<|im_start|>", "suffix": "@", "middle": "`"}
    merged = tmp_path / "merged"
    assert json.loads((run / "fim.json").read_text()) == named
    assert apr("finetune", "tiny", "--adapter", run, "--merge", "-o", merged).code == 0
    assert json.loads((merged / "fim.json").read_text()) == named
    (tmp_path / "gap.py").write_text("def f3(x):\n    <FILL>\n")
    ask = ("--fim", tmp_path / "gap.py", "--max-tokens", 8)
    assert "none of <|fim_prefix|>" in apr("run", "tiny", *ask).err
    filled = [apr("run", merged, *ask, *more) for more in ((), fim[-2:])]
    assert filled[0].code == 0 and filled[0].out == filled[1].out


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_scores_before_and_after(apr: Command, tmp_path: Path, method: str) -> None:
    """Each is what `apr eval` finds; the same command goes on where it was stopped."""
    run = tmp_path / "run"
    arguments = (*RUN, "--max-steps", 3, "--method", method, "--lr", 1e-2, "-o", run)
    assert apr(*arguments).code == 0
    asked = ("--benchmark-samples", 2, "--benchmark-limit", 2, "--benchmark", "humaneval")
    done = apr(*arguments, *asked, "--json")
    assert done.code == 0, done.err
    (score,) = json.loads(done.out)["scores"]
    assert (score["tasks"], score["samples"]) == (2, 2) and len(score["before"]["pass@1"]) == 3
    assert (run / "scores/before/humaneval/results.json").is_file()
    model = (run,) if method == "full" else ("tiny", "--adapter", run)
    drawn = ("--n-samples", 2, "--temperature", 0.8, "--top-p", 0.95)
    again = ("--limit", 2, "--dtype", "bf16", *drawn)
    assert apr("eval", *model, *again, "--out", tmp_path / "alone").code == 0
    samples = [
        (folder / "samples.jsonl").read_text()
        for folder in (run / "scores/after/humaneval", tmp_path / "alone")
    ]
    assert samples[0] == samples[1]
    assert json.loads((run / "report.json").read_text())["scores"] == [score]
    page = (run / "report.md").read_text()
    assert "| humaneval, 2 tasks, 2 samples each | before | after |" in page
    assert "| pass@1 | 0.0 % (" in page
    # Once more: nothing is generated again.
    store = (run / "scores/after/humaneval/run.sqlite").stat().st_mtime_ns
    shown = apr(*arguments, *asked)
    assert shown.code == 0 and "| pass@1 |" in shown.out
    assert (run / "scores/after/humaneval/run.sqlite").stat().st_mtime_ns == store


def test_the_plan_and_the_samples(apr: Command, tmp_path: Path) -> None:
    done = apr(*RUN, "--plan")
    assert done.code == 0 and "8,192 of " in done.out and "peak memory about" in done.out
    assert "60 rows: 60 kept, 0 truncated, 0 dropped" in done.out
    value = json.loads(apr(*RUN, "--plan", "--json", "--epochs", 2).out)
    assert value["steps"] == 2 * value["batches_per_epoch"]
    assert value["memory"]["trained"] == 16 * value["trainable_parameters"]
    shown = apr(*RUN, "--show-samples", 2)
    assert shown.code == 0 and "«def f():\n    return 1<|im_end|>»" in shown.out
    samples = json.loads(apr(*RUN, "--show-samples", 1, "--json").out)["samples"]
    assert [part["learned"] for part in samples[0]["text"]] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "rows.jsonl"], "no folder to write (-o FOLDER"),
        (["--plan"], "no training data (--data"),
        (["--data", "none.jsonl", "--plan"], "none.jsonl: no such file"),
        (["--data", "rows.jsonl", "--plan", "--method", "magic"], "--method magic is unknown"),
        (["--data", "rows.jsonl", "--plan", "--targets", "wq"], "no layer is called wq"),
        (["--data", "rows.jsonl", "--plan", "--rank", "0"], "--rank is 0"),
        (["--data", "rows.jsonl", "--plan", "--patience", "1"], "--patience without held-out data"),
        (["--data", "rows.jsonl", "--show-samples", "-1"], "--show-samples is -1"),
        (["--data", "rows.jsonl", "--plan", "--dtype", "int8"], "--dtype int8 is unknown"),
        (["--data", "rows.jsonl", "--plan", "--max-seq-len", "999"], "beyond the model's context"),
        (["--data", "rows.jsonl", "--plan", "--max-seq-len", "5"], "no row is left to learn from"),
        (["--data", "rows.jsonl", "--plan", "--eval-split", "0.001"], "is none"),
        (["--data", "rows.jsonl", "--merge", "-o", "x"], "--merge needs --adapter"),
        (["--data", "rows.jsonl", "--plan", "--fim-rate", "0.5"], "none of <|fim_prefix|>"),
        (
            ["--data", "rows.jsonl", "--plan", "--fim-rate", "0.5", "--fim-tokens", "a,b,c"],
            "--fim-rate: no row is plain text",
        ),
        (
            ["--data", "rows.jsonl", "--plan", "--report-to", "wandb"],
            "--report-to wandb is unknown",
        ),
        (["--data", "rows.jsonl", "--plan", "--benchmark", "humanevil"], "humanevil"),
        (["--data", "rows.jsonl", "--adapter", "a", "--merge", "-o", "x"], "with --merge"),
        (
            ["--data", "rows.jsonl", "--plan", "--method", "full", "--rank", "4"],
            "--rank has no meaning with --method full",
        ),
        (
            ["--data", "rows.jsonl", "--plan", "--fim-spm-rate", "0.5"],
            "--fim-spm-rate has no meaning without --fim-rate",
        ),
        (
            ["--data", "rows.jsonl", "--plan", "--dora", "--targets", "q_proj,lm_head"],
            "--dora does not go with lm_head",
        ),
        (["--data", "rows.jsonl", "--plan", "--adapter", "tiny"], "no adapter_config.json"),
        (
            [
                "--data",
                "rows.jsonl",
                "--plan",
                "--benchmark",
                "humaneval",
                "--benchmark-limit",
                "0",
            ],
            "--benchmark-limit is 0",
        ),
        (["--data", "rows.jsonl", "--plan", "--benchmark-samples", "9"], "without --benchmark"),
        (
            ["--data", "rows.jsonl", "--plan", "--benchmark", "infilling-single-line"],
            "the data of infilling-single-line is not here",
        ),
        (["--data", "hf://datasets/rows", "--plan"], "hf://datasets/rows: not a data set"),
        (["--data", "rows.jsonl", "-o", "tiny"], "the model that is to be read"),
        (["--data", "rows.jsonl", "-o", "rows.jsonl"], "rows.jsonl is a file"),
    ],
)
def test_errors_are_one_line(apr: Command, arguments: list[str], message: str) -> None:
    done = apr("finetune", "tiny", *arguments)
    assert done.code == 2 and done.out == ""
    assert done.err.splitlines()[-1].startswith("apr: ") and message in done.err


def test_what_does_not_fit_is_told_before_training(apr: Command, tmp_path: Path) -> None:
    """A folder that cannot be made, and an adapter of another model."""
    (tmp_path / "file").write_text("")
    done = apr(*RUN, "-o", tmp_path / "file" / "run")
    assert done.code == 1 and "run cannot be written: Not a directory" in done.err
    write_model(tmp_path / "wide", hidden_size=64)
    run = tmp_path / "run"
    assert apr("finetune", tmp_path / "wide", *RUN[2:], "--max-steps", 1, "-o", run).code == 0
    done = apr(*RUN, "--adapter", run, "--plan")
    assert (done.code, done.out) == (1, "") and "(name the base it was trained on)" in done.err
