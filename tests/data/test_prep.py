"""Pairs from Python sources: against `ast` on the sources themselves, and against pyflakes."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import sys
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apr.calibrate.texts import SourceFile, source_files
from apr.cli.main import app
from apr.common.errors import AprError, UsageError
from apr.data.context import free_names
from apr.data.definitions import Definition, Rejected, clean_docstring, definitions
from apr.data.prep import instruction, make_pairs
from apr.data.prep_settings import KINDS, PrepSettings
from apr.data.training_rows import read_examples
from eval.shared import shared_data

STDLIB = Path(sysconfig.get_paths()["stdlib"])
SUB_PACKAGES = [STDLIB / name for name in ("email", "asyncio", "urllib", "importlib")]


def pairs(*texts: str, **settings: object) -> tuple[list[dict[str, str]], dict[str, int]]:
    files = [SourceFile(f"mine/{i}.py", text, "MIT") for i, text in enumerate(texts)]
    found, counts = make_pairs(files, PrepSettings(**settings))  # type: ignore[arg-type]
    return found, dict(counts.dropped)


def without_layout(node: ast.AST) -> str:
    """The tree, docstrings without their indentation."""
    for one in ast.walk(node):
        is_documented = isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_documented and ast.get_docstring(one, clean=False) is not None:
            constant = one.body[0].value  # type: ignore[attr-defined]
            constant.value = inspect.cleandoc(constant.value)
    return ast.dump(node)


def named(text: str) -> dict[str, list[str]]:
    """Functions, classes and methods of a module, as trees. Some names are defined twice."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    name = f"{node.name}.{inner.name}"
                    found.setdefault(name, []).append(without_layout(inner))
            found.setdefault(node.name, []).append(without_layout(node))
    return found


@pytest.mark.parametrize("methods", [False, True])
def test_responses_are_the_definitions_of_their_sources(methods: bool) -> None:
    files = list(source_files(SUB_PACKAGES))
    found, counts = make_pairs(files, PrepSettings(methods=methods))
    assert counts.kept == len(found) >= (200 if methods else 80)
    assert counts.definitions + counts.dropped["file of tests"] == counts.kept + sum(
        counts.dropped.values()
    )
    trees = {file.name: named(file.text) for file in files if file.text is not None}
    for pair in found:
        file, _, name = pair["source"].rpartition(":")
        compile(pair["response"], "<response>", "exec", dont_inherit=True)
        assert without_layout(ast.parse(pair["response"]).body[-1]) in trees[file][name]
        assert name.rpartition(".")[2] in pair["instruction"]


@pytest.mark.slow
def test_the_standard_library_gives_thousands() -> None:
    found, _ = make_pairs(source_files([], stdlib=True), PrepSettings(methods=True))
    assert len(found) >= 2000


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, str]]:
    """The pairs of TheAlgorithms."""
    path = shared_data("python_corpus/thealgorithms-python.jsonl.gz")
    return make_pairs(source_files([path]), PrepSettings())[0]


def assert_names_defined(found: list[dict[str, str]]) -> None:
    checker = pytest.importorskip("pyflakes.checker", reason="pip install apr[data]")
    for pair in found:
        messages = checker.Checker(ast.parse(pair["response"])).messages
        undefined = [one for one in messages if type(one).__name__ == "UndefinedName"]
        assert not undefined, (pair["source"], undefined[0].message_args)


def test_pyflakes_finds_every_name_defined(corpus: list[dict[str, str]]) -> None:
    assert_names_defined(corpus)


def test_pyflakes_finds_every_name_defined_in_the_standard_library() -> None:
    assert_names_defined(make_pairs(source_files(SUB_PACKAGES), PrepSettings())[0])


def test_a_corpus_gives_names_and_licences(corpus: list[dict[str, str]]) -> None:
    assert len(corpus) >= 900
    assert {pair["licence"] for pair in corpus} == {"MIT"}
    assert all(pair["source"].startswith("TheAlgorithms/Python/") for pair in corpus)
    assert len({pair["instruction"] for pair in corpus}) == len(corpus)


