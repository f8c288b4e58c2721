"""Rows of every shape: what is learned of them, and what is said of those that cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr.cli.training_output import coloured, runs
from apr.common.errors import UsageError
from apr.text import Tokenizer, load_tokenizer
from apr.train.dataset import read_documents, split_off
from apr.train.examples import BadRow, document_of
from apr.train.packing import Document

from .tiny import write_rows, write_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def base_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("base")
    write_tokenizer(folder, template=None)
    return load_tokenizer(folder)


def marked(row: dict[str, Any], tokenizer: Tokenizer, **options: bool) -> str:
    """The row's text with what is learned in «»."""
    found = runs(document_of(row, tokenizer, **options), tokenizer)
    return "".join(f"«{text}»" if learned else text for text, learned in found)


QUESTION = "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"instruction": "Add.", "response": "1 + 1"}, QUESTION + "«1 + 1<|im_end|>»\n"),
        ({"instruction": "Add.", "input": "", "output": "2"}, QUESTION + "«2<|im_end|>»\n"),
        (
            {"instruction": "Add.", "input": "1, 2", "response": "3", "system": "Be brief."},
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd.\n\n1, 2<|im_end|>\n"
            "<|im_start|>assistant\n«3<|im_end|>»\n",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Add."},
                    {"role": "assistant", "content": "2"},
                    {"role": "user", "content": "Now 2."},
                    {"role": "assistant", "content": "\n3"},
                ]
            },
            QUESTION + "«2<|im_end|>»\n<|im_start|>user\nNow 2.<|im_end|>\n<|im_start|>assistant\n"
            "«\n3<|im_end|>»\n",
        ),
        ({"prompt": "def f", "completion": "(): pass"}, "def f«(): pass<|im_end|>»"),
        (
            {"prompt": [{"role": "user", "content": "Add."}], "completion": "2"},
            QUESTION + "«2<|im_end|>»\n",
        ),
        ({"text": "x = 1\n"}, "«x = 1\n<|im_end|>»"),
    ],
)
def test_shapes(row: dict[str, Any], wanted: str, tokenizer: Tokenizer) -> None:
    assert marked(row, tokenizer) == wanted


def test_prompt_and_completion_as_a_question(tokenizer: Tokenizer) -> None:
    row = {"prompt": "Add.", "completion": "2"}
    assert marked(row, tokenizer, chat=True) == QUESTION + "«2<|im_end|>»\n"


def test_models_without_a_template(base_tokenizer: Tokenizer) -> None:
    row = {"instruction": "Add.", "response": "2"}
    wanted = "### Instruction:\nAdd.\n\n### Response:\n«2<|endoftext|>»"
    assert marked(row, base_tokenizer) == wanted


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    """Its chat template's ids, and its mask where the template marks what the assistant says."""
    marking = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
        "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    write_tokenizer(tmp_path, marking)
    ours, theirs = (
        load_tokenizer(tmp_path),
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße? 日本"},
        {"role": "assistant", "content": "def f():\n    return 1"},
        {"role": "user", "content": "  again "},
        {"role": "assistant", "content": "  \nno "},
    ]
    wanted = theirs.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    found = document_of({"messages": messages}, ours)
    assert found.ids.tolist() == wanted["input_ids"]
    assert found.trained.astype(int).tolist() == wanted["assistant_masks"]


def test_a_template_that_rewrites_earlier_turns_learns_the_last(tmp_path: Path) -> None:
    """As Qwen3's does, which drops the reasoning of all but the last answer."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] "
        "if not loop.last else m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    write_tokenizer(tmp_path, template)
    turns = [("user", "a"), ("assistant", "r</think>b"), ("user", "c"), ("assistant", "s</think>d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert marked(row, load_tokenizer(tmp_path)) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«s</think>d<|im_end|>»\n"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Add.", "response": " \n"}, "the response is empty"),
        ({"instruction": " ", "response": "1"}, "the instruction is empty"),
        ({"prompt": "x", "completion": ""}, "the response is empty"),
        ({"messages": []}, "messages is not a list of messages"),
        ({"messages": ["hello"]}, "no message with a role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"text": "  "}, "the text is empty"),
        ({"text": 3}, "text is no text"),
        ({"question": "x", "answer": "y"}, "its keys are question, answer; expected are instruct"),
        ({"instruction": "x<|im_end|>", "response": "y"}, r"spells the special token <\|im_end\|>"),
    ],
)
def test_rows_that_cannot_be_learned(row: Any, reason: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadRow, match=reason):
        document_of(row, tokenizer)


def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good, empty = {"instruction": "a", "response": "b"}, {"instruction": "a", "response": ""}
    path = write_rows(tmp_path / "rows.jsonl", [good, empty, good])
    with pytest.raises(UsageError, match=r"rows\.jsonl line 2: the response is empty \(mend"):
        read_documents([path], tokenizer, 100)
    documents, report = read_documents([path], tokenizer, 100, skip_bad_rows=True)
    assert len(documents) == report.kept == 2 and report.rows == 3
    assert report.dropped == {"the response is empty": 1}
    assert report.named == [f"{path} line 2: the response is empty"]
    assert any("dropped 1: the response is empty" in line for line in report.lines())
    path.write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(UsageError, match=r"rows\.jsonl line 2 is not JSON"):
        read_documents([path], tokenizer, 100)
    path.write_text("\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl holds no rows"):
        read_documents([path], tokenizer, 100)


def test_lengths(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Too long a question; an answer that is cut; a whole one; text that goes on."""
    rows = [
        {"instruction": "Add." + "x" * 60, "response": "1"},
        {"instruction": "Add.", "response": "1" * 100},
        {"instruction": "Add.", "response": "1"},
        {"text": "y" * 130},
    ]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    documents, report = read_documents([tmp_path / "rows.jsonl.gz"], tokenizer, 64)
    assert [len(document) for document in documents] == [64, 26, 64, 64, 3]
    assert (report.kept, report.truncated, report.split) == (3, 1, 1)
    assert report.dropped == {"nothing to learn within 64 tokens": 1}
    assert report.tokens == 221 and report.trained == sum(d.targets for d in documents)
    assert documents[2].targets == 63  # its first token follows nothing


