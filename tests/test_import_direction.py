"""Imports point downward only (docs/architecture.md). Read from the source; nothing is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

import apr

SOURCE = Path(apr.__file__).parent

# Upper layers may import lower ones, never the reverse; packages of one layer stay apart.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"cli"}),
    frozenset({"align", "distill"}),
    frozenset({"train"}),
    frozenset({"merge", "prune"}),
    frozenset({"data"}),
    frozenset({"eval", "convert"}),
    frozenset({"calibrate"}),
    frozenset({"engine"}),
    frozenset({"model"}),
    frozenset({"kernels"}),
)
# Leaves: anyone above may import them. Text reads tokenizers out of checkpoints.
LEAVES: dict[str, frozenset[str]] = {
    "text": frozenset({"checkpoint", "common"}),
    "checkpoint": frozenset({"common", "hub"}),
    "sandbox": frozenset({"common"}),
    "hub": frozenset({"common"}),
    "common": frozenset(),
}
# These run before or without a model.
TORCH_FREE = (
    "sandbox",
    "eval/run/result.py",
    "eval/run/scoring.py",
    "eval/code/extraction.py",
    "eval/run/store.py",
    "common/errors.py",
)


def imported_modules(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "apr" and len(parts) > 1 else None


def allowed(package: str) -> frozenset[str]:
    if package in LEAVES:
        return LEAVES[package] | {package}
    below: frozenset[str] = frozenset(LEAVES)
    for i, layer in enumerate(LAYERS):
        if package in layer:
            for lower in LAYERS[i + 1 :]:
                below |= lower
            return below | {package}
    raise AssertionError(f"apr.{package} has no place in the layers: add it to LAYERS")


def source_files() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE)


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downward(path: Path) -> None:
    relative = path.relative_to(SOURCE)
    package = relative.parts[0].removesuffix(".py")
    used = {package_of(name) for name in imported_modules(path)} - {None, "__version__"}
    wrong = used - allowed(package)
    assert not wrong, f"{relative} imports apr.{', apr.'.join(sorted(filter(None, wrong)))}"


def test_sandbox_and_scoring_know_neither_torch_nor_the_model() -> None:
    for entry in TORCH_FREE:
        place = SOURCE / entry
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            roots = {name.split(".")[0] for name in imported_modules(path)}
            assert "torch" not in roots, path
            packages = {package_of(name) for name in imported_modules(path)}
            assert not packages & {"engine", "model", "kernels", "text"}, path


def test_verbs_import_nothing_heavy_before_they_are_called() -> None:
    heavy = {"torch", "numpy", "numba", "tokenizers", "safetensors", "huggingface_hub", "pydantic"}
    code = "import sys, apr.cli.main; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in found.stdout.split()} & heavy


def test_files_do_not_import_in_circles() -> None:
    """Imports inside functions count; those for type checkers alone do not."""
    paths = {_module(path): path for path in SOURCE.rglob("*.py")}
    imports = {name: _imports(path, paths.keys()) - {name} for name, path in paths.items()}
    while True:
        # What imports nothing that is left is in no circle.
        done = {name for name, used in imports.items() if not used & imports.keys()}
        if not done:
            break
        imports = {name: used for name, used in imports.items() if name not in done}
    # Of the rest, what nothing of it imports only leads to a circle.
    while led := imports.keys() - set().union(*imports.values()):
        imports = {name: used for name, used in imports.items() if name not in led}
    assert not imports, sorted(imports)


def _module(path: Path) -> str:
    parts = ("apr", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, modules: Collection[str]) -> set[str]:
    """The modules of ours that a file imports when it is run."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules)
