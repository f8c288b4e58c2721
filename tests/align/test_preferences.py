"""Rows to preferences: shapes, what is learned of them, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apr.align.preferences import read_preferences
from apr.common.errors import UsageError
from apr.text import Tokenizer, load_tokenizer
from train.tiny import write_tokenizer

pytest.importorskip("transformers")

USER = [{"role": "user", "content": "Add 1 and 2."}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("It is 3.", "It is 4."))
HH = "\n\nHuman: Add 1 and 2.\n\nAssistant:"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


def read(tokenizer: Tokenizer, path: Path, rows: list[Any], length: int = 200, **how: Any) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"unpaired": False, **how}
    return read_preferences([path], tokenizer, length, **how)


def texts(tokenizer: Tokenizer, one: Any) -> tuple[str, ...]:
    """The prompt, and of each answer what is learned."""
    decode = lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=False)  # noqa: E731
    return decode(one.prompt), *(decode(a.ids[a.trained]) for a in one.answers)


CHAT = (
    "<|im_start|>user\nAdd 1 and 2.<|im_end|>\n<|im_start|>assistant\nIt is ",
    "3.<|im_end|>",
    "4.<|im_end|>",
)
RAW = ("Add: ", "3<|im_end|>", "4<|im_end|>")


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"prompt": "Add: ", "chosen": "3", "rejected": "4"}, RAW),
        ({"question": "Add: ", "response_j": "3", "response_k": "4"}, RAW),
        ({"instruction": "Add: ", "chosen": "3", "rejected": "4"}, RAW),
        ({"prompt": USER, "chosen": [GOOD], "rejected": [BAD]}, CHAT),
        ({"prompt": USER, "chosen": "It is 3.", "rejected": "It is 4."}, CHAT),
        ({"chosen": [*USER, GOOD], "rejected": [*USER, BAD]}, CHAT),
        ({"chosen": HH + " 3", "rejected": HH + " 4"}, (HH, " 3<|im_end|>", " 4<|im_end|>")),
    ],
)
def test_shapes(tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any], want: Any) -> None:
    """Answers that begin alike are not shared with the prompt: every token of them is learned."""
    (one,), report = read(tokenizer, tmp_path / "rows.jsonl", [row])
    prompt, *answers = texts(tokenizer, one)
    if want is CHAT:
        want = (CHAT[0].removesuffix("It is "), "It is 3.<|im_end|>", "It is 4.<|im_end|>")
    assert (prompt, *answers) == want
    assert one.good == (True, False) and report.kept == 1


def test_one_answer_is_for_kto(tokenizer: Tokenizer, tmp_path: Path) -> None:
    row = {"prompt": "Add: ", "completion": "3", "label": False}
    (one,), _ = read(tokenizer, tmp_path / "rows.jsonl", [row], unpaired=True)
    assert texts(tokenizer, one) == ("Add: ", "3<|im_end|>") and one.good == (False,)
    with pytest.raises(UsageError, match=r"line 1: it has one answer; prompt, chosen and rejected"):
        read(tokenizer, tmp_path / "rows.jsonl", [row])


def test_long_answers_are_cut_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    row = {"prompt": "Add: ", "chosen": "3" * 30, "rejected": "4"}
    (one,), report = read(tokenizer, tmp_path / "rows.jsonl", [row], length=15)
    assert texts(tokenizer, one) == ("Add: ", "3" * 10, "4<|im_end|>")
    assert report.truncated == 1 and one.longest == 15


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen equals rejected"),
        ({"prompt": "a" * 300, "chosen": "b", "rejected": "c"}, "the prompt has 300 tokens"),
        ({"prompt": "a", "chosen": "b"}, r"its keys are prompt, chosen; expected are prompt, chos"),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, "the response is empty"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "completion is not text"),
        ({"chosen": "b", "rejected": "c"}, "it has no prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "do not begin with the same messages"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "label is neither"),
    ],
)
def test_refusals_name_file_and_line(
    tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(UsageError, match=rf"rows.jsonl line 2: .*{message}"):
        read(tokenizer, tmp_path / "rows.jsonl", [good, row], unpaired="label" in row)
    kept, report = read(
        tokenizer, tmp_path / "rows.jsonl", [good, row], skip_bad_rows=True, unpaired=True
    )
    assert len(kept) == 1 and sum(report.dropped.values()) == 1
