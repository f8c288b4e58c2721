"""Level full: a root of its own for each program, to write in as on a usual machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apr.common.errors import AprError
from apr.sandbox import Job, Outcome, Sandbox


@pytest.fixture(scope="module")
def full() -> Iterator[Sandbox]:
    try:
        with Sandbox(1, "full", preload=()) as sandbox:
            yield sandbox
    except AprError as error:
        pytest.skip(error.message)


def run(sandbox: Sandbox, body: str, expected: object = None, **job: int) -> Outcome:
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    program = f"import os, shutil, tempfile\ndef f():\n{lines}"
    return sandbox.run(Job("root", program, f"assert f() == {expected!r}", "f", **job))


WRITTEN = [
    "os.makedirs('/fake/source')\nreturn os.listdir('/fake')",
    "os.makedirs('/a/b')\nopen('/a/b/x', 'w').write('1')\nreturn os.listdir('/a/b')",
    "open('/file', 'w').write('1')\nreturn open('/file').read()",
    "os.makedirs('/home/user/data')\nreturn os.listdir('/home')",
    "os.makedirs('/mnt/data')\nshutil.rmtree('/mnt/data')\nreturn os.listdir('/mnt')",
    "os.mkdir('/var/tmp/x')\nos.rename('/var/tmp/x', '/y')\nreturn os.path.isdir('/y')",
    "return os.path.samefile(os.getcwd(), '/tmp') and os.listdir('/tmp')",
    "return os.path.samefile(tempfile.gettempdir(), '.')",
]
GIVEN: list[object] = [["source"], ["x"], "1", ["user"], [], True, [], True]


@pytest.mark.parametrize(("body", "given"), list(zip(WRITTEN, GIVEN, strict=True)))
def test_programs_may_write_where_root_may(full: Sandbox, body: str, given: object) -> None:
    for _ in range(2):  # the second finds nothing of the first
        outcome = run(full, body, given)
        assert outcome.passed, outcome


def test_what_is_shown_stays_as_it_is(full: Sandbox) -> None:
    for change in (
        "open('/usr/x', 'w')",
        "open('/etc/passwd', 'a')",
        "os.remove('/etc/passwd')",
        "os.mkdir('/dev/x')",
        "os.chmod('/usr/bin', 0o777)",
        "os.utime('/usr')",
        "os.rename('/usr', '/other')",
        "os.rmdir('/dev')",
        "os.chroot('/tmp')",
        "os.mkdir('/box/other')",
    ):
        outcome = run(full, f"try:\n    {change}\nexcept OSError:\n    return 'refused'", "refused")
        assert outcome.passed, (change, outcome)


def test_nothing_outside_the_root_can_be_reached(full: Sandbox) -> None:
    climb = "os.chdir('/')\nfor _ in range(9): os.chdir('..')\nreturn os.listdir('/box')"
    assert run(full, climb, ["job"]).passed
    up = "fd = os.open('.', 0)\nfor _ in range(9): fd = os.open('..', 0, dir_fd=fd)"
    assert run(full, f"{up}\nreturn os.path.samestat(os.fstat(fd), os.stat('/'))", True).passed


def test_no_program_sees_that_others_ran_before(full: Sandbox) -> None:
    """Numbers of files count anew in each root."""
    look = (
        "open('/a', 'w')\nos.mkdir('b')\nreturn [os.stat(p).st_ino for p in ('/a', 'b', '/home')]"
    )
    found = run(full, look, "?").detail
    for _ in range(3):
        assert run(full, "for n in range(300): open(f'/{n}', 'w')").passed
    assert run(full, look, "?").detail == found


def test_what_it_writes_outside_its_directory_counts(full: Sandbox) -> None:
    write = "with open('/x', 'wb') as file:\n    for _ in range(8): file.write(bytes(1 << 20))"
    assert run(full, write, output_bytes=16 << 20).passed
    halves = write.replace("8", "3") + "\n" + write.replace("8", "3").replace("/x", "y")
    assert not run(full, halves, output_bytes=4 << 20).passed
    assert run(full, "open('/x', 'wb').write(bytes(1 << 20))").passed
