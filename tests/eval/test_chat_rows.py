"""Raw chat answers in a samples file; samples that are not what they are held for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.eval.benchmarks.own import OwnBenchmark
from apr.eval.benchmarks.task import PromptStyle
from apr.eval.code.thoughts import without_thoughts
from apr.eval.generators import Submission
from apr.eval.generators.chat_rows import chat_rows
from apr.eval.generators.sample_files import read_samples
from apr.eval.run.scoring import score_samples
from apr.eval.run.set_up import FIRST, EarlyWarning, set_up_notes

CODE = "def twice(n):\n    return n + n\n"
ANSWER = f"Here it is:\n\n```python\n{CODE}\nprint(twice(2))\n```\nDone."
THOUGHT = f"<think>\n```python\ndef twice(n):\n    return n * n\n```\n</think>\n{ANSWER}"
CUT = f"<think>\nA draft:\n```python\n{CODE}```\nBut"
TASK = {
    "task_id": "t/0",
    "prompt": "Write a function twice(n).",
    "test": ["assert twice(3) == 6", "assert twice(0) == 0"],
    "entry_point": "twice",
}
BENCHMARK = OwnBenchmark.of_rows("words", [TASK])
USER = {"role": "user", "content": "?"}


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


ROWS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "text": ({"text": ANSWER}, [ANSWER]),
    "response": ({"response": ANSWER}, [ANSWER]),
    "output": ({"output": ANSWER, "prompt": "?"}, [ANSWER]),
    "raw": ({"raw": ANSWER}, [ANSWER]),
    "an official field": ({"solution": ANSWER}, [ANSWER]),
    "messages": ({"messages": [USER, {"role": "assistant", "content": ANSWER}]}, [ANSWER]),
    "the last message": ({"response": {"role": "assistant", "content": ANSWER}}, [ANSWER]),
    "conversations": ({"conversations": [{"from": "gpt", "value": ANSWER}]}, [ANSWER]),
    "content parts": ({"text": [{"text": ANSWER[:9]}, {"text": ANSWER[9:]}]}, [ANSWER]),
    "several samples": ({"output_list": [ANSWER, ""]}, [ANSWER, ""]),
    "nothing said": ({"messages": [{"role": "assistant", "content": None}]}, [""]),
}  # fmt: skip


@pytest.mark.parametrize(("row", "texts"), ROWS.values(), ids=ROWS.keys())
def test_where_an_answer_stands(row: dict[str, Any], texts: list[str]) -> None:
    found = chat_rows({"task_id": "t/0", **row}, "f line 1")
    assert [(one["task_id"], one["text"]) for one in found] == [("t/0", text) for text in texts]


def test_reasoning_that_comes_apart_is_a_thought() -> None:
    message = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    (row,) = chat_rows({"question_id": "q", "messages": [message]}, "f line 1")
    assert (row["task_id"], without_thoughts(row["text"]).text) == ("q", ANSWER)
    cut = {"text": None, "output": "", "reasoning": "Hm", "finish_reason": "length"}
    assert without_thoughts(chat_rows(cut, "f line 1")[0]["text"]).unfinished


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "f line 1 holds no chat answer"),
        ({"messages": [USER]}, "f line 1 field 'messages' does not end with a message of the"),
        ({"messages": []}, "f line 1 field 'messages' does not end"),
        ({"text": 3}, "f line 1 field 'text' is neither a text nor"),
        ({"text": [{"type": "image"}]}, "f line 1 field 'text' is neither"),
        ({"text": "\ud800"}, "f line 1: its answer is not text"),
    ],
)
def test_rows_without_an_answer(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chat_rows({"task_id": "t/0", **row}, "f line 1")


def test_raw_answers_get_the_verdicts_of_the_extracted_ones(tmp_path: Path) -> None:
    data = lines(tmp_path / "words.jsonl", [TASK])
    answers = [ANSWER, THOUGHT, CUT, "No idea.", ANSWER.replace("n + n", "n")]
    style = PromptStyle("chat", prefill=False)
    task = BENCHMARK.tasks["t/0"]
    programs = [BENCHMARK.completion(task, without_thoughts(a).text, style) for a in answers]
    chat = lines(tmp_path / "chat.jsonl", [{"task_id": "t/0", "text": a} for a in answers])
    code = lines(tmp_path / "code.jsonl", [{"task_id": "t/0", "solution": p} for p in programs])
    one = score_samples(chat, str(data), form="chat", progress=False)
    other = score_samples(code, str(data), progress=False)
    verdicts = [[v.verdict == "passed" for v in result.verdicts] for result in (one, other)]
    assert verdicts == [[True, True, False, False, False]] * 2
    assert (one.settings["from"], one.generation["cut_while_thinking"]) == ("chat", 1)
    assert "from" not in other.settings and "cut_while_thinking" not in other.generation
    assert "1 of 5 samples have no answer" in one.notes


def test_chat_answers_in_place_of_programs_are_told(tmp_path: Path) -> None:
    data = lines(tmp_path / "words.jsonl", [TASK])
    chat = lines(tmp_path / "chat.jsonl", [{"task_id": "t/0", "solution": ANSWER}] * 3)
    result = score_samples(chat, str(data), progress=False)
    assert result.notes == (
        "3 of 3 samples do not parse and hold code fences: score them as chat answers with"
        " --from chat",
    )


def test_what_cannot_be_chat(tmp_path: Path) -> None:
    chat = lines(tmp_path / "chat.jsonl", [{"task_id": "t/0", "response": ANSWER}])
    with pytest.raises(UsageError) as caught:
        read_samples(chat, BENCHMARK)
    assert caught.value.hint == "--from chat reads raw chat answers"
    with pytest.raises(UsageError, match=r"`form` chat: .* is a folder"):
        read_samples(tmp_path, BENCHMARK, "chat")


def sample(program: str, answer: str | None = None, ending: str = "") -> Submission:
    return Submission("t/0", 0, program, answer, answer=answer, finish_reason=ending)


def test_faults_of_set_up_are_counted() -> None:
    def notes(*samples: Submission, hint: str = "") -> list[str]:
        return set_up_notes(BENCHMARK, samples, hint)

    good = sample(CODE, CODE)
    assert notes(good, good) == notes() == []
    assert notes(good, sample("", " \n")) == ["1 of 2 samples have no answer"]
    assert notes(*[sample("", "", "length")] * 4) == [
        "4 of 4 samples have no answer, 4 of them cut at the limit of tokens: a larger --max-tokens"
    ]
    assert notes(sample(THOUGHT), hint="do so")[0].endswith("hold code fences: do so")
    assert notes(sample("<think>\nx y\n</think>\nx"), hint="so")[0].endswith("hold thoughts: so")
    assert notes(good, sample("x y")) == []
    assert notes(*[sample("x y")] * 3) == ["3 of 3 samples are no Python that parses"]
    body = "    return n + n\n"
    continued = OwnBenchmark.of_rows("own", [{**TASK, "prompt": "def twice(n):\n"}])
    (note,) = set_up_notes(continued, [sample(body)], "")
    assert note.startswith("1 of 1 solutions parse only behind the prompts of their tasks")


def test_a_run_is_looked_at_after_its_first_answers() -> None:
    said: list[str] = []
    warning = EarlyWarning(BENCHMARK, "so", said.append)
    for number in range(FIRST + 5):
        assert bool(said) == (number >= FIRST)
        warning.sample(sample("", "", "length") if number != 3 else sample(CODE, CODE))
    assert said == [
        f"warning: of the first {FIRST}: 19 of 20 samples have no answer, 19 of them cut at the"
        " limit of tokens: a larger --max-tokens"
    ]
    said.clear()
    calm = EarlyWarning(BENCHMARK, "so", said.append)
    for number in range(FIRST):
        calm.sample(replace(sample(CODE, CODE), program="x y" if number % 2 else CODE))
    assert said == []
