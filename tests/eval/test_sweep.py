"""Sweeps: which rows a file means, and what is found of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks.task import Task
from apr.eval.generators import Model
from apr.eval.history.compare import compare, mcnemar
from apr.eval.history.read import find_runs, read_run
from apr.eval.history.sweep import SweepResult, run_sweep, sweep_table
from apr.eval.history.sweep_file import read_sweep, sweep_rows
from apr.eval.run.eval_settings import Asking, EvalSettings
from apr.eval.run.evaluate import Interrupted

from .runs import SETTINGS, Canned

BASE = replace(SETTINGS, limit=12)
# Which of the first twelve tasks each model solves; "half" each with every second sample.
RIGHT: dict[str, Callable[[int, int], bool]] = {
    "weak": lambda number, sample: number < 2,
    "strong": lambda number, sample: number > 0,
    "same": lambda number, sample: number < 2,
    "half": lambda number, sample: sample % 2 == 0,
}


class Server:
    """Models by name; counts what was generated and loaded."""

    def __init__(self) -> None:
        self.canned: dict[str, Canned] = {}
        self.found: list[str] = []
        self.broken: set[str] = set()

    def __call__(self, settings: EvalSettings) -> Model:
        name = settings.model
        self.found.append(name)
        if name in self.broken:
            raise AprError(f"{name} cannot be loaded")

        def write(task: Task, sample: int) -> str:
            right = RIGHT[name](int(task.task_id.split("/")[1]), sample)
            return task.canonical_solution if right else "    return 'nothing'\n"

        canned = self.canned.setdefault(name, Canned(write))
        return canned.model(name=name, fingerprint=f"{name:>016}")

    @property
    def asked(self) -> int:
        return sum(len(canned.asked) for canned in self.canned.values())


def sweep_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.yml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(found: SweepResult) -> str:
    out = io.StringIO()
    Console(width=170, file=out).print(sweep_table(found))
    return out.getvalue()


# What a file means. -------------------------------------------------------------------------------


def test_every_combination_is_a_row(tmp_path: Path) -> None:
    path = sweep_file(
        tmp_path,
        "benchmarks: [humaneval, evalplus]\n"
        "models: [a, {model: b, endpoint: 'http://here/v1', name: B}]\n"
        "strategies: [standard, {prompt_strategy: reflexion, rounds: 3}]\n"
        "settings:\n  - {temperature: 0.8, n_samples: 10, k: [1, 10], rerank: [majority]}\n"
        "  - {name: greedy, mode: chat}\n",
    )
    rows = sweep_rows(read_sweep(path), replace(BASE, seed=7, sampling=_sampling(top_p=0.9)), path)
    assert [row.label for row in rows] == [
        f"{model}, {strategy}, {sampling}"
        for model in ("a", "B")
        for strategy in ("standard", "reflexion, rounds 3")
        for sampling in ("n_samples 10, temperature 0.8, k 1+10, rerank majority", "greedy")
    ]
    first, last = rows[0].settings, rows[-1].settings
    assert (first.model, first.endpoint, first.strategy.name) == ("a", None, "standard")
    assert (first.sampling.temperature, first.sampling.top_p) == (0.8, 0.9)
    assert (first.n_samples, first.ks, first.rerank) == (10, (1, 10), ("majority",))
    assert (last.model, last.endpoint) == ("b", "http://here/v1")
    assert (last.strategy.name, last.strategy.rounds) == ("reflexion", 3)
    assert (last.mode, last.n_samples, last.sampling.temperature) == ("chat", 1, 0.0)
    assert {row.settings.seed for row in rows} == {7}


def _sampling(**changes: Any) -> Any:
    return replace(BASE.sampling, **changes)


def test_one_entry_needs_no_list_and_the_command_line_fills_in(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, "strategies: few-shot\n")
    base = replace(BASE, model="m", asking=Asking(system="Be brief."))
    (row,) = sweep_rows(read_sweep(path), base, path)
    assert (row.label, row.settings.model, row.settings.strategy.name) == (
        *("few-shot", "m", "few-shot"),
    )
    assert row.settings.strategy.system == "Be brief."
    (row,) = sweep_rows(read_sweep(sweep_file(tmp_path, "models: [x]")), base, path)
    assert row.label == "x"
    path = sweep_file(tmp_path, "models: [x, y]\nsettings: {seed: 5}\n")
    rows = sweep_rows(read_sweep(path), base, path)
    assert [(row.label, row.settings.seed) for row in rows] == [("x", 5), ("y", 5)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no sweep"),
        ("- a\n", "holds no sweep"),
        ("models: [", "is not YAML"),
        (
            "model: [a]\n",
            "key model is unknown (keys: benchmarks, models, strategies, settings; models",
        ),
        ("models: [{model: a, temprature: 1}]\n", "key models.0.temprature is unknown (keys: name"),
        ("models: [{model: a, n_samples: ten}]\n", "models.0.n_samples: Input should be a valid"),
        ("models: [a]\nsettings: [{mode: talk}]\n", "settings.0.mode: Input should be"),
        ("models: [a]\nsettings: [3]\n", "settings.0: Input should be a valid dictionary"),
        (
            "models: [a]\nbenchmarks: [humaneval, mmlu]\n",
            "benchmarks: mmlu is unknown (one of humaneval",
        ),
        ("models: [a]\nbenchmarks: [all]\n", "benchmarks: name the benchmarks"),
        ("models: [a, a]\n", "rows 1 and 2 are the same"),
        ("models: [a, {model: b, name: a}]\n", "two rows are called a"),
        ("models: [a]\nstrategies: [cot]\n", "a, cot: prompt_strategy cot is unknown"),
        ("models: [a]\nsettings: [{temperature: -1}]\n", "a: temperature is -1"),
        ("models: [a]\nsettings: [{n_samples: 5}]\n", "a: n_samples 5 at temp"),
        ("models: [a]\nsettings: [{k: [5]}, {}]\n", "a, k 5: k 5 with n_samples 1"),
        ("strategies: [standard]\n", "models names none"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, complaint: str) -> None:
    path = sweep_file(tmp_path, text)
    server = Server()
    with pytest.raises(UsageError) as raised:
        run_sweep(path, replace(BASE, model=""), server)
    assert str(path) in str(raised.value) and complaint in str(raised.value)
    assert server.found == [] and not Path("runs").exists(), "nothing was begun"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yml cannot be read"):
        run_sweep(tmp_path / "none.yml", BASE, Server())


def test_flags_that_no_sweep_has(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, "models: [weak]\n")
    with pytest.raises(UsageError, match="`benchmark` all with `sweep`"):
        run_sweep(path, replace(BASE, benchmark="all"), Server())
    with pytest.raises(UsageError, match="`data` with several"):
        run_sweep(path, replace(BASE, benchmark="humaneval,mbpp", data=path), Server())


# What is found. -----------------------------------------------------------------------------------


def test_a_table_against_the_first_row(tmp_path: Path) -> None:
    server = Server()
    found = run_sweep(sweep_file(tmp_path, "models: [weak, strong, same]\n"), BASE, server)
    weak, strong, same = found.cells
    assert [cell.run.results["pass@1"] for cell in found.cells if cell.run] == [
        *(2 / 12, 11 / 12, 2 / 12),
    ]
    assert strong.against_first is not None and same.against_first is not None
    assert (len(strong.against_first.fixed), len(strong.against_first.broken)) == (10, 1)
    p = mcnemar(10, 1)
    assert (strong.against_first.p_value, same.against_first.p_value) == (p, 1.0)
    assert strong.adjusted_p == pytest.approx(2 * p) and same.adjusted_p == 1.0
    assert weak.against_first is None
    text = shown(found)
    assert "+75.0" in text and "16.7 % (0.0 to 41.7)" in text
    value = json.loads(found.path.read_text())
    assert value == found.to_json() and found.path == Path("runs/sweep-table.json")
    assert value["first"] == "weak" and list(value["rows"]) == ["weak", "strong", "same"]
    assert value["cells"][1]["against_first"]["p_value_holm"] == strong.adjusted_p
    assert "per_task" not in value["cells"][1]


def test_cells_are_ordinary_runs_that_are_not_run_again(tmp_path: Path) -> None:
    path, server = sweep_file(tmp_path, "models: [weak, strong]\n"), Server()
    first = run_sweep(path, BASE, server)
    assert server.asked == 24
    again = run_sweep(path, BASE, server)
    assert server.asked == 24 and again.to_json() == first.to_json()
    folders = [cell.run.path for cell in first.cells if cell.run]
    assert {run.path for run in find_runs([Path("runs")])} == set(folders)
    told = first.cells[1].against_first
    assert told is not None and told == compare(*map(read_run, folders))


def test_several_samples(tmp_path: Path) -> None:
    """A permutation test, exact: of 12 halves up, 2 down (the first row's two passes)."""
    text = "models: [weak, half]\nsettings: {n_samples: 2, temperature: 0.5}\n"
    found = run_sweep(sweep_file(tmp_path, text), BASE, Server())
    other = found.cells[1].against_first
    assert other is not None and other.test == "paired permutation of tasks, exact"
    # 10 tasks go up by a half, 2 go down: McNemar's count with as many of each.
    assert other.p_value == pytest.approx(mcnemar(10, 2), rel=1e-12)
    assert found.cells[1].adjusted_p == other.p_value


def test_a_cell_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "nothing pulled"))
    server = Server()
    server.broken = {"same"}
    path = sweep_file(tmp_path, "models: [weak, same, strong]\nbenchmarks: [humaneval, mbpp]\n")
    found = run_sweep(path, BASE, server)
    assert [(c.row.label, c.benchmark) for c in found.cells] == [
        (model, benchmark)
        for benchmark in ("humaneval", "mbpp")
        for model in ("weak", "same", "strong")
    ]
    errors = {(c.row.label, c.benchmark): c.error for c in found.failed}
    assert errors["same", "humaneval"] == "same cannot be loaded"
    assert "the data of mbpp is not here" in errors["weak", "mbpp"]
    assert len(errors) == 4
    strong = found.cells[2]
    assert strong.against_first is not None
    assert strong.adjusted_p == strong.against_first.p_value, "one comparison is left"
    assert json.loads(found.path.read_text())["cells"][1]["error"] == "same cannot be loaded"
    assert shown(found).count("failed") == 4