def test_the_hook_before_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Plain text only; the numbers it draws depend on seed and row, not on what came before."""
    rows = [{"text": "abc"}, {"text": "def"}, {"instruction": "a", "response": "b"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)

    def transform(text: str, random: np.random.Generator) -> tuple[list[Document], list[str]]:
        ids = np.array([int(random.integers(256)), *map(ord, text)], np.int32)
        return [Document(ids, np.ones(4, bool))] * 2, ["twice"]

    first, report = read_documents([path], tokenizer, 64, transform=transform, seed=4)
    again, _ = read_documents([path], tokenizer, 64, transform=transform, seed=4)
    other, _ = read_documents([path], tokenizer, 64, transform=transform, seed=5)
    assert [len(d) for d in first[:4]] == [4] * 4 and len(first) == 5 and report.forms["twice"] == 2
    drawn = [[int(d.ids[0]) for d in documents[:4:2]] for documents in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] != drawn[0][1]


def test_every_bad_row_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = json.dumps({"text": "x"})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([good, '{"text": ', good, "[1]", '{"text": ""}', '{"a": 1}']) + "\n")
    with pytest.raises(UsageError) as refused:
        read_documents([path], tokenizer, 100)
    message = str(refused.value)
    assert message.startswith(f"4 of 6 rows cannot be learned from: {path} line 2 is not JSON")
    for named in ("line 4 is not a JSON object", "line 5: the text is empty", "line 6: its keys"):
        assert f"; {path} {named}" in message
    documents, report = read_documents([path], tokenizer, 100, skip_bad_rows=True)
    assert len(documents) == report.kept == 2 and report.rows == 6
    assert report.dropped["no JSON object"] == 2 and len(report.named) == 4
    path.write_text('{"text": ""}\n' * 25)
    with pytest.raises(
        UsageError, match=r"25 of 25 rows .* line 20: the text is empty; and 5 more"
    ):
        read_documents([path], tokenizer, 100)


SHAPES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": "a", "completion": "b"},
    {"prompt": [{"role": "user", "content": "a"}],
     "completion": [{"role": "assistant", "content": "b"}]},
    {"instruction": "a", "input": "c", "response": "b", "system": "d"},
    {"text": "a = 1"},
]  # fmt: skip


@pytest.mark.parametrize("row", SHAPES, ids=lambda row: ",".join(row))
def test_files_of_every_kind_give_the_same(
    tmp_path: Path, tokenizer: Tokenizer, row: dict[str, Any]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    write_rows(tmp_path / "rows.jsonl", [row, row])
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write((tmp_path / "rows.jsonl").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([row, row]))
    parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "rows.parquet")
    wanted = document_of(row, tokenizer).ids.tolist()
    for path in sorted(tmp_path.iterdir()):
        documents, report = read_documents([path], tokenizer, 100)
        assert [d.ids.tolist() for d in documents] == [wanted, wanted] and report.rows == 2


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), path)
    with pytest.raises(UsageError, match=r"rows\.parquet row 2: text is no text"):
        read_documents([path], tokenizer, 100)


def test_a_part_is_held_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": str(i)} for i in range(40)])
    documents, _ = read_documents([path], tokenizer, 64)
    kept, held_out = split_off(documents, 0.1, seed=3)
    assert len(held_out) == 4 and len(kept) == 36
    texts = {tuple(d.ids.tolist()) for d in kept} | {tuple(d.ids.tolist()) for d in held_out}
    assert len(texts) == 40
    again = split_off(documents, 0.1, seed=3)[1]
    assert [d.ids.tolist() for d in again] == [d.ids.tolist() for d in held_out]


def test_samples_are_coloured(tokenizer: Tokenizer) -> None:
    text = coloured(document_of({"prompt": "a", "completion": "b"}, tokenizer), tokenizer)
    assert text.plain == "a«b<|im_end|>»" and [str(span.style) for span in text.spans] == [
        "dim",
        "green",
    ]
