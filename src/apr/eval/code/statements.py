"""Which statements of a program belong to the solution, and which only use or show it.

As in EvalPlus' sanitizer (evalplus/sanitize.py) the first definition of a name counts and what
stands around the solution goes; unlike there, set-up statements stay, and what the solution takes
from a statement decides whether that one is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from apr.eval.code.names import DEFINITIONS, IMPORTS, bound, imported, root, use_of
from apr.eval.code.prefixes import parse

# What ends a program, or waits for somebody.
ENDS = frozenset(
    (
        *("exit", "quit", "input", "breakpoint", "SystemExit", "KeyboardInterrupt"),
        *("sys.exit", "sys.stdin", "os._exit", "os.abort", "os.kill"),
    )
)
TESTS = frozenset({"unittest", "doctest", "pytest", "timeit", "cProfile", "argparse"})  # modules
# What statements that only show something use.
SHOWS = frozenset({"print", "open", "sys.argv", "sys.stdout"})
ASSERT = "assert"  # no name of a program: stands for the statement


def definitions(code: str, entry_point: str) -> str:
    """The code without examples of its use and without second definitions of a name.

    Kept at top level: imports; the first definition of each function and class, unless it is a
    stub, and all that are registered with something (`@f.register`); statements that bind what the
    entry point uses, directly or through others; those that alter it (`f.cache = {}`,
    `TABLE.append(1)`, a call of `build()` that fills it) without calling the entry point; other
    set-up. Dropped, also where a function of the program does it: what calls the entry point,
    prints, asserts, reads input or ends the program; whatever depends on something dropped, and
    imports that only this uses; `if __name__`; test classes; `from __future__`, which is not
    allowed after a prompt: annotations that it postponed become texts. Code that does not parse is
    returned as it is.
    """
    code = _with_quoted_annotations(code)
    while True:  # what is dropped may have been all that used something else
        kept = _without(code, entry_point)
        if kept == code:
            return code
        code = kept


def _with_quoted_annotations(code: str) -> str:
    """Code with its annotations as texts, if it postpones them by `from __future__`."""
    tree = parse(code)
    futures = [n for n in (tree.body if tree else ()) if isinstance(n, ast.ImportFrom)]
    if tree is None or not any(
        n.module == "__future__" and "annotations" in [a.name for a in n.names] for n in futures
    ):
        return code
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        kind = (
            "returns" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else "annotation"
        )
        found += filter(None, [getattr(node, kind, None)])
    lines = code.encode().split(b"\n")
    for note in sorted(found, key=lambda n: (n.lineno, n.col_offset), reverse=True):
        last = (note.end_lineno or note.lineno) - 1
        text = repr(ast.unparse(note)).encode() + lines[last][note.end_col_offset :]
        first = note.lineno - 1
        lines[first : last + 1] = [lines[first][: note.col_offset] + text]
    quoted = b"\n".join(lines).decode()
    return quoted if parse(quoted) is not None else code


def is_stub(node: ast.stmt) -> bool:
    """A definition that says nothing: `pass`, `...`, a docstring, NotImplementedError; or a
    signature for type checkers.
    """
    if not isinstance(node, DEFINITIONS):
        return False
    overloads = any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
    return overloads or all(map(_says_nothing, node.body))


def first_line(node: ast.stmt) -> int:
    """Line of a statement, of its first decorator if it has one."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _says_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or isinstance(node, ast.Pass)


def _without(code: str, entry_point: str) -> str:
    tree = parse(code)
    if tree is None:
        return code
    keep = _Program(tree.body, entry_point).kept()
    if all(keep):
        return code
    lines = code.split("\n")
    result: list[str] = []
    last = 0
    for first, end, numbers in _lines_of(tree.body):
        kept = [number for number in numbers if keep[number]]
        if len(kept) == len(numbers):
            above = [line for line in lines[first - 2 : first - 1] if not line.strip()]
            result += [*(above if result and first - 1 > last else []), *lines[first - 1 : end]]
        else:
            result += (ast.get_source_segment(code, tree.body[number]) or "" for number in kept)
        last = end
    found = "\n".join(result) + "\n"
    return found if result and parse(found) is not None else code


def _lines_of(body: Sequence[ast.stmt]) -> list[tuple[int, int, list[int]]]:
    """First line, last line and numbers of the statements that share lines (`;`)."""
    found: list[tuple[int, int, list[int]]] = []
    for number, node in enumerate(body):
        first, end = first_line(node), node.end_lineno or node.lineno
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], end, [*found[-1][2], number])
        else:
            found.append((first, end, [number]))
    return found


