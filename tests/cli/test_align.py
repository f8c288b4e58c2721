"""`apr align` on a tiny model: every method, stopped runs, the reference's cache, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apr.align import reference
from train.tiny import write_model, write_rows

from .command import Command

pytest.importorskip("transformers")


def pairs(count: int) -> list[dict[str, str]]:
    """The better answer is the sum."""
    return [
        {"prompt": f"{i}+{i}=", "chosen": f"{2 * i}.", "rejected": f"{i} and more."}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny")
    write_model(folder / "wide", vocab_size=300)
    write_rows(folder / "pairs.jsonl", pairs(24))
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


RUN = ("align", "tiny", "--data", "pairs.jsonl", "--eval-split", 0.2, "--lr", 2e-2, "--seed", 1)


def lines(run: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo", "kto"])
def test_a_method_learns_what_is_preferred(apr: Command, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    done = apr(*RUN, "--method", method, "--epochs", 4, "-o", run, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    first, last = result["measures"]["accuracy"]
    assert last >= 0.8 > first or last == 1.0
    assert result["last_eval"] < result["first_eval"]
    manifest = json.loads((run / "apr_manifest.json").read_text())
    assert manifest["command"] == "align"
    assert manifest["settings"]["preference"]["algorithm"] == method
    report = (run / "report.md").read_text()
    assert "| accuracy |" in report and "perplexity" not in report
    assert load_file(run / "adapter_model.safetensors")


@pytest.mark.parametrize("train", ["lora", "qlora", "full"])
def test_a_stopped_run_ends_with_the_same_bytes(
    apr: Command, tmp_path: Path, train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*RUN, "--train", train, "--save-every", 1, "--epochs", 2]
    assert apr(*flags, "-o", tmp_path / "whole").code == 0
    from apr.train import loop

    save, calls = loop.save_state, []

    def stop(*arguments: Any) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", stop)
    assert apr(*flags, "-o", tmp_path / "halves").code == 130
    monkeypatch.setattr(loop, "save_state", save)
    # The reference is read again, not computed from the model that has moved.
    monkeypatch.setattr(reference, "_computed", None)
    done = apr(*flags, "-o", tmp_path / "halves")
    assert done.code == 0, done.err
    assert lines(tmp_path / "whole") == lines(tmp_path / "halves")
    name = "model.safetensors" if train == "full" else "adapter_model.safetensors"
    one, other = (load_file(tmp_path / run / name) for run in ("whole", "halves"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_reference(apr: Command, tmp_path: Path, folder: Path) -> None:
    assert apr(*RUN, "--max-steps", 2, "-o", tmp_path / "one").code == 0
    merged = apr("finetune", "tiny", "--merge", "--adapter", tmp_path / "one", "-o", tmp_path / "m")
    assert merged.code == 0, merged.err
    done = apr(*RUN, "--max-steps", 2, "--ref-model", tmp_path / "m", "-o", tmp_path / "two")
    assert done.code == 0, done.err
    # It begins away from its reference.
    assert lines(tmp_path / "one")[0]["eval_kl"] == 0 < lines(tmp_path / "two")[0]["eval_kl"]
    wide = apr(*RUN, "--ref-model", "wide", "--max-steps", 2, "-o", tmp_path / "three")
    assert wide.code == 0, wide.err  # a wider embedding, but the same tokens


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "orpo", "--beta", 0.1], "--beta has no meaning with --method orpo"),
        (["--method", "ppo"], "--method ppo is unknown (one of dpo, orpo, simpo, kto)"),
        (["--train", "half"], "--train half is unknown"),
        (["--method", "simpo", "--ref-model", "tiny"], "--ref-model has no meaning"),
        (["--max-seq-len", 4], "the prompt has 4 tokens, a sequence 4 at most"),
        (["--packing"], "No such option"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_bad_input(apr: Command, tmp_path: Path, flags: list[Any], message: str) -> None:
    done = apr(*RUN, *flags, "-o", tmp_path / "out")
    assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
