"""The process that candidates are forked from.

It never sees a test or a program: those go to the candidate over its own socket. In level full
it is process 1 of a PID namespace and gives each candidate one of its own, so that ending a
candidate ends everything it started.
"""

# ruff: noqa: PTH102, PTH106, PTH120, PTH208
from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import struct
import sys
import time
from typing import Any

from . import candidate, channel, processes
from .isolation import confine, linux, view
from .isolation.confine import Confinement

MAX_ORDER = 256 << 20
_SCM_CREDENTIALS = 2


def serve(control: socket.socket, confinement: Confinement, base: str, preload: list[str]) -> None:
    """Import the modules of `preload`, then fork a candidate per order until the worker closes
    `control`.

    Messages: out a byte once it is ready; in an order (confine.confine_candidate) after a byte
    that carries the candidate's socket; out one byte, then {"pid"}; in anything: end it; out
    {"status", "cpu", "peak_rss"}: the wait status if it had ended by itself or None, seconds,
    bytes.

    The byte out carries the process id as credentials: the kernel translates it into the
    worker's PID namespace.
    """
    own_pid_fd = -1
    if linux.IS_LINUX:
        linux.set_name("apr-sandboxed")  # and so its children
    if confinement.level == "full":
        linux.die_with_parent(signal.SIGKILL)
        own_pid_fd = os.pidfd_open(os.getpid())
    elif linux.IS_LINUX:
        linux.adopt_orphans()
    private = view.ROOT + view.WORK if confinement.level == "full" else f"{base}/job"
    _preload(preload, private)
    confinement = confine.confine_zygote(confinement)
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    control.send(b"r")
    fd = control.fileno()
    while True:
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not fds:
            return
        order = channel.receive_trusted(fd, MAX_ORDER)
        order["private"] = private
        _make_private(private, confinement)
        pid = _fork(confinement, order, fds[0], own_pid_fd)
        os.close(fds[0])
        try:
            _send_pid(control, pid, confinement)
            patience = channel.receive_trusted(fd, MAX_ORDER)
            closed = False
        except channel.Closed:
            patience, closed = 0.0, True
        report = _end(pid, confinement, patience)
        if confinement.level != "full":  # there the worker replaces the file system it is on
            _remove_private(private)
        if closed:
            return
        channel.send_trusted(fd, report)


def _preload(names: list[str], folder: str) -> None:
    """Import what candidates are likely to need, as far as it is installed.

    Here, not sooner, because modules ask at import what there is (threadpoolctl: /proc). folder:
    where they may write caches meanwhile (matplotlib's list of fonts).
    """
    os.mkdir(folder, 0o700)
    before = dict(os.environ)
    os.environ.update(TMPDIR=folder, HOME=folder)
    try:
        for name in names:
            with contextlib.suppress(Exception):  # not installed, or not for this machine
                importlib.import_module(name)
    finally:
        os.environ.clear()
        os.environ.update(before)
    processes.remove_tree(folder)


def _make_private(path: str, confinement: Confinement) -> None:
    os.mkdir(path, 0o700)
    if confinement.uid is not None and confinement.gid is not None:
        os.chown(path, confinement.uid, confinement.gid)


def _remove_private(path: str) -> None:
    """Remove a candidate's directory, and what else it may have put beside it."""
    try:
        os.rmdir(path)
    except OSError:  # not empty, or moved
        processes.empty(os.path.dirname(path))
    else:
        if os.listdir(os.path.dirname(path)):
            processes.empty(os.path.dirname(path))


def _fork(confinement: Confinement, order: dict[str, Any], fd: int, own_pid_fd: int) -> int:
    if own_pid_fd >= 0:
        # Children go to the namespace chosen last; choosing again takes going back first.
        linux.setns(own_pid_fd, linux.CLONE_NEWPID)
        linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        return pid
    try:
        ruleset = confine.keep_descriptors(fd, confinement.ruleset)
        try:
            confine.confine_candidate(confinement, order, ruleset)
        except BaseException as error:
            # Not confined, so the program does not run: the judge reports a sandbox error.
            channel.send(confine.SOCKET, {"setup": f"{type(error).__name__}: {error}"})
            os._exit(1)
        candidate.run(confine.SOCKET, order["output"])
    finally:
        os._exit(1)
    raise AssertionError("not reached")


def _send_pid(control: socket.socket, pid: int, confinement: Confinement) -> None:
    ancillary = []
    if confinement.level == "full":
        credentials = struct.pack("iII", pid, os.getuid(), os.getgid())
        ancillary = [(socket.SOL_SOCKET, _SCM_CREDENTIALS, credentials)]
    control.sendmsg([b"p"], ancillary)
    channel.send_trusted(control.fileno(), {"pid": pid})


def _end(pid: int, confinement: Confinement, patience: float) -> dict[str, Any]:
    """End a candidate and all it started; what it used."""
    deadline = time.monotonic() + patience
    ended, status, usage = os.wait4(pid, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.001)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
    by_itself = bool(ended)
    if not by_itself:
        os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    orphans = 0.0
    if confinement.level != "full":
        orphans = processes.end_descendants(pid, confinement)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return {
        "status": status if by_itself else None,
        "cpu": usage.ru_utime + usage.ru_stime + orphans,
        "peak_rss": usage.ru_maxrss * unit,
    }