class _Program:
    """The statements of a top level, and what they have to do with each other."""

    def __init__(self, body: list[ast.stmt], entry_point: str) -> None:
        self.body, self.entry = body, entry_point
        self.bound = [bound(node) for node in body]
        self.use = [use_of(node) for node in body]
        self.full = imported(body)
        self.binders: dict[str, list[int]] = {}
        for number, names in enumerate(self.bound):
            for name in names:
                self.binders.setdefault(name, []).append(number)
        self.functions = self._names_of(DEFINITIONS)
        self.imports = self._names_of(IMPORTS)
        self.is_class = any(isinstance(n, ast.ClassDef) and n.name == entry_point for n in body)
        self.reached = [self._reached(number) for number in range(len(body))]
        self.altered = [self._altered(number) for number in range(len(body))]
        self.needed = self._needed()

    def _names_of(self, kinds: tuple[type[ast.stmt], ...]) -> set[str]:
        found = zip(self.body, self.bound, strict=True)
        return {name for node, names in found if isinstance(node, kinds) for name in names}

    def kept(self) -> list[bool]:
        real = {n.name for n in self.body if isinstance(n, DEFINITIONS) and not is_stub(n)}
        have: set[str] = set()  # names bound by what is kept
        defined: set[str] = set()  # those that are functions and classes
        gone: set[str] = set()
        keep = []
        for number, node in enumerate(self.body):
            wanted = self._wanted(number, have, gone)
            if isinstance(node, DEFINITIONS) and wanted:
                again = node.name in defined or (node.name in real and is_stub(node))
                wanted = not again or self._registered(node)
                defined |= {node.name} if wanted and not is_stub(node) else set()
            if wanted:
                have |= self.bound[number]
                gone -= self.bound[number]
            else:
                gone |= self.bound[number] - have
            keep.append(wanted)
        return self._without_their_imports(keep)

    def _without_their_imports(self, keep: list[bool]) -> list[bool]:
        """Imports that only dropped statements use go with them: the library may not be there."""
        by: dict[bool, set[str]] = {True: set(), False: set()}
        for use, kept in zip(self.use, keep, strict=True):
            by[kept] |= set(map(root, use.reads))
        return [
            kept and not (isinstance(node, IMPORTS) and names & by[False] and not names & by[True])
            for kept, node, names in zip(keep, self.body, self.bound, strict=True)
        ]

    def _wanted(self, number: int, have: set[str], gone: set[str]) -> bool:
        node, names, use = self.body[number], self.bound[number], self.use[number]
        if isinstance(node, IMPORTS):
            return not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        if isinstance(node, DEFINITIONS):
            tests = any(root(self._full(name)) in TESTS for name in use.at_once)
            depends = not set(map(root, use.at_once)).isdisjoint(gone)
            return bool(names & self.needed) or not (tests or depends)
        if _empty(node) or _for_main(node):
            return False
        if self.entry in names & have:
            return isinstance(node, ast.Assign | ast.AnnAssign) and self.entry not in use.calls
        if names & self.needed:
            return not (names & self.needed <= have and self._ends(number))
        if not set(map(root, use.reads)).isdisjoint(gone) or self._ends(number):
            return False
        return bool(self.altered[number] & self.needed) or not self._shows(number)

    def _registered(self, node: ast.stmt) -> bool:
        """Whether a decorator hands a definition to something of the program."""
        if self.entry in bound(node) or not isinstance(node, DEFINITIONS):
            return False
        parts = (part for decorator in node.decorator_list for part in ast.walk(decorator))
        names = {part.id for part in parts if isinstance(part, ast.Name)}
        return bool(names & (self.binders.keys() - self.imports))

    def _needed(self) -> set[str]:
        """The names that the entry point uses, and what those use in turn."""
        todo = [self.entry] if self.entry in self.binders else [*self.functions]
        needed = set(todo)
        users = {name: set(numbers) for name, numbers in self.binders.items()}
        for number, names in enumerate(self.altered):
            for name in names if not self._ends(number) else ():
                users.setdefault(name, set()).add(number)
        while todo:
            for number in users.get(todo.pop(), ()):
                used = set(map(root, self.use[number].reads)) - needed
                todo += used
                needed |= used
        return needed

    def _altered(self, number: int) -> set[str]:
        """Names of the program that a statement may alter, also through functions it calls."""
        if isinstance(self.body[number], (*DEFINITIONS, *IMPORTS)):
            return set()
        called = {root(name) for name in self.reached[number]} & self.functions
        uses = [self.use[n] for name in called for n in self.binders[name]]
        changes = {name for use in [self.use[number], *uses] for name in use.changes}
        handed = self.use[number].handed - self.functions  # to hand over a function alters nothing
        return (changes | handed) - self.imports

    def _reached(self, number: int) -> set[str]:
        """Names that a statement reads, dotted, also through definitions that it uses."""
        todo = [number]
        seen: set[int] = set()
        found: set[str] = set()
        while todo:
            at = todo.pop()
            seen.add(at)
            found |= self.use[at].reads
            if _asserts(self.body[at]):
                found.add(ASSERT)
            for name in set(map(root, self.use[at].reads)) - {self.entry}:
                todo += (n for n in self.binders.get(name, ()) if n not in seen and self._leads(n))
        return found

    def _leads(self, number: int) -> bool:
        """Whether what a statement binds may be called."""
        return isinstance(self.body[number], (*DEFINITIONS, ast.Assign))

    def _ends(self, number: int) -> bool:
        """Whether a statement calls the entry point, ends the program or waits for input."""
        for name in self.reached[number]:
            full = self._full(name)
            if name == self.entry or (self.is_class and root(name) == self.entry):
                return True
            if root(full) in TESTS or not {full, root(full)}.isdisjoint(ENDS):
                return True
        return False

    def _shows(self, number: int) -> bool:
        full = set(map(self._full, self.reached[number]))
        return not (full | {root(name) for name in full}).isdisjoint({*SHOWS, ASSERT})

    def _full(self, name: str) -> str:
        """A dotted name with what was imported in full; no two dots are looked at."""
        first, _, rest = name.partition(".")
        whole = self.full.get(first, first) + (f".{rest}" if rest else "")
        return ".".join(whole.split(".")[:2])


def _empty(node: ast.stmt) -> bool:
    """Statements that set nothing up: chatter that is Python, asserts, ends of what is no loop."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Call)
    if isinstance(node, ast.AnnAssign):
        return node.value is None  # chatter such as "Note: this"
    ends = (ast.Return, ast.Pass, ast.Break, ast.Continue, ast.Raise)
    return isinstance(node, (*ends, ast.Assert, ast.Delete))


def _for_main(node: ast.stmt) -> bool:
    """`if __name__ == "__main__"` and its like."""
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def _asserts(node: ast.stmt) -> bool:
    return any(isinstance(part, ast.Assert) for part in ast.walk(node))