def test_the_first_row_may_fail(tmp_path: Path) -> None:
    server = Server()
    server.broken = {"weak"}
    found = run_sweep(sweep_file(tmp_path, "models: [weak, strong]\n"), BASE, server)
    assert found.cells[1].run is not None and found.cells[1].against_first is None
    assert "91.7 %" in shown(found)


def test_a_model_is_found_once(tmp_path: Path) -> None:
    text = "models: [weak, strong]\nsettings: [{seed: 1}, {seed: 2}]\n"
    server = Server()
    run_sweep(sweep_file(tmp_path, text), replace(BASE, limit=1), server)
    assert server.found == ["weak", "strong"]


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, "models: [weak, {model: strong, name: 'the/other one'}]\n")
    found = run_sweep(path, replace(BASE, limit=1, out=Path("here")), Server())
    assert found.path == Path("here/sweep-table.json")
    folders = {str(c.run.path) for c in found.cells if c.run}
    assert folders == {"here/weak/humaneval", "here/the-other-one/humaneval"}


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    path, server = sweep_file(tmp_path, "models: [weak, strong]\n"), Server()
    whole = Server()

    def stopping(settings: EvalSettings) -> Model:
        model = server(settings)
        if settings.model == "weak":
            return model

        def load(*rest: Any) -> Any:
            generate = model.load(*rest)

            def some(asks: Any) -> Any:
                for number, answer in enumerate(generate(asks)):
                    if number == 5:
                        raise KeyboardInterrupt
                    yield answer

            some.description = generate.description  # type: ignore[attr-defined]
            return some

        return replace(model, load=load)

    with pytest.raises(Interrupted, match="5 of 12 samples are stored"):
        run_sweep(path, BASE, stopping)
    assert not Path("runs/sweep-table.json").exists()
    found = run_sweep(path, BASE, whole)
    assert whole.asked == 7 and len(found.failed) == 0