GOOD = '''
def mean(values):
    """Give the arithmetic mean of some numbers."""
    total = sum(values)
    return total / len(values)
'''


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("mean(", "_mean("), "private"),
        (GOOD.replace("mean(", "test_mean("), "test"),
        (GOOD.replace('"""', "#"), "no docstring"),
        (GOOD.replace("the arithmetic mean of some numbers", "mean"), "docstring under 5 words"),
        (GOOD.replace("Give", "Deprecated since 3.2. Give"), "deprecated or internal"),
        (GOOD.replace("Give the", "求这些数的算术平均值并返回结果"), "docstring not in English"),
        ('def f(x):\n    """Return x as it is, honestly."""\n    return x\n', "trivial"),
        (
            'def f(x):\n    """Do what subclasses will do."""\n    raise NotImplementedError\n',
            "stub",
        ),
        ('class A:\n    """An error like all of the others."""\n    code = 3\n', "stub"),
        ('def f(x): """Do one thing and do it."""; return sum(i * i for i in x)\n', "stub"),
        (GOOD + GOOD.replace("mean(", "mean( ").replace("Give", "Return"), "same code"),
        (GOOD + GOOD.replace("sum(values)", "0 + sum(values)"), "same question"),
        (GOOD.replace("sum(", "helper("), "needs more of its module than can go with it"),
        (
            "try:\n    import a as helper\nexcept ImportError:\n    import b as helper\n"
            + GOOD.replace("sum(", "helper("),
            "needs more of its module than can go with it",
        ),
        ("from .x import helper\n" + GOOD.replace("sum(", "helper("), "needs more of its module"),
        (GOOD + "\nx = [", "file does not parse"),
        (GOOD + "\x00", "file does not parse"),
        (GOOD + "# " + "long" * 800 + "\n    ", ""),
        (GOOD.replace("total =", "# " + "long" * 800 + "\n    total ="), "longer than 3000"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    found, dropped = pairs(text)
    if not reason:
        assert len(found) == 1 and not dropped
        return
    assert [name for name in dropped if name.startswith(reason)], dropped
    assert len(found) == (1 if reason.startswith("same") else 0)


def test_what_a_definition_needs_goes_along() -> None:
    text = (
        "from __future__ import annotations\nimport os, sys\nimport os.path\nimport numpy as np\n"
        "from typing import List as L\nUNITS = {'m': 1}\nOTHER = 3\n\n\n"
        "def _scale(unit):\n    return UNITS[unit]\n\n\n"
        '@np.vectorize\ndef measure(path: L, unit="m"):\n'
        '    """Measure how long a file is in some unit."""\n'
        "    size = os.path.getsize(path)\n    return size * _scale(unit)\n"
    )
    (pair,), dropped = pairs(text)
    assert dropped == {"private": 1}
    assert pair["response"] == (
        "from typing import List as L\nimport numpy as np\nimport os\nimport os.path\n\n\n"
        "UNITS = {'m': 1}\n\n\ndef _scale(unit):\n    return UNITS[unit]\n\n\n"
        + text[text.index("@np") :]
    )
    assert "def measure(path: L, unit='m'):" in pair["instruction"]


def test_annotations_that_name_the_class_stay_lazy() -> None:
    text = (
        "from __future__ import annotations\n\n\n"
        'class Node:\n    """A node of a singly linked list."""\n\n'
        "    def __init__(self, following: Node | None = None) -> None:\n"
        "        self.following = following\n"
    )
    (pair,), _ = pairs(text, min_length=0)
    assert pair["response"] == text
    exec(compile(pair["response"], "<response>", "exec", dont_inherit=True), {})


def test_methods() -> None:
    text = '''
class Account:
    """What somebody has.

    Not what somebody is.
    """

    def __init__(self, money):
        self.money = money

    @property
    def double(self):
        """Twice the money in the account."""
        twice = self.money * 2 + 0 * self.money
        return Account(twice)
'''
    found, dropped = pairs(text.replace("What", "_").replace("Account", "_A"), methods=True)
    assert not found and dropped == {"private": 1}
    found, _ = pairs(text, methods=True)
    assert [pair["source"] for pair in found] == ["mine/0.py:Account"]
    text = text.replace("What somebody has.\n\n    Not what somebody is.\n    ", "Has.")
    (pair,), dropped = pairs(text, methods=True)
    assert dropped == {"docstring under 5 words": 1, "private": 1}
    assert pair["response"].startswith("@property\ndef double(self):\n    " + '"""Twice')
    assert 'class Account:\n    """Has."""\n\n    def __init__(self, money):' in pair["instruction"]


def test_kinds_ask_in_their_way() -> None:
    (found,) = definitions("import os\n" + GOOD.replace("sum", "os.sum"))
    assert isinstance(found, Definition)
    complete = instruction(found, "complete")
    assert complete.endswith(
        'def mean(values):\n    """Give the arithmetic mean of some numbers."""\n```'
    )
    document = instruction(found, "document")
    assert "import os\n\n\ndef mean(values):\n    total" in document and "Give" not in document
    both, _ = pairs(*(GOOD.replace("mean", f"mean{i}") for i in range(40)), kind=KINDS[:3])
    starts = {pair["instruction"].split()[0] for pair in both}
    assert {"Complete", "Write", "Implement"} <= starts


def test_the_docstring_is_cleaned() -> None:
    docstring = """Do it.

        .. versionadded:: 3.1
           Or so.

        :param x: what
    """
    assert clean_docstring(docstring) == "Do it.\n\n:param x: what"


def test_free_names_are_those_python_looks_up_globally() -> None:
    code = (
        "@deco(k)\ndef f(a, *b, c: Ann = default, **d) -> Ret:\n"
        "    global g\n    g = a\n    [x for x in b if y]\n    lambda z: z + w\n"
        "    def inner():\n        nonlocal a\n        a = print(v)\n    class C(Base):\n"
        "        m = a2\n        def h(self): return super().h(m)\n"
        "    import os\n    return os, f\n"
    )
    expected = {"deco", "k", "Ann", "default", "Ret", "g", "y", "w", "v", "Base", "a2", "m"}
    assert free_names(code) == expected
    assert free_names("def (") is None


def test_odd_files(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    for name in ("b.py", "a/z.py", ".hidden/c.py", "__pycache__/d.py", "tests/e.py", "test_f.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(GOOD.replace("mean", f"mean_{name[0]}"))
    latin = "# -*- coding: latin-1 -*-\n" + GOOD.replace("some", "été").replace("mean", "moyenne")
    (folder / "latin.py").write_bytes(latin.replace("\n", "\r\n").encode("latin-1"))
    (folder / "broken.py").write_bytes(b"# -*- coding: utf-8 -*-\n\xff")
    files = list(source_files([folder]))
    assert [file.name for file in files] == [
        *("lib/a/z.py", "lib/b.py", "lib/broken.py", "lib/latin.py"),
        *("lib/test_f.py", "lib/tests/e.py"),
    ]
    found, counts = make_pairs(files, PrepSettings())
    assert [pair["source"] for pair in found] == [
        *("lib/a/z.py:mean_a", "lib/b.py:mean_b"),
        "lib/latin.py:moyenne",
    ]
    assert "été" in found[2]["response"] and "\r" not in found[2]["response"]
    assert counts.dropped == {"file of tests": 2, "file cannot be decoded": 1}
    with pytest.raises(UsageError, match=r"a\.txt is not Python"):
        list(source_files([tmp_path / "a.txt"]))
    with pytest.raises(UsageError, match="no such file"):
        list(source_files([tmp_path / "a.py"]))


def test_stdlib_and_installed_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = {file.name: file for file in source_files([], stdlib=True)}
    assert stdlib[f"{name}/json/decoder.py"].licence == "PSF-2.0"
    assert not any("site-packages" in file for file in stdlib)
    pytest_alone = [importlib.metadata.distribution("pytest")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: pytest_alone)
    installed = {file.name: file.licence for file in source_files([], installed=True)}
    assert installed["pytest/__init__.py"] == "MIT"


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    def written(name: str, *options: str) -> list[str]:
        path = tmp_path / name
        command = ["data", "prep", str(STDLIB / "urllib"), "-o", str(path), *options, "--json"]
        run = CliRunner().invoke(app, command)
        assert run.exit_code == 0, run.output
        rows = list(read_examples(path))
        assert json.loads(run.stdout)["kept"] == len(rows)
        assert all(set(row.fields) == {"instruction", "response", "source"} for row in rows)
        return path.read_text().splitlines()

    every = written("a.jsonl")
    assert every == written("b.jsonl")
    ten = written("c.jsonl", "--limit", "10", "--seed", "3")
    assert len(ten) == 10 and ten == written("d.jsonl", "--limit", "10", "--seed", "3")
    assert ten != written("e.jsonl", "--limit", "10", "--seed", "4")
    order = [json.loads(line)["source"] for line in every]
    assert order == sorted(order, key=lambda source: source.partition(":")[0])


def test_bad_requests(tmp_path: Path) -> None:
    def complaint(*arguments: str) -> str:
        run = CliRunner().invoke(app, ["data", "prep", *arguments])
        assert isinstance(run.exception, UsageError)
        return str(run.exception)

    out = ["-o", str(tmp_path / "out.jsonl")]
    assert "no Python source" in complaint(*out)
    assert "--kind poem is unknown (of docstring-to-code" in complaint(*out, "--kind", "poem")
    assert "--limit is 0" in complaint(*out, "--stdlib", "--limit", "0")
    assert "leave nothing" in complaint(*out, "--stdlib", "--min-length", "9999")
    assert "JSON lines" in complaint("-o", str(tmp_path / "out.csv"), "--stdlib")
    assert not list(tmp_path.iterdir())


def test_sources_without_a_pair(tmp_path: Path) -> None:
    source = tmp_path / "bare.py"
    source.write_text("def f():\n    return 1\n\n\ndef g():\n    return 2\n")
    out = tmp_path / "out.jsonl"
    run = CliRunner().invoke(app, ["data", "prep", str(source), "-o", str(out)])
    assert isinstance(run.exception, AprError) and run.exception.exit_code == 1
    message = "no pair is left of 2 functions and classes in 1 files: no docstring (2)"
    assert str(run.exception).startswith(message)
    assert not out.exists()


def test_rejected_definitions_say_where() -> None:
    (found,) = definitions("\n\ndef f():\n    pass\n")
    assert found == Rejected("f", 3, "no docstring")
