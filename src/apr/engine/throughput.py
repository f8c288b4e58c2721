"""How fast a model runs here: prefill, one stream, many streams."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from apr.engine.engine import Engine
from apr.engine.request import Request
from apr.engine.runners.runtime import Runtime

PREFILL_TOKENS = 512
DECODE_TOKENS = 128
PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Rate:
    """Median tokens per second over the repeats; gb_per_s: weights read while decoding."""

    name: str
    tok_per_sec: float
    lowest: float
    highest: float
    gb_per_s: float | None


def measure(
    runtime: Runtime,
    streams: int = 32,
    repeats: int = 5,
    on_round: Callable[[str, int], None] = lambda name, number: None,
) -> list[Rate]:
    """Greedy, random-looking prompts, an empty prefix cache in each repeat.

    prefill: 512 tokens at once. 1 stream: 128 tokens from one. `streams` streams: 128 tokens each
    after prompts of 64, decoding only.
    """
    blocks = streams * (-(-(PROMPT_TOKENS + DECODE_TOKENS + 1) // runtime.block_size) + 1)
    runner = runtime.make(max(blocks, PREFILL_TOKENS // runtime.block_size + 2))

    def engine() -> Engine:
        return Engine(runner, runtime.context, streams, max_step_tokens=2048)

    tests: list[tuple[str, Callable[[], float], int]] = [
        (f"prefill {PREFILL_TOKENS}", lambda: prefill(engine()), 0),
        ("decode, 1 stream", lambda: decode(engine(), 1, 1), 1),
        (f"decode, {streams} streams", lambda: decode(engine(), streams, PROMPT_TOKENS), streams),
    ]
    rates = []
    for name, test, width in tests:
        test()  # compiles, fills caches
        found = []
        for number in range(repeats):
            found.append(test())
            on_round(name, number)
        middle = statistics.median(found)
        bandwidth = middle / width * runtime.weight_bytes / 1e9 if width else None
        rates.append(Rate(name, middle, min(found), max(found), bandwidth))
    return rates


def prefill(engine: Engine) -> float:
    """Tokens per second of one long prompt."""
    engine.add(Request(_prompt(engine, PREFILL_TOKENS, 0), max_tokens=1))
    start = time.perf_counter()
    engine.step()
    return PREFILL_TOKENS / (time.perf_counter() - start)


def decode(engine: Engine, streams: int, prompt_tokens: int) -> float:
    """Tokens per second of `streams` samples together, after their prompts have been read."""
    for number in range(streams):
        # One token more: the first comes with the prompt's last step, before the clock starts.
        prompt = _prompt(engine, prompt_tokens, number)
        engine.add(Request(prompt, max_tokens=DECODE_TOKENS + 1))
    while engine.scheduler.reading_prompts:
        engine.step()
    start = time.perf_counter()
    while engine.scheduler.busy:
        engine.step()
    return streams * DECODE_TOKENS / (time.perf_counter() - start)


def _prompt(engine: Engine, length: int, salt: int) -> tuple[int, ...]:
    vocabulary = engine.runner.config.vocab_size
    return tuple((100 + (i * 37 + salt * 101) % 900) % vocabulary for i in range(length))
