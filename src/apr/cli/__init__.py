"""The command line. A verb is a module with `register(app)`; it imports its work when called."""

from __future__ import annotations

# Modules of this package under the headings of `apr --help`, in its order.
VERBS: dict[str, tuple[str, ...]] = {
    "Models": ("models", "inspect_model"),
    "Train": ("data", "finetune", "align", "distill"),
    "Compress": ("merge", "prune"),
    "Run": ("run", "chat", "bench"),
    "Evaluate": ("eval_model", "score", "results"),
    "This machine": ("doctor",),
}
