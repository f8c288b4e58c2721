"""`apr bench`: how fast a model runs on this machine."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

import typer

from apr.cli.options import JSON_HELP
from apr.common.settings import check, option
from apr.engine.request import ModelSettings


@dataclass(frozen=True)
class Bench:
    """What is measured."""

    streams: int = option(32, "Answers written side by side, in the last test.", least=1)
    repeats: int = option(5, "How often each test runs; its median is shown.", least=1)
    as_json: bool = option(False, JSON_HELP, flag="json")

    def __post_init__(self) -> None:
        check(self)


def register(app: typer.Typer) -> None:
    app.command(
        "bench",
        help="Measure how fast a model reads prompts and writes, and the memory it takes."
        " On a CPU, APR_NUM_THREADS sets the number of threads (default: one a core).",
    )(bench)


def bench(settings: ModelSettings, how: Bench) -> None:
    from apr.common.memory import peak_process_memory
    from apr.engine.runners.runtime import load_runtime
    from apr.engine.throughput import measure
    from apr.model.opened import open_model

    opened = open_model(settings.model, settings.adapter, offline=settings.offline)
    start = time.perf_counter()
    runtime = load_runtime(opened.checkpoint, settings.dtype, settings.device, settings.max_context)
    load_seconds = time.perf_counter() - start
    if runtime.note:
        print(f"apr: compiled kernels not used: {runtime.note}", file=sys.stderr)

    def tell(name: str, number: int) -> None:
        print(f"apr: {name}: {number + 1} of {how.repeats}", file=sys.stderr)

    rates = measure(runtime, how.streams, how.repeats, tell)
    peak = peak_process_memory()
    kind = str(runtime.dtype).removeprefix("torch.")
    if how.as_json:
        facts = {
            **opened.describe(),
            "kernels": runtime.kernels,
            "dtype": kind,
            "device": str(runtime.device),
            "load_seconds": load_seconds,
            "weight_bytes": runtime.weight_bytes,
            "peak_memory_bytes": peak,
            "rates": [asdict(rate) for rate in rates],
        }
        print(json.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table

    title = f"{opened.name}: {kind} on {runtime.device}, {runtime.kernels} kernels"
    table = Table("test", "tok/s", "lowest", "highest", "GB/s", title=title)
    for rate in rates:
        bandwidth = f"{rate.gb_per_s:.1f}" if rate.gb_per_s is not None else ""
        numbers = (rate.tok_per_sec, rate.lowest, rate.highest)
        table.add_row(rate.name, *(f"{number:.1f}" for number in numbers), bandwidth)
    Console().print(table)
    print(
        f"weights {runtime.weight_bytes / 1e6:.0f} MB, peak memory {peak / 1e6:.0f} MB,"
        f" loaded in {load_seconds:.1f} s; GB/s is weights read a second while decoding"
    )
