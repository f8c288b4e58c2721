"""The command line. A verb is a module with `register(app)`; it imports its work when called."""

from __future__ import annotations

# Modules of this package, in the order `apr --help` lists them.
VERB_MODULES: tuple[str, ...] = (
    "pull",
    "data",
    "import_model",
    "export",
    "inspect_model",
    "check",
    "finetune",
    "merge",
    "merge_report",
    "prune",
    "run",
    "chat",
    "bench",
    "eval_model",
    "score",
    "results",
    "compare",
    "doctor",
)
