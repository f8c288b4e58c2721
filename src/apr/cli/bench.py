"""`apr bench`: how fast a model runs on this machine."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

import typer

from apr.cli.options import ADAPTER_HELP, MODEL_HELP
from apr.cli.run import DEVICE_HELP, DTYPE_HELP, OFFLINE_HELP
from apr.common.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command(
        "bench",
        help="Measure how fast a model reads prompts and writes, and the memory it takes."
        " On a CPU, APR_NUM_THREADS sets the number of threads (default: one a core).",
    )(bench)


def bench(
    model: str = typer.Argument(help=MODEL_HELP),
    adapter: str = typer.Option(None, help=ADAPTER_HELP),
    streams: int = typer.Option(32, help="Answers written side by side, in the last test."),
    repeats: int = typer.Option(5, help="How often each test runs; its median is shown."),
    dtype: str = typer.Option("auto", help=DTYPE_HELP),
    device: str = typer.Option("auto", help=DEVICE_HELP),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    for name, value in (("streams", streams), ("repeats", repeats)):
        if value < 1:
            raise UsageError(f"--{name} is {value}", "it must be 1 or more")
    from apr.common.memory import peak_process_memory
    from apr.engine.runners.runtime import load_runtime
    from apr.engine.throughput import measure
    from apr.model.opened import open_model

    opened = open_model(model, adapter, offline=offline)
    start = time.perf_counter()
    runtime = load_runtime(opened.checkpoint, dtype, device)
    load_seconds = time.perf_counter() - start
    if runtime.note:
        print(f"apr: compiled kernels not used: {runtime.note}", file=sys.stderr)

    def tell(name: str, number: int) -> None:
        print(f"apr: {name}: {number + 1} of {repeats}", file=sys.stderr)

    rates = measure(runtime, streams, repeats, tell)
    peak = peak_process_memory()
    kind = str(runtime.dtype).removeprefix("torch.")
    if as_json:
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
