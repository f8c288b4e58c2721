"""What a model thinks before it answers is not judged."""

from __future__ import annotations

import pytest

from apr.eval.code.thoughts import thought_begun, with_reasoning, without_thoughts

DRAFT = "```python\ndef f(n):\n    return n * n\n```\n"
ANSWER = "```python\ndef f(n):\n    return n + n\n```\n"

THOUGHT = {
    "a draft": f"<think>\nFirst:\n{DRAFT}No.\n</think>\n\n{ANSWER}",
    "a beginning that the prompt has": f"First:\n{DRAFT}No.\n</think>\n\n{ANSWER}",
    "an end in the middle of a line": f"First: squares.</think>{ANSWER}",
    "a draft whose block does not end": f"<think>\n```python\ndef f(n):\n</think>\n{ANSWER}",
    "no thought": f"<think>\n\n</think>\n\n{ANSWER}",
    "a long tag": f"<thinking>{DRAFT}</thinking>{ANSWER}",
    "a tag with a name before it": f"<seed:think>{DRAFT}</seed:think>\n{ANSWER}",
    "square brackets": f"[THINK]{DRAFT}[/THINK]{ANSWER}",
    "black triangles": f"◁think▷{DRAFT}◁/think▷{ANSWER}",
    "channels": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant"
    f"<|channel|>final<|message|>{ANSWER}",
    "a reasoning tag": f"<reasoning>\n{DRAFT}</reasoning>\n{ANSWER}",
    "a fence that touches the end": f"<think>{DRAFT.rstrip()}</think>{ANSWER}",
    "two thoughts": f"<think>{DRAFT}</think>\n<think>{DRAFT}</think>\n{ANSWER}",
    "a thought within one": f"<think>{DRAFT}\n<think>\n{DRAFT}</think>\n{DRAFT}</think>{ANSWER}",
    "a thought that quotes its end": f"<think>\nI end with `</think>`.\n{DRAFT}</think>\n{ANSWER}",
    "blanks before": f"\n\n <think>\n{DRAFT}</think>\n{ANSWER}".replace("\n <", "\n<"),
}


@pytest.mark.parametrize("text", THOUGHT.values(), ids=THOUGHT.keys())
def test_the_answer_is_what_follows_the_thought(text: str) -> None:
    said = without_thoughts(text)
    assert (said.text, said.unfinished) == (ANSWER, False)


CUT = {
    "a draft": f"<think>\nA draft:\n{DRAFT}I should also check",
    "a draft whose block does not end": "<think>\n```python\ndef f(n):\n    return n + n",
    "after words": f"Let me think.\n<think>\n{DRAFT}",
    "another kind": f"[THINK]\n{DRAFT}",
    "the second thought": f"<think>One.</think>\n<think>{DRAFT}",
}


@pytest.mark.parametrize("text", CUT.values(), ids=CUT.keys())
def test_an_unfinished_thought_is_an_empty_answer(text: str) -> None:
    said = without_thoughts(text)
    assert (said.text, said.unfinished) == ("", True)


def test_an_answer_before_an_unfinished_thought_stands() -> None:
    said = without_thoughts(f"{ANSWER}\n<think>\nIs that right? {DRAFT}")
    assert said.text.rstrip() == ANSWER.rstrip() and said.unfinished


CODE = {
    "no thought": ANSWER,
    "a tag in a string": '```python\ndef f(s):\n    return s.split("</think>")[-1]\n```\n',
    "tags in a pattern": "```python\nTAG = re.compile('<think>.*</think>')\n```\n",
    "tags in a docstring": '```python\ndef f(s):\n    """Without\n<think>\nthis </think> part."""\n'
    "    return s\n```\n",
    "a word about them": "It removes `<think>` and `</think>`.\n" + ANSWER,
    "leading white space": f"  \n{ANSWER}",
}


@pytest.mark.parametrize("text", CODE.values(), ids=CODE.keys())
def test_code_about_thoughts_is_an_answer(text: str) -> None:
    assert without_thoughts(text).text == text


def test_thoughts_that_come_apart() -> None:
    assert without_thoughts(with_reasoning(DRAFT, ANSWER, "stop")).text == ANSWER
    assert without_thoughts(with_reasoning(DRAFT, "", "length")).unfinished
    assert not without_thoughts(with_reasoning(DRAFT, "", "stop")).unfinished
    for nothing in (None, "", "  \n", 3):
        assert with_reasoning(nothing, ANSWER, "stop") == ANSWER


def test_a_prompt_that_begins_a_thought() -> None:
    assert thought_begun("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert thought_begun("<｜Assistant｜><think>\n") == "<think>\n"
    assert thought_begun("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert thought_begun("<|im_start|>assistant\n") == ""
