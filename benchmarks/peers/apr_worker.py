"""Times apr through its engine; protocol as llama_cpp_worker."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from apr.engine.engine import Engine
from apr.engine.request import Request
from apr.engine.runners.runtime import load_runtime


def prompt(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(100 + (i * 37 + salt * 101) % 20000 for i in range(length))


class Bench:
    def __init__(self, path: str) -> None:
        runtime = load_runtime(Path(path))
        assert runtime.kernels == "compiled", runtime.note
        self.runner = runtime.make(32 * 8)

    def engine(self) -> Engine:
        # A fresh engine has an empty prefix cache, so no test profits from an earlier one.
        return Engine(self.runner, max_concurrency=32, max_step_tokens=2048)

    def prefill(self, length: int) -> tuple[float, int]:
        engine = self.engine()
        engine.add(Request(prompt(length), max_tokens=1))
        start = time.perf_counter()
        engine.step()
        return time.perf_counter() - start, length

    def single(self, tokens: int) -> tuple[float, int]:
        request = Request((1,), max_tokens=tokens)
        start = time.perf_counter()
        (done,) = self.engine().generate([request])
        assert len(done.token_ids) == tokens
        return time.perf_counter() - start, tokens

    def streams(self, count: int, length: int, tokens: int) -> tuple[float, int]:
        engine = self.engine()
        for s in range(count):
            # The first token comes with the prompt's last step, before the clock starts.
            engine.add(Request(prompt(length, s), max_tokens=tokens + 1))
        while engine.scheduler.reading_prompts:
            engine.step()
        start = time.perf_counter()
        while engine.scheduler.busy:
            engine.step()
        return time.perf_counter() - start, count * tokens


def main() -> None:
    bench = Bench(sys.argv[1])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        seconds, tokens = getattr(bench, name)(*map(int, numbers))
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
