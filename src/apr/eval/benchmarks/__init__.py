"""The benchmarks, one file each."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from apr.common.errors import UsageError
from apr.eval.benchmarks.task import ROW_FILES, Benchmark, Dates

NAMES = (
    "humaneval",
    "humaneval+",
    "mbpp",
    "mbpp+",
    "mbpp-sanitized",
    "infilling-single-line",
    "infilling-multi-line",
    "infilling-random-span",
    "infilling-random-span-light",
    "livecodebench",
    "bigcodebench",
    "bigcodebench-hard",
    "cruxeval-output",
    "cruxeval-output-cot",
)
ALL = "all"
GROUPS: dict[str, tuple[str, ...]] = {  # names for several
    "evalplus": ("humaneval+", "mbpp+"),
    "infilling": ("infilling-single-line", "infilling-multi-line", "infilling-random-span"),
    ALL: NAMES,
}


def load_benchmark(
    name: str, data: Path | None = None, dates: Dates | None = None, split: str | None = None
) -> Benchmark:
    """A benchmark by name, or that of a file of the user's. data: its file, if not the one that is
    installed or pulled. dates: dates of the problems, for a benchmark that has them. split:
    complete or instruct, for BigCodeBench.

    Raises UsageError for an unknown name.
    """
    if name.partition("@")[0] == "livecodebench":  # @release_v1 is a part of the data
        from apr.eval.benchmarks.livecodebench import LiveCodeBench
        from apr.hub.data_files import find_data_files

        return LiveCodeBench(find_data_files(name, data), dates)
    if dates not in (None, Dates()):
        raise UsageError(f"`first`, `last` and `cutoff`: {name} has no dates", "for livecodebench")
    if name in ("bigcodebench", "bigcodebench-hard"):
        from apr.eval.benchmarks.bigcodebench import BigCodeBench

        return BigCodeBench(data, name, split)
    if split is not None:
        raise UsageError(f"--split: {name} has no splits", "for bigcodebench")
    if is_file_name(name):
        if data is not None:
            raise UsageError(f"--data {data}: {name} is a file of tasks itself", "leave it out")
        from apr.eval.benchmarks.own import load_own

        return load_own(name)
    if name == "humaneval":
        from apr.eval.benchmarks.humaneval import HumanEval

        return HumanEval(data)
    if name.partition("@")[0] in ("humaneval+", "mbpp+"):  # @v0.1.9 is a part of the data
        from apr.eval.benchmarks.evalplus import EvalPlus

        return EvalPlus(data, name)
    if name in ("mbpp", "mbpp-sanitized"):
        from apr.eval.benchmarks.mbpp import Mbpp

        return Mbpp(data, name)
    if name.startswith("infilling-") and name in NAMES:
        from apr.eval.benchmarks.infilling import Infilling

        return Infilling(name, data)
    if name in ("cruxeval-output", "cruxeval-output-cot"):
        from apr.eval.benchmarks.cruxeval import CruxEval

        return CruxEval(name, data)
    raise unknown_benchmark(name)


def is_file_name(name: str) -> bool:
    """Whether `--benchmark` names a file of the user's rather than a benchmark."""
    return os.sep in name or name.endswith((*ROW_FILES, ".py"))


def unknown_benchmark(name: str) -> UsageError:
    """What to say of a name that is none."""
    if name in GROUPS or "," in name:
        several = ", ".join(GROUPS.get(name, name.split(",")))
        return UsageError(f"--benchmark {name} is several: {several}", "one at a time here")
    known = (*NAMES, *GROUPS)
    close = difflib.get_close_matches(name.lower(), known, 1)
    meant = f"{close[0]}? " if close else ""
    return UsageError(
        f"--benchmark {name} is unknown", f"{meant}one of {', '.join(known)}, or a file of tasks"
    )
