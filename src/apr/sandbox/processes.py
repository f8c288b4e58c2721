"""A candidate's processes and files from outside: ending them, and that nothing is left."""

# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH112, PTH114, PTH208
from __future__ import annotations

import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable

from .isolation.confine import Confinement


def end_descendants(leader: int, confinement: Confinement) -> float:
    """End what outlived `leader` (ended and waited for, once the leader of its session); seconds of
    processor time that it used.

    Outside level full. Everything that lost its parent has become a child of this process, so
    there is something left exactly while there are children.
    """
    before = _children_seconds()
    _signal_quietly(os.killpg, leader, signal.SIGKILL)
    while _has_children():
        if confinement.own_user:
            _end_user(confinement)
        else:
            _end_found()
        time.sleep(0.001)
    return _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _has_children() -> bool:
    """Reap what has ended; True while something has not."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    return True


def _end_user(confinement: Confinement) -> None:
    """Every process of the candidate's own user at once: no race that a fork bomb could win."""
    helper = os.fork()
    if helper == 0:
        try:
            os.setresuid(confinement.uid, confinement.uid, confinement.uid)  # type: ignore[arg-type]
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(helper, 0)


def _end_found() -> None:
    """Stop descendants until no new ones appear (a stopped process cannot fork), then end them."""
    stopped: set[int] = set()
    while found := descendants(os.getpid()) - stopped:
        for pid in found:
            _signal_quietly(os.kill, pid, signal.SIGSTOP)
        stopped |= found
    for pid in stopped:
        _signal_quietly(os.kill, pid, signal.SIGKILL)


def descendants(root: int, proc: int | str = "/proc") -> set[int]:
    """Process ids below `root`, by the parents that /proc names; empty where there is none.

    proc: /proc, or a descriptor of it for who has left its file system.
    """
    if sys.platform != "linux":
        return set()
    children: dict[int, list[int]] = {}
    for name in os.listdir(proc):
        if name.isdigit():
            parent = parent_of(int(name), proc)
            if parent is not None:
                children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    todo = [root]
    while todo:
        new = set(children.get(todo.pop(), ())) - found
        found |= new
        todo.extend(new)
    return found


def parent_of(pid: int, proc: int | str = "/proc") -> int | None:
    """Parent of a process, None if it has ended."""
    content = read_proc(f"{pid}/stat", proc)
    # The name, in parentheses, may contain anything; the parent is the second field after it.
    return int(content.rpartition(")")[2].split()[1]) if content else None


def read_proc(name: str, proc: int | str = "/proc") -> str:
    """A file of /proc; empty if the process has ended or the kernel has no such file."""
    try:
        if isinstance(proc, int):
            fd = os.open(name, os.O_RDONLY, dir_fd=proc)
        else:
            fd = os.open(f"{proc}/{name}", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    try:
        return os.read(fd, 4096).decode("utf-8", "replace")
    except ProcessLookupError:
        return ""
    finally:
        os.close(fd)


def _signal_quietly(send: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # ended meanwhile (macOS says the latter for a zombie's group)


def signal_name(number: int) -> str:
    """As SIGSEGV; most real-time signals have no name, and a program may end by any."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    if os.WIFEXITED(status):
        return f"exited with status {os.WEXITSTATUS(status)}"
    return f"was ended by {signal_name(os.WTERMSIG(status))}"


def empty(folder: str) -> None:
    """Remove everything in a directory that hostile programs could write to."""
    os.chmod(folder, stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path)
        else:
            os.unlink(path)


def remove_tree(path: str) -> None:
    """Remove a directory that a hostile program filled, however deep or oddly named.

    Flat: subdirectories are moved to the top before they are emptied, so neither the stack nor the
    open files grow with the depth; under names that are drawn, so that no program can take them
    first. Nothing may be running in it any more.
    """
    folders = [path]
    for folder in folders:
        os.chmod(folder, stat.S_IRWXU)
        with os.scandir(folder) as entries:
            for entry in list(entries):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                elif folder == path:
                    folders.append(entry.path)
                else:
                    os.chmod(entry.path, stat.S_IRWXU)
                    moved = f"{path}/{os.urandom(16).hex()}"
                    os.rename(entry.path, moved)
                    folders.append(moved)
    for folder in reversed(folders):
        os.rmdir(folder)
