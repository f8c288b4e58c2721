"""Several benchmarks in one go."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from apr.cli.eval_output import suite_table
from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks import GROUPS, NAMES, load_benchmark
from apr.eval.benchmarks.task import Dates
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate
from apr.eval.run.suite import SuiteResult, evaluate_suite, is_suite
from apr.hub.data_files import cached_path, pull_data
from apr.hub.data_registry import find_dataset

from .runs import SETTINGS, Canned
from .shared import shared_data


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EvalSettings]:
    """Runs of two tasks in an empty folder, with nothing pulled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    yield replace(SETTINGS, limit=2)


def pulled(*names: str) -> None:
    """As `apr data pull` leaves them."""
    for name in names:
        pull_data(find_dataset(name), shared_data(), progress=False)


def shown(found: SuiteResult) -> str:
    out = io.StringIO()
    Console(width=120, file=out).print(suite_table(found))
    return out.getvalue()


def test_what_is_several() -> None:
    assert all(map(is_suite, ("humaneval,mbpp", "evalplus", "infilling", "all")))
    assert not is_suite("humaneval+@v0.1.9") and not is_suite("mbpp")
    assert all(name in NAMES for names in GROUPS.values() for name in names)


def test_infilling_is_the_three_kinds_of_gaps(settings: EvalSettings) -> None:
    """Each needs its data: what is not here is named before anything runs."""
    several = replace(settings, benchmark="infilling", mode="prefix")
    pulled("infilling-single-line", "infilling-multi-line")
    canned = Canned(lambda task, sample: task.canonical_solution)
    with pytest.raises(UsageError, match="apr data pull infilling-random-span fetches it"):
        evaluate_suite(several, canned.model())
    assert canned.loads == 0
    data = shared_data("humaneval_infilling/HumanEval-RandomSpanInfilling-spans1-5.jsonl.gz")
    half = cached_path(find_dataset("infilling-random-span").files[0])
    half.write_bytes(data.read_bytes())
    found = evaluate_suite(several, canned.model())
    kinds = ("single-line", "multi-line", "random-span")
    assert [result.benchmark for result, _ in found.runs] == [f"infilling-{k}" for k in kinds]


def test_several_where_one_is_wanted() -> None:
    for name in ("evalplus", "humaneval,mbpp"):
        with pytest.raises(UsageError, match=f"--benchmark {name} is several: humaneval"):
            load_benchmark(name)


def test_each_as_if_alone(settings: EvalSettings) -> None:
    pulled("mbpp", "humaneval+")
    canned = Canned(lambda task, sample: task.canonical_solution)
    found = evaluate_suite(replace(settings, benchmark="mbpp, humaneval,mbpp"), canned.model())
    assert [r.benchmark for r, _ in found.runs] == ["mbpp", "humaneval"] and not found.left_out
    for result, folder in found.runs:
        again = Canned()
        alone, same = evaluate(replace(settings, benchmark=result.benchmark), again.model())
        assert (same, again.loads) == (folder, 0), "the same run, with nothing left to do"
        assert alone.to_json() == result.to_json()
        assert json.loads((folder / "results.json").read_text())["pass@1"] == result.passes[1][0]
    text = shown(found)
    assert text.index("mbpp") < text.index("humaneval") and "pass@1" in text
    values = [entry["pass@1"] for entry in found.to_json()["benchmarks"]]
    assert values == [r.passes[1][0] for r, _ in found.runs]


@pytest.mark.slow
def test_a_group_and_parts_in_the_table(settings: EvalSettings) -> None:
    pulled("humaneval+", "mbpp+")
    canned = Canned(lambda task, sample: task.canonical_solution)
    plus = replace(settings, benchmark="evalplus", limit=1, out=Path("here"))
    found = evaluate_suite(plus, canned.model())
    assert [str(folder) for _, folder in found.runs] == ["here/humaneval+", "here/mbpp+"]
    assert shown(found).count("base tests only") == 2


def test_all_is_what_can_be_run_here(settings: EvalSettings) -> None:
    pulled("mbpp", "infilling-single-line")
    found = evaluate_suite(replace(settings, benchmark="all", mode=None), Canned().model())
    assert [r.benchmark for r, _ in found.runs] == ["humaneval", "mbpp"]
    assert {*found.left_out, "humaneval", "mbpp"} == set(NAMES)
    assert "the data of mbpp+ is not here" in found.left_out["mbpp+"]
    assert "no fill-in-the-middle tokens" in found.left_out["infilling-single-line"]
    assert "--python" in found.left_out["bigcodebench"]


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ("humaneval,mbpp", r"data of mbpp is not here .*apr data pull mbpp"),
        ("humaneval,humanevil", "humanevil is unknown"),
        ("humaneval,", "--benchmark humaneval,: a name is missing"),
        ("all,mbpp", "data of mbpp is not here"),
        ("humaneval,infilling-single-line", "is not here"),
    ],
)
def test_what_cannot_be_run_is_said_first(
    settings: EvalSettings, benchmark: str, message: str
) -> None:
    canned = Canned()
    with pytest.raises(UsageError, match=message):
        evaluate_suite(replace(settings, benchmark=benchmark), canned.model())
    assert canned.loads == 0 and not Path("runs").exists()


def test_options_of_one_benchmark_only(settings: EvalSettings, tmp_path: Path) -> None:
    several = replace(settings, benchmark="humaneval,mbpp")
    with pytest.raises(UsageError, match="--data with several benchmarks"):
        evaluate_suite(replace(several, data=tmp_path / "x"), Canned().model())
    with pytest.raises(UsageError, match="--split: humaneval has no splits"):
        evaluate_suite(replace(several, split="complete"), Canned().model())
    # Those that have no dates do without; the one that has them is the first not to be here.
    dated = replace(settings, benchmark="humaneval,livecodebench", dates=Dates())
    with pytest.raises(UsageError, match="data of livecodebench is not here"):
        evaluate_suite(dated, Canned().model())


def test_a_failure_names_the_benchmark_and_keeps_the_others(settings: EvalSettings) -> None:
    pulled("mbpp")
    canned = Canned(lambda task, sample: task.canonical_solution)
    model = canned.model()

    def load(benchmark, *rest):
        if benchmark.name == "mbpp":
            raise AprError("no memory")
        return model.load(benchmark, *rest)

    several = replace(settings, benchmark="humaneval,mbpp")
    with pytest.raises(AprError, match="mbpp: no memory"):
        evaluate_suite(several, replace(model, load=load))
    evaluate_suite(several, model)
    assert [task.split("/")[0] for task, _ in canned.asked].count("HumanEval") == 2
