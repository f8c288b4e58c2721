"""Verdicts of BigCodeBench's own `untrusted_check`, to be run where `bigcodebench.eval` imports.

Standard input: a JSON object, name -> [program, test]. Standard output: name -> status.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    from bigcodebench.eval import untrusted_check  # type: ignore[import-not-found]

    jobs = json.load(sys.stdin)
    # What programs and the code itself print goes to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limits = (30 * 1024, 30 * 1024, 10, 1, 20)
    statuses = {
        name: untrusted_check(program, test, "task_func", *limits)[0]
        for name, (program, test) in jobs.items()
    }
    with out:
        json.dump(statuses, out)


if __name__ == "__main__":
    main()
