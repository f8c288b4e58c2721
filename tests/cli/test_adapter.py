"""`--adapter` of `apr run`, `chat`, `bench` and `eval`, against the merged model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from apr.model.load import load_transformer
from apr.train.adapter_files import adapter_tensors, save_adapter
from apr.train.lora import add_lora
from apr.train.train_settings import LoraSettings
from eval.shared import shared_data
from train.tiny import write_model

from .command import Command

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny")
    write_model(folder / "wide", hidden_size=64)
    for name in ("tiny", "wide"):
        model = load_transformer(folder / name, torch.float32)
        add_lora(model, LoraSettings(rank=4, targets=("all-linear",)))
        torch.manual_seed(2)
        for tensor in adapter_tensors(model).values():
            tensor.add_(0.3 * torch.randn_like(tensor))
        save_adapter(model, folder / f"{name}-lora", str(folder / name), {})
    return folder


@pytest.fixture
def apr(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(folder)
    return Command(monkeypatch, capfd)


@pytest.fixture
def merged(apr: Command, folder: Path) -> Path:
    path = folder / "merged"
    if not path.exists():
        arguments = ("finetune", "tiny", "--adapter", "tiny-lora", "--merge", "-o", path)
        assert apr(*arguments).code == 0
    return path


ADAPTED = ("tiny", "--adapter", "tiny-lora")


def test_text_is_the_merged_models(
    apr: Command, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("def f(", "--max-tokens", 24)
    adapted = apr("run", *ADAPTED, *ask)
    assert adapted.code == 0 and adapted.out == apr("run", merged, *ask).out
    assert adapted.out != apr("run", "tiny", *ask).out
    record = json.loads(apr("run", *ADAPTED, *ask, "--json").out)["model"]
    assert (record["model"], record["adapter"]) == ("tiny+tiny-lora", "tiny-lora")
    answers = []
    for model in (ADAPTED, (merged,)):
        monkeypatch.setattr("sys.stdin", io.StringIO("Add two numbers.\n"))
        answers.append(apr("chat", *model, "--max-tokens", 12, "--temperature", 0).out)
    assert answers[0] == answers[1] != ""


def test_scores_are_the_merged_models(apr: Command, merged: Path, tmp_path: Path) -> None:
    measure = ("--perplexity", "builtin", "--window", 128, "--max-windows", 2, "--json")
    found = [json.loads(apr("eval", *m, *measure).out) for m in (ADAPTED, (merged,), ("tiny",))]
    assert found[0]["perplexity"] == found[1]["perplexity"] != found[2]["perplexity"]
    data = shared_data("humaneval/HumanEval.jsonl.gz")
    score = ("--data", data, "--limit", 2, "--max-tokens", 12, "--json")
    out = tmp_path / "run"
    done = apr("eval", *ADAPTED, *score, "--out", out)
    assert done.code == 0, done.err
    assert json.loads(done.out)["subject"] == "tiny+tiny-lora"
    apr("eval", merged, *score, "--out", tmp_path / "merged")
    samples = [(folder / "samples.jsonl").read_text() for folder in (out, tmp_path / "merged")]
    assert samples[0] == samples[1]
    # Whose weights they are decides what may go on in a folder.
    assert apr("eval", *ADAPTED, *score, "--out", out).code == 0
    other = apr("eval", "tiny", *score, "--out", out)
    assert other.code == 2 and "model" in other.err


def test_the_speed_of_an_adapted_model(apr: Command) -> None:
    done = apr("bench", *ADAPTED, "--streams", 2, "--repeats", 1, "--json")
    assert done.code == 0 and json.loads(done.out)["model"] == "tiny+tiny-lora"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--adapter", "none"],
            2,
            "none has no adapter_config.json (name a PEFT adapter's folder)",
        ),
        (["--adapter", "tiny"], 2, "tiny has no adapter_config.json"),
        (["--adapter", "wide-lora"], 1, "(name the base it was trained on)"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "chat", "eval", "bench"])
def test_errors_are_one_line(
    apr: Command, verb: str, arguments: list[str], code: int, message: str
) -> None:
    done = apr(verb, "tiny", *(["x"] if verb == "run" else []), *arguments)
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[-1].startswith("apr: ") and message in done.err


def test_a_server_takes_no_adapter(apr: Command) -> None:
    done = apr("eval", *ADAPTED, "--endpoint", "http://127.0.0.1:9/v1")
    assert done.code == 2 and "--adapter does not go with --endpoint" in done.err


def test_an_adapter_of_another_base_is_told(apr: Command, folder: Path, tmp_path: Path) -> None:
    model = load_transformer(folder / "tiny", torch.float32)
    add_lora(model, LoraSettings(rank=1))
    save_adapter(model, tmp_path / "lora", "org/another", {})
    done = apr("run", "tiny", "x", "--adapter", tmp_path / "lora", "--max-tokens", 2)
    assert done.code == 0
    assert "apr: the adapter says it was trained on org/another, not on tiny" in done.err
