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


def test_a_template_that_begins_a_thought(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = folder / "tokenizer_config.json"
    known = json.loads(config.read_text()) if config.exists() else {}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n<think>\n"
    config.write_text(json.dumps({**known, "chat_template": template}))
    settings = EvalSettings(model=str(folder), limit=2, max_tokens=4, workers=1, progress=False)
    result, _ = evaluate(replace(settings, out=tmp_path / "run"))
    assert result.settings["prompt"] == "chat, without prefill"
    assert result.generation["cut_while_thinking"] == 2
    assert result.notes[-1].startswith("2 of 2 samples have no answer, 2 of them cut")
