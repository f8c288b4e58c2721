"""An evaluation without a model: canned answers, logged as they are generated.

`python -m eval.runs OUT LOG DELAY` runs it as a process of its own, to be killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr.common.errors import AprError
from apr.eval.benchmarks.task import Benchmark, Task
from apr.eval.generators import Answer, Ask, Generator, Model
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate

SETTINGS = EvalSettings(model="canned", mode="base", limit=20, progress=False, workers=2)


def right_or_wrong(task: Task, sample: int) -> str:
    """Right for the tasks with even numbers, and for every third sample of the others."""
    number = int(task.task_id.split("/")[1])
    return task.canonical_solution if number % 2 == 0 or sample % 3 == 2 else "    return None\n"


class Canned:
    """Answers with `write(task, sample)`, after `delay` seconds each; notes what was asked."""

    def __init__(
        self,
        write: Callable[[Task, int], str] = right_or_wrong,
        delay: float = 0.0,
        log: Path | None = None,
    ) -> None:
        self.write, self.delay, self.log = write, delay, log
        self.asked: list[tuple[str, int]] = []
        self.loads = 0
        self.tasks: Mapping[str, Task] = {}

    @property
    def description(self) -> Mapping[str, Any]:
        return {"dtype": "none"}

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        for ask in asks:
            task = self.tasks[ask.task_id]
            for sample in ask.samples:
                time.sleep(self.delay)
                self.asked.append((task.task_id, sample))
                text = self.write(task, sample)
                if self.log is not None:
                    with self.log.open("a") as file:
                        file.write(f"{task.task_id}#{sample}\n")
                yield Answer(task.task_id, sample, text, "stop", 10, 5, self.delay)

    def model(self, **changes: Any) -> Model:
        def load(benchmark: Benchmark, *_: Any) -> Generator:
            self.loads += 1
            self.tasks = benchmark.tasks
            return self

        return replace(Model("canned", "0123456789abcdef", None, load), **changes)


def main() -> None:
    out, log, delay = sys.argv[1:]
    try:
        evaluate(
            replace(SETTINGS, out=Path(out)), Canned(delay=float(delay), log=Path(log)).model()
        )
    except AprError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
