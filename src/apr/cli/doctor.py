"""`apr doctor`: what this machine offers to a run; also for bug reports."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from apr import __version__

# Features that decide how fast CPU kernels are, in the order they are shown (LLVM's names).
_TELLING_FEATURES = (
    *("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vnni", "avx512bf16", "amx-bf16"),
    *("neon", "dotprod", "i8mm", "bf16", "sve", "sve2"),
)


def register(app: typer.Typer) -> None:
    app.command("doctor", help="Show what this machine offers: sandbox, processor, memory, cache.")(
        doctor
    )


def doctor(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    report = examine()
    print(json.dumps(report) if as_json else "\n".join(describe(report)))


def examine() -> dict[str, Any]:
    """All of it as plain data; sizes in bytes. Tries out the sandbox levels (about a second)."""
    from apr.common.memory import available_memory, total_memory
    from apr.hub import cache_root
    from apr.sandbox import available_levels

    levels = available_levels()
    cache = cache_root()
    return {
        "apr": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "sandbox": {
            "level": next((report.level for report in levels if report.available), None),
            "levels": [asdict(report) for report in levels],
        },
        "cpu": _cpu(),
        "torch": _torch(),
        "memory": {"available": available_memory(), "total": total_memory()},
        "cache": {"path": str(cache), "free": shutil.disk_usage(_existing(cache)).free},
    }


def _cpu() -> dict[str, Any]:
    from apr.kernels.cpu.intrinsics import HAS_BF16_DOT, target_features

    features = target_features()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "usable": usable,
        "features": [name for name in _TELLING_FEATURES if name in features],
        "bf16_dot": HAS_BF16_DOT,
    }


def _torch() -> dict[str, Any]:
    import torch

    devices: list[dict[str, Any]] = [{"device": "cpu", "name": platform.machine()}]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices.append({"device": f"cuda:{index}", "name": name, "free": free, "total": total})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Metal"})
    return {"version": torch.__version__, "threads": torch.get_num_threads(), "devices": devices}


def _existing(path: Path) -> Path:
    """The path or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def describe(report: dict[str, Any]) -> list[str]:
    """The same as lines for people."""
    lines = [f"apr {report['apr']}, Python {report['python']}, {report['platform']}"]
    for level in report["sandbox"]["levels"]:
        state = "yes" if level["available"] else f"no: {level['reason']}"
        lines.append(f"sandbox {level['level']:<9} {state}")
    cpu, memory, cache = report["cpu"], report["memory"], report["cache"]
    lines.append(f"cpu       {cpu['usable']} usable; {' '.join(cpu['features']) or 'no features'}")
    dot = "bf16 dot products in hardware" if cpu["bf16_dot"] else "bf16 widened to fp32"
    lines.append(f"kernels   {dot}")
    devices = ", ".join(_device(device) for device in report["torch"]["devices"])
    lines.append(f"torch     {report['torch']['version']}; {devices}")
    lines.append(
        f"memory    {_gigabytes(memory['available'])} of {_gigabytes(memory['total'])} free"
    )
    lines.append(f"cache     {cache['path']} ({_gigabytes(cache['free'])} free)")
    return lines


def _device(device: dict[str, Any]) -> str:
    size = f", {_gigabytes(device['free'])} free" if "free" in device else ""
    return f"{device['device']} ({device['name']}{size})"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
