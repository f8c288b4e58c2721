"""What a run's report says, before and after; the answers are transformers'."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from apr.text import load_tokenizer
from apr.train.adapter_files import merge_adapter
from apr.train.finetune import finetune
from apr.train.packing import Document
from apr.train.prepare import Prepared, prepare
from apr.train.report import PAGE, REPORT, Shown
from apr.train.supervised import SUPERVISED
from apr.train.train_settings import FimSettings, FinetuneRequest, TrainSettings

from .tiny import questions, write_model, write_rows

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_model(folder / "tiny")
    write_rows(folder / "rows.jsonl", questions(40))
    return folder


def prepared(folder: Path, **changes: Any) -> Prepared:
    train = TrainSettings(learning_rate=2e-2, batch_size=2, epochs=2, save_every=1)
    request: dict[str, Any] = {
        "model": str(folder / "tiny"),
        "data": (folder / "rows.jsonl",),
        "train": train,
        "eval_split": 0.2,
        "dtype": "fp32",
        "max_length": 160,
        **changes,
    }
    return prepare(FinetuneRequest(**request), SUPERVISED)


def greedy(folder: Path, ids: list[int], count: int) -> str:
    """Transformers' greedy answer, up to its end."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=sorted(load_tokenizer(folder).eos_ids),
            pad_token_id=0,
        )[0, len(ids) :].tolist()
    tokenizer = load_tokenizer(folder)
    if out[-1] in tokenizer.eos_ids:
        out.pop()
    return tokenizer.decode(out, skip_special_tokens=False)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_answers_are_those_of_transformers(method: str, folder: Path, tmp_path: Path) -> None:
    train = prepared(folder, method=method)
    result = finetune(train, tmp_path / "run")
    report = json.loads((tmp_path / "run" / REPORT).read_text())
    document = train.held_out[0]
    prompt = document.ids[: int(document.trained.argmax())].tolist()
    sample = report["sample"]
    assert sample["prompt"] == train.tokenizer.decode(prompt, skip_special_tokens=False)
    assert sample["prompt"].endswith("<|im_start|>assistant\n")
    assert sample["reference"].startswith("def f():\n    return ")
    after = tmp_path / "run"
    if method == "lora":
        after = tmp_path / "merged"
        merge_adapter(str(folder / "tiny"), tmp_path / "run", after)
    assert sample["before"] == greedy(folder / "tiny", prompt, 128)
    assert sample["after"] == greedy(after, prompt, 128) != sample["before"]
    assert report["perplexity_before"] == pytest.approx(math.exp(result["first_eval"]))
    assert report["perplexity_after"] == pytest.approx(math.exp(result["best_eval"]))
    page = (tmp_path / "run" / PAGE).read_text()
    assert f"| perplexity | {report['perplexity_before']:.4f} |" in page
    assert "    def f():" in page


def test_packed_bases_answer_as_they_run(folder: Path, tmp_path: Path) -> None:
    """NF4 in training; what is shown is the base as it is, and the adapter on it."""
    train = prepared(folder, method="qlora")
    finetune(train, tmp_path / "run")
    sample = json.loads((tmp_path / "run" / REPORT).read_text())["sample"]
    merge_adapter(str(folder / "tiny"), tmp_path / "run", tmp_path / "merged")
    document = train.held_out[0]
    prompt = document.ids[: int(document.trained.argmax())].tolist()
    assert sample["before"] == greedy(folder / "tiny", prompt, 128)
    assert sample["after"] == greedy(tmp_path / "merged", prompt, 128)


def test_a_model_too_large_to_answer_is_not_asked(folder: Path, tmp_path: Path) -> None:
    train = prepared(folder, method="qlora")
    small = replace(train.memory, weights=0, trained=0, activations=0, work=0)
    finetune(replace(train, memory=small), tmp_path / "run")
    sample = json.loads((tmp_path / "run" / REPORT).read_text())["sample"]
    assert sample["before"] is None and sample["after"] is None and sample["reference"]
    page = (tmp_path / "run" / PAGE).read_text()
    assert "No answer is shown" in page and "## Reference" in page and "## After" not in page


def test_a_run_that_goes_on_knows_what_was_before(folder: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise Stop

    whole = prepared(folder)
    finetune(whole, tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(whole, tmp_path / "run", on_log=stop)
    finetune(whole, tmp_path / "run")
    reports = [json.loads((tmp_path / n / REPORT).read_text()) for n in ("whole", "run")]
    assert reports[0]["sample"] == reports[1]["sample"]


def test_what_is_shown_of_a_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tiny")
    ids = np.arange(10, dtype=np.int32)
    text = Document(ids, np.ones(10, bool))
    assert Shown(text, tokenizer).parts() == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert Shown(text, tokenizer, middle=7).parts() == (list(range(8)), [8, 9])
    answer = Document(ids, ids >= 4)
    assert Shown(answer, tokenizer).parts() == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])


def test_a_gap_is_shown_up_to_its_middle(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    marks = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    from .tiny import write_tokenizer

    write_tokenizer(tmp_path / "tiny", extra=marks)
    write_rows(
        tmp_path / "rows.jsonl", [{"text": f"def f{i}():\n    return {i}\n"} for i in range(9)]
    )
    train = prepared(tmp_path, fim=FimSettings(1.0, 0.0), eval_split=0.4)
    finetune(train, tmp_path / "run")
    sample = json.loads((tmp_path / "run" / REPORT).read_text())["sample"]
    assert sample["prompt"].startswith(marks[0]) and sample["prompt"].endswith(marks[2])
    assert marks[2] not in sample["reference"]


@pytest.mark.skipif(sys.platform != "linux", reason="mapped pages are read from /proc")
def test_pages_of_the_base_are_gone_after_training(folder: Path, tmp_path: Path) -> None:
    """The answer after training, which runs the model once more, needs their room."""
    write_model(folder / "wide", intermediate_size=16384)
    weights = folder / "wide" / "model.safetensors"
    resident: list[int] = []

    def look(_: object) -> None:
        maps = psutil.Process().memory_maps()
        resident.append(sum(m.rss for m in maps if m.path == str(weights.resolve())))

    train = TrainSettings(batch_size=8, max_steps=1)
    ready = prepared(folder, model=str(folder / "wide"), dtype="bf16", train=train)
    finetune(ready, tmp_path / "out", on_log=look)
    look(None)
    assert max(resident) > weights.stat().st_size / 2  # training reads it where it is mapped
    assert resident[-1] < weights.stat().st_size / 10
