"""A model that apr runs itself, from its reference to the scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate
from apr.model import opened
from train.tiny import write_model


def test_a_reference_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    refs = []
    plain = opened.open_model

    def noted(ref: str, *args: object, **options: object) -> opened.OpenedModel:
        refs.append(ref)
        return plain(ref, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(opened, "open_model", noted)
    settings = EvalSettings(
        model=str(folder), mode="base", limit=2, max_tokens=4, workers=1, progress=False
    )
    result, out = evaluate(replace(settings, out=tmp_path / "run"))
    assert refs == [str(folder)]
    assert result.model["fingerprint"] == result.settings["model"]
    assert len((out / "samples.jsonl").read_text().splitlines()) == 2
    stored = json.loads((out / "results.json").read_text())
    assert stored["generation"]["tokens_generated"] == 8
    assert stored["verdicts"] == {"failed": 2}
