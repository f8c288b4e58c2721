"""Ending processes and removing files that do not want to go."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from apr.sandbox import processes
from apr.sandbox.isolation import linux
from apr.sandbox.isolation.confine import Confinement

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")


def test_remove_a_very_deep_tree(tmp_path: Path) -> None:
    root = tmp_path / "job"
    root.mkdir()
    start = os.getcwd()  # noqa: PTH109 - paths this long can only be walked
    try:
        os.chdir(root)
        for _ in range(3000):  # beyond the recursion limit, the open files and PATH_MAX
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
    finally:
        os.chdir(start)
    processes.remove_tree(str(root))
    assert [*tmp_path.iterdir()] == []


def test_remove_odd_names_links_and_locked_folders(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("keep")
    root = tmp_path / "job"
    (root / "locked" / "inner").mkdir(parents=True)
    (root / "locked" / "inner" / "file").write_text("x")
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "dangling").symlink_to("/nowhere")
    os.mkfifo(root / "fifo")
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff\n"))).write_text("x")
    (root / "locked" / "inner").chmod(0)
    (root / "locked").chmod(0)
    processes.remove_tree(str(root))
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "keep").read_text() == "keep"


def test_empty_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    (tmp_path / "c").symlink_to("/")
    processes.empty(str(tmp_path))
    assert [*tmp_path.iterdir()] == []


def in_a_supervisor(run: str, confinement: Confinement) -> int:
    """Fork a supervisor that starts `run` as a session leader and ends it; its exit status."""
    supervisor = os.fork()
    if supervisor == 0:
        try:
            linux.adopt_orphans()
            leader = os.fork()
            if leader == 0:
                os.setsid()
                exec(run, {"os": os, "time": time, "signal": signal})
                os._exit(0)
            time.sleep(0.3)
            os.kill(leader, signal.SIGKILL)
            os.waitpid(leader, 0)
            processes.end_descendants(leader, confinement)
            os._exit(0 if not processes.descendants(os.getpid()) else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1])


DAEMON = """
for number in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        os._exit(0)
time.sleep(1000)
"""
# Every child that is ended is replaced at once by its siblings.
REBORN = """
def live(depth):
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            if depth:
                live(depth - 1)
            while True:
                time.sleep(0.01)
                if os.fork() == 0:
                    time.sleep(0.05)
                    os._exit(0)
                try:
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
                except ChildProcessError:
                    pass
live(2)
time.sleep(1000)
"""


@on_linux
@pytest.mark.parametrize("run", [DAEMON, REBORN, "time.sleep(1000)"])
def test_descendants_end(run: str) -> None:
    before = {process.pid for process in psutil.process_iter()}
    assert in_a_supervisor(run, Confinement("limits", "/")) == 0
    left = [p for p in psutil.process_iter() if p.pid not in before and p.ppid() == os.getpid()]
    assert left == []


@on_linux
def test_descendants_by_proc_are_those_psutil_sees() -> None:
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(30)
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.2)
        expected = {process.pid for process in psutil.Process().children(recursive=True)}
        assert len(expected) >= 2
        assert processes.descendants(os.getpid()) == expected
        proc = os.open("/proc", os.O_RDONLY)
        assert processes.descendants(os.getpid(), proc) == expected
        os.close(proc)
    finally:
        for pid in processes.descendants(child) | {child}:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
