"""Verdicts of EvalPlus' own `untrusted_check`, to be run where `evalplus.eval` imports.

Standard input: a JSON object with `dataset` ("humaneval" or "mbpp"), `data` (path of its file) and
`programs`, name -> [task id, program]. Standard output: name -> [base status, plus status].
"""

from __future__ import annotations

import gzip
import json
import sys
from typing import Any


def main() -> None:
    from evalplus.data.mbpp import mbpp_deserialize_inputs  # type: ignore[import-not-found]
    from evalplus.eval import untrusted_check  # type: ignore[import-not-found]
    from evalplus.eval._special_oracle import (  # type: ignore[import-not-found]
        MBPP_OUTPUT_NOT_NONE_TASKS,
    )
    from evalplus.gen.util import trusted_exec  # type: ignore[import-not-found]

    order = json.load(sys.stdin)
    out = sys.stdout
    with gzip.open(order["data"], "rt") as lines:
        problems = {row["task_id"]: row for row in map(json.loads, lines)}
    expected: dict[tuple[str, str], Any] = {}

    def check(task_id: str, program: str, part: str) -> str:
        problem = problems[task_id]
        inputs = problem[f"{part}_input"] or []
        if order["dataset"] == "mbpp":
            inputs = mbpp_deserialize_inputs(task_id, inputs)
        if (task_id, part) not in expected:
            expected[task_id, part] = trusted_exec(
                problem["prompt"] + problem["canonical_solution"],
                inputs,
                problem["entry_point"],
                record_time=True,
                output_not_none=problem["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS,
            )
        values, seconds = expected[task_id, part]
        return untrusted_check(
            order["dataset"],
            program,
            inputs,
            problem["entry_point"],
            expected=values,
            atol=problem["atol"],
            ref_time=seconds,
            fast_check=True,
        )[0]

    statuses = {
        name: [check(task_id, program, part) for part in ("base", "plus")]
        for name, (task_id, program) in order["programs"].items()
    }
    json.dump(statuses, out)


if __name__ == "__main__":
    main()
