"""The command line. A verb is a module with `register(app)`; it imports its work when called."""

from __future__ import annotations

from types import ModuleType

VERBS: list[ModuleType] = []
