"""`apr distill` on tiny models: strategies, the teacher's cache, stopped runs, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apr.distill import teacher
from train.tiny import questions, write_model, write_rows, write_tokenizer

from .command import Command

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers that are sure of themselves, and a student that knows nothing."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "teacher", initializer_range=0.3)
    write_model(folder / "other", initializer_range=0.3, num_hidden_layers=1)
    write_model(folder / "deep", initializer_range=0.1, num_hidden_layers=4)
    write_model(folder / "student", num_hidden_layers=1, hidden_size=16)
    write_model(folder / "foreign", vocab_size=266)
    write_tokenizer(folder / "foreign", extra=("<|new|>",))
    write_rows(folder / "rows.jsonl", questions(24))
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


DATA = ("--data", "rows.jsonl", "--eval-split", 0.2, "--max-seq-len", 160, "--batch-size", 2)
RUN = ("distill", "teacher", "--student", "student", *DATA, "--lr", 2e-2, "--seed", 1)


def lines(run: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def first(run: Path) -> float:
    """The divergence before the first step."""
    return lines(run)[0]["eval_divergence"]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--divergence", "reverse"),
        ("--divergence", "js", "--temperature", 2.0),
        ("--alpha", 0.5, "--train", "lora", "--targets", "all-linear"),
        ("--strategy", "progressive"),
        ("--cache", "CACHE", "--cache-top-k", 20),
        ("--cache", "CACHE"),
    ],
)
def test_a_student_comes_closer(apr: Command, tmp_path: Path, flags: tuple[Any, ...]) -> None:
    given = [tmp_path / "kept" if flag == "CACHE" else flag for flag in flags]
    done = apr(*RUN, *given, "--epochs", 6, "-o", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    before, after = result["measures"]["divergence"]
    # An adapter on a base of random numbers has little to work with.
    assert after < (before if "lora" in flags else 0.9 * before)
    assert json.loads((tmp_path / "run" / "apr_manifest.json").read_text())["command"] == "distill"


def test_several_teachers_are_averaged(apr: Command, tmp_path: Path) -> None:
    flags = ("--student", "student", *DATA, "--max-steps", 1)
    both = ("distill", "teacher", "other", "--strategy", "ensemble", *flags)
    for name, command in {
        "both": both,
        "first": (*both, "--weights", "1,0.000001"),
        "alone": ("distill", "teacher", *flags),
        "other": ("distill", "other", *flags),
    }.items():
        done = apr(*command, "-o", tmp_path / name)
        assert done.code == 0, done.err
    found = {name: first(tmp_path / name) for name in ("both", "first", "alone", "other")}
    assert found["first"] == pytest.approx(found["alone"], rel=1e-3)
    # KL is convex in the teacher, and a mixture lies nearer to what knows nothing.
    assert found["both"] < 0.5 * (found["alone"] + found["other"])


def test_a_whole_cache_is_the_teacher(apr: Command, tmp_path: Path) -> None:
    """All ids kept, logprobs in fp16."""
    flags = ("--max-steps", 3)
    assert apr(*RUN, *flags, "-o", tmp_path / "live").code == 0
    whole = ("--cache", tmp_path / "kept", "--cache-top-k", 259)
    done = apr(*RUN, *flags, *whole, "-o", tmp_path / "cached")
    assert done.code == 0, done.err
    for one, other in zip(lines(tmp_path / "live"), lines(tmp_path / "cached"), strict=True):
        key = "loss" if "loss" in one else "eval_loss"
        assert one[key] == pytest.approx(other[key], rel=2e-2)


def test_the_cache_is_made_once_and_for_one_thing(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "PART", 4)
    cache = ("--cache", tmp_path / "kept")
    whole = ("--max-steps", 2, *cache)
    assert apr(*RUN, *whole, "-o", tmp_path / "one").code == 0
    parts = {p.name: p.read_bytes() for p in (tmp_path / "kept" / "train").glob("*.npz")}
    assert len(parts) == 5
    # Interrupted: what is missing is asked again, and comes out the same.
    (tmp_path / "kept" / "train" / "part-00003.npz").unlink()
    assert apr(*RUN, *whole, "-o", tmp_path / "two").code == 0
    again = {p.name: p.read_bytes() for p in (tmp_path / "kept" / "train").glob("*.npz")}
    assert again.keys() == parts.keys()
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    # Complete: the teacher is not loaded.
    monkeypatch.setattr(teacher.Teacher, "load", None)
    assert apr(*RUN, *whole, "-o", tmp_path / "three").code == 0
    for flags, what in (
        (("--temperature", 2.0), "temperature"),
        (("--cache-samples", 3), "samples"),
        (("--max-seq-len", 40), "data"),
    ):
        done = apr(*RUN, *flags, *whole, "-o", tmp_path / what)
        assert done.code == 2 and f"was made of another {what}" in done.err, done.err


def test_a_stopped_run_ends_with_the_same_bytes(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr.train import loop

    flags = (*RUN, "--strategy", "progressive", "--save-every", 1, "--max-steps", 5)
    assert apr(*flags, "-o", tmp_path / "whole").code == 0
    save, calls = loop.save_state, []

    def stop(*arguments: Any) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", stop)
    assert apr(*flags, "-o", tmp_path / "halves").code == 130
    monkeypatch.setattr(loop, "save_state", save)
    assert apr(*flags, "-o", tmp_path / "halves").code == 0
    assert lines(tmp_path / "whole") == lines(tmp_path / "halves")
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "halves"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_student_made_of_its_teacher(apr: Command, tmp_path: Path) -> None:
    command = ("distill", "deep", "--student-from", "depth=0.5", *DATA, "--max-steps", 2)
    done = apr(*command, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    layers = [
        json.loads((tmp_path / name / "config.json").read_text())["num_hidden_layers"]
        for name in ("run-student", "run")
    ]
    assert layers == [2, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--student", "foreign"), "vocabulary has 259 tokens, the model's 260"),
        ((), "--student, or made by --student-from"),
        (("--student-from", "width=0.5"), "--student-from width=0.5 is not known"),
        (("--student", "student", "--strategy", "ensemble"), "1 teachers with --strategy ensemble"),
        (("--student", "student", "--cache-top-k", 3), "--cache-top-k without --cache"),
        (("--student", "student", "--cache", "c", "--divergence", "js"), "needs all of a distri"),
        (("--student", "student", "--alpha", 0), "--alpha is 0 (it must be above 0, at most 1)"),
        (("--student", "student", "--weights", "1,2"), "--weights has no meaning"),
        (("--student", "student", "--temperature", 0), "--temperature is 0"),
    ],
)
def test_bad_input(apr: Command, tmp_path: Path, flags: tuple[Any, ...], message: str) -> None:
    done = apr("distill", "teacher", *flags, *DATA, "-o", tmp_path / "out")
    assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "out" / "model.safetensors").exists()
