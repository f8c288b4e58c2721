"""Landlock rules, as the kernel enforces them in a child."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apr.sandbox.isolation import landlock, linux


def kernel_abi() -> int:
    try:
        return linux.landlock_abi()
    except OSError:
        return 0


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or kernel_abi() == 0, reason="this kernel has no Landlock"
)


def restricted(ruleset: int, attempt: Callable[[], None]) -> str:
    """Name of the exception that `attempt` raises under the ruleset, empty for none."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            linux.no_new_privileges()
            linux.landlock_restrict(ruleset)
            try:
                attempt()
            except BaseException as error:
                os.write(write, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as result:
        return result.read().decode()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("lib/a/open.py", "lib/secret/answers.py", "lib/b.py", "work/x", "home/key"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def ruleset(tree: Path) -> int:
    secret = str(tree / "lib/secret")
    return landlock.build_ruleset([str(tree / "lib")], [str(tree / "work")], [secret])


@pytest.mark.parametrize("name", ["lib/a/open.py", "lib/b.py", "work/x"])
def test_readable(tree: Path, ruleset: int, name: str) -> None:
    assert restricted(ruleset, lambda: (tree / name).read_text() and None) == ""


@pytest.mark.parametrize("name", ["lib/secret/answers.py", "home/key", "../etc/passwd"])
def test_unreadable(tree: Path, ruleset: int, name: str) -> None:
    path = Path("/etc/passwd") if "passwd" in name else tree / name
    assert path.read_text()
    assert restricted(ruleset, lambda: path.read_text() and None) == "PermissionError"


def test_folders_can_be_listed_where_a_package_is_hidden(tree: Path, ruleset: int) -> None:
    assert restricted(ruleset, lambda: [*(tree / "lib").iterdir()] and None) == ""


def test_writing_only_in_the_work_directory(tree: Path, ruleset: int) -> None:
    def write(name: str) -> str:
        return restricted(ruleset, lambda: (tree / name).write_text("new") and None)

    assert write("work/x") == write("work/new") == ""
    assert write("lib/b.py") == write("lib/new.py") == write("home/key") == "PermissionError"
    assert restricted(ruleset, (tree / "home/key").unlink) == "PermissionError"
    assert restricted(ruleset, (tree / "work/x").unlink) == ""
    assert (tree / "lib/b.py").read_text() == "lib/b.py"


@pytest.mark.skipif(not landlock.scopes_signals(kernel_abi()), reason="Landlock before signals")
def test_signals_stay_inside(ruleset: int) -> None:
    parent = os.getpid()
    assert restricted(ruleset, lambda: os.kill(parent, 0)) == "PermissionError"
    assert restricted(ruleset, lambda: os.kill(os.getpid(), signal.SIGCONT)) == ""
