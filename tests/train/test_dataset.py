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
from apr.data.training_rows import BadRow, recognise
from apr.text import Tokenizer, load_tokenizer
from apr.train.dataset import read_documents, split_off
from apr.train.examples import Learned, learned_of
from apr.train.packing import Document

from .tiny import CHATML, write_rows, write_tokenizer

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


def learned(row: dict[str, Any], tokenizer: Tokenizer, **options: bool) -> Learned:
    return learned_of(recognise(row, "here"), tokenizer, **options)


def marked(row: dict[str, Any], tokenizer: Tokenizer, **options: bool) -> str:
    """The row's texts, a line between them, with what is learned in «»."""
    documents = learned(row, tokenizer, **options).documents
    found = [runs(document, tokenizer) for document in documents]
    return "\n---\n".join(
        "".join(f"«{text}»" if is_learned else text for text, is_learned in parts)
        for parts in found
    )


def document_of(row: dict[str, Any], tokenizer: Tokenizer) -> Document:
    (document,) = learned(row, tokenizer).documents
    return document


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


def written(template: str, folder: Path, *turns: Any, **row: Any) -> str:
    write_tokenizer(folder, template)
    return marked({"messages": list(turns), **row}, load_tokenizer(folder))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


ANSWERS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last and KEEP else m.content.split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ OPEN }}{% endif %}"
)


def answers(keep: bool = True, opens: str = "") -> str:
    return ANSWERS.replace("KEEP", str(keep).lower()).replace("OPEN", repr(opens))


def test_a_template_that_rewrites_earlier_turns(tmp_path: Path) -> None:
    """As Qwen3's does, which drops the reasoning of all but the last answer: each answer is
    learned behind the conversation as it is when the model is asked for it."""
    turns = [user("a"), assistant("r</think>b"), user("c"), assistant("s</think>d")]
    assert written(answers(), tmp_path, *turns) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«r</think>b<|im_end|>»\n"
        "\n---\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«s</think>d<|im_end|>»\n"
    )


@pytest.mark.parametrize(
    "answer",
    [
        assistant("<think>\nr\n</think>\n\nb"),
        assistant("r\n</think>\n\nb"),
        assistant("b", reasoning_content="r"),
        assistant([{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "b"}]),
    ],
    ids=["whole", "opened", "field", "parts"],
)
def test_a_thought_that_the_question_opens(tmp_path: Path, answer: dict[str, Any]) -> None:
    """As QwQ's and DeepSeek-R1's templates: the question ends with the opening tag, and finished
    answers are written without their thoughts."""
    template = answers(keep=False, opens="<think>\n")
    assert written(template, tmp_path, user("a"), answer) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n"
        "«r\n</think>\n\nb<|im_end|>»\n"
    )


def test_an_answer_without_a_thought_where_one_is_opened(tmp_path: Path) -> None:
    template = answers(keep=False, opens="<think>\n")
    found = written(template, tmp_path, user("a"), assistant("b"))
    assert found.endswith("<think>\n«\n</think>\n\nb<|im_end|>»\n")


def test_what_follows_the_last_answer_alone(tmp_path: Path) -> None:
    """As Phi-3's template, which ends the whole with one more token: still one document."""
    template = CHATML.replace(
        "{% if add", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}{% if add"
    )
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert written(template, tmp_path, *turns) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>\n<|endoftext|>»"
    )


def test_an_opening_turn_of_the_assistant_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [assistant("Hello"), user("Add."), assistant("2")]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}] * 3)
    documents, report = read_documents([path], tokenizer, 100)
    assert report.lost == {"a turn that nobody asks for opens the conversation": 3}
    assert any("not learned, 3 turns: a turn that nobody" in line for line in report.lines())
    assert [document.targets for document in documents] == [2, 2, 2]
    with pytest.raises(BadRow, match="a turn that nobody asks for"):
        learned({"messages": turns[:1]}, tokenizer)


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": 0}], ids=str
)
def test_turns_that_are_marked(tokenizer: Tokenizer, mark: dict[str, Any]) -> None:
    turns = [user("a"), assistant("b", **mark), user("c"), assistant("d", weight=1)]
    assert marked({"messages": turns}, tokenizer) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n"
    )
    with pytest.raises(BadRow, match="no assistant turn to learn from"):
        learned({"messages": turns[:2]}, tokenizer)


# Tools, calls and thoughts as newer models' templates write them.
AGENT = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "run", "description": "Runs tests."}}
AGENT_WROTE = (
    '<tool>{"type": "function", "function": {"name": "run", "description": "Runs tests."}}</tool>'
    "<|im_start|>user\nPass?<|im_end|>\n<|im_start|>assistant\n"
    '«<think>hm</think><call>run {"folder": "pkg"}</call><|im_end|>»\n'
    "<|im_start|>tool\n3 passed<|im_end|>\n<|im_start|>assistant\n«Yes.<|im_end|>»\n"
)


def agent(call: dict[str, Any], tools: Any, **silence: Any) -> dict[str, Any]:
    first = {"role": "assistant", "reasoning_content": "hm", **silence, **call}
    turns = [user("Pass?"), first, {"role": "tool", "content": "3 passed"}, assistant("Yes.")]
    return {"messages": turns, "tools": tools}


FUNCTION = {"name": "run", "arguments": {"folder": "pkg"}}
AS_TEXT = {"name": "run", "arguments": '{"folder": "pkg"}'}


@pytest.mark.parametrize(
    "row",
    [
        agent({"tool_calls": [{"function": FUNCTION}]}, [TOOL], content=""),
        agent({"tool_calls": [{"function": AS_TEXT}]}, json.dumps([TOOL]), content=None),
        agent({"tool_calls": json.dumps([AS_TEXT])}, [TOOL["function"]]),
        agent({"function_call": AS_TEXT}, [TOOL]),
        {
            "tools": json.dumps([TOOL]),
            "conversations": [
                {"from": "human", "value": "Pass?"},
                {"from": "function_call", "value": json.dumps(FUNCTION), "reasoning": "hm"},
                {"from": "observation", "value": "3 passed"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
    ],
    ids=["objects", "text", "bare", "one", "sharegpt"],
)
def test_tools(tmp_path: Path, row: dict[str, Any]) -> None:
    """One conversation in the spellings people have; the ids are transformers'."""
    write_tokenizer(tmp_path, AGENT)
    tokenizer = load_tokenizer(tmp_path)
    assert marked(row, tokenizer) == AGENT_WROTE
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    example = agent({"tool_calls": [{"function": FUNCTION}]}, [TOOL], content="")
    wanted = theirs.apply_chat_template(example["messages"], tools=[TOOL], return_dict=True)
    assert document_of(row, tokenizer).ids.tolist() == wanted["input_ids"]


def test_arguments_as_the_template_wants_them(tmp_path: Path) -> None:
    """Some templates put arguments together as text, some leave silent turns out if empty."""
    as_text = AGENT.replace("c.function.arguments | tojson", "c.function.arguments + ''")
    row = agent({"tool_calls": [{"function": FUNCTION}]}, [TOOL], content=None)
    write_tokenizer(tmp_path / "text", as_text)
    assert marked(row, load_tokenizer(tmp_path / "text")) == AGENT_WROTE
    silent = AGENT.replace("m.tool_calls or []", "m.tool_calls or [] if m.content is undefined")
    write_tokenizer(tmp_path / "silent", silent.replace("{{ m.content }}", "{{ m.content or '' }}"))
    assert marked(row, load_tokenizer(tmp_path / "silent")) == AGENT_WROTE


def test_thinking_is_switched_on_where_a_row_thinks(tmp_path: Path) -> None:
    template = AGENT.replace("if m.reasoning_content", "if m.reasoning_content and enable_thinking")
    row = agent({"tool_calls": [{"function": FUNCTION}]}, [TOOL], content="")
    write_tokenizer(tmp_path, template)
    assert marked(row, load_tokenizer(tmp_path)) == AGENT_WROTE


@pytest.mark.parametrize(
    ("row", "left_out"),
    [
        ({"messages": [user("a"), assistant("b")], "tools": [TOOL]}, "`tools`"),
        ({"messages": [user("a"), assistant("b", reasoning="c")]}, "`reasoning_content`"),
        (
            {"messages": [user("a"), assistant("b", tool_calls=[{"function": FUNCTION}])]},
            "tool calls",
        ),
    ],
)
def test_what_a_template_leaves_out_is_refused(
    row: dict[str, Any], left_out: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(BadRow, match=f"the chat template leaves out its {left_out}"):
        learned(row, tokenizer)


def test_what_is_lost_of_a_turn(tmp_path: Path) -> None:
    """A thought that finished answers are written without and no question opens; words beside a
    call, which such templates drop on purpose."""
    with pytest.raises(BadRow, match="the chat template leaves out its thought"):
        written(answers(keep=False), tmp_path, user("a"), assistant("r</think>b"))
    silent = AGENT.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
    write_tokenizer(tmp_path, silent)
    row = agent({"tool_calls": [{"function": FUNCTION}]}, [TOOL], content="Let me see.")
    found = learned(row, load_tokenizer(tmp_path))
    assert found.lost == ("the chat template leaves out the words beside a tool call",)


def test_a_role_the_template_does_not_know(tmp_path: Path) -> None:
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'x' %}")
    with pytest.raises(BadRow, match="leaves out its message 1, of role x"):
        written(template, tmp_path, {"role": "x", "content": "rules"}, user("a"), assistant("b"))


def test_parts_and_what_is_no_text(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "Ad"}, {"type": "text", "text": "d."}]
    row = {"messages": [user(parts), assistant([{"type": "text", "text": "5"}])]}
    assert marked(row, tokenizer) == QUESTION + "«5<|im_end|>»\n"
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for content, reason in (
        ([*parts, image], "message 1 of messages: its content has a part of type image_url"),
        ({"a": 1}, "message 1 of messages: its content is an object, not text"),
        (None, "message 1 of messages has no text in 'content'"),
        (5, "message 1 of messages: its content is a number, not text"),
    ):
        with pytest.raises(BadRow, match=reason):
            learned({"messages": [user(content), assistant("5")]}, tokenizer)


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Puts a begin before every text, and an end behind it."""
    folder = tmp_path_factory.mktemp("begins")
    write_tokenizer(folder, extra=("<s>",))
    backend = json.loads((folder / "tokenizer.json").read_text())
    begin, text = (
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    end = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    backend["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text, end],
        "pair": [begin, text, end],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in (("<s>", 259), ("<|im_end|>", 258))
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"text": "x = 1\n"}, "«<s>x = 1\n<|im_end|>»"),
        ({"text": "<s>x = 1\n"}, "«<s>x = 1\n<|im_end|>»"),
        ({"text": "<s>x = 1<|im_end|>\n"}, "«<s>x = 1<|im_end|>»"),
        ({"text": "x = 1<|endoftext|>"}, "«<s>x = 1<|endoftext|>»"),
        (
            {"text": "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"},
            "«<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>»",
        ),
        ({"prompt": "a", "completion": "b"}, "<s>a«b<|im_end|>»"),
        ({"prompt": "<s>a", "completion": "b<|im_end|>\n"}, "<s>a«b<|im_end|>»"),
        (
            {"prompt": "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
             "completion": "b<|im_end|>\n<|im_start|>user\nc<|im_end|>"},
            "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
            "«b<|im_end|>\n<|im_start|>user\nc<|im_end|>»",
        ),
        ({"text": "x = '<|im_end|>' + y"}, "its text spells the special token <|im_end|>"),
        ({"text": "x = '<s>' + y"}, "its text spells the special token <s>"),
        ({"prompt": "is <s> html?", "completion": "no"}, "its text spells the special token <s>"),
        ({"text": "<s><|im_end|>"}, "the text is empty"),
    ],
)  # fmt: skip
def test_raw_text_with_special_tokens(
    row: dict[str, Any], wanted: str, beginning: Tokenizer
) -> None:
    """One begin and one end, whether the row spells them or not; others at its beginning only."""
    try:
        found = marked(row, beginning)
    except BadRow as error:
        found = str(error)
    assert found == wanted


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Add.", "response": " \n"}, "the response is empty"),
        ({"instruction": " ", "response": "1"}, "the instruction is empty"),
        ({"prompt": "x", "completion": ""}, "the response is empty"),
        ({"messages": []}, "messages is not a list of messages"),
        ({"messages": ["hello"]}, "message 1 of messages is no message with a role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"text": "  "}, "the text is empty"),
        ({"text": 3}, "text is not text"),
        ({"a": "x", "b": "y"}, r"it has no known shape, its columns: a, b \(known: messages, a q"),
        ({"instruction": "x<|im_end|>", "response": "y"}, r"spells the special token <\|im_end\|>"),
    ],
)
def test_rows_that_cannot_be_learned(row: Any, reason: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadRow, match=reason):
        learned(row, tokenizer)


def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good, empty = {"instruction": "a", "response": "b"}, {"instruction": "a", "response": ""}
    path = write_rows(tmp_path / "rows.jsonl", [good, empty, good])
    with pytest.raises(UsageError, match=r"rows\.jsonl line 2: the response is empty \(mend"):
        read_documents([path], tokenizer, 100)
    documents, report = read_documents([path], tokenizer, 100, skip_bad_rows=True)
    assert len(documents) == report.kept == 2 and report.rows == 3
    assert report.dropped == {"the response is empty": 1}
    assert report.named == {"the response is empty": [f"{path} line 2"]}
    assert f"dropped 1: the response is empty: {path} line 2" in report.lines()
    path.write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(UsageError, match=r"rows\.jsonl line 2: it is not JSON"):
        read_documents([path], tokenizer, 100)
    path.write_text("\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl holds no rows"):
        read_documents([path], tokenizer, 100)


def test_bad_answers_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False, False)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    documents, report = read_documents([path], tokenizer, 64)
    assert len(documents) == 1 and report.dropped == {"labelled as a bad answer": 2}


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
    good, empty = json.dumps({"text": "x"}), '{"text": ""}'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([good, '{"text": ', good, "[1]", *[empty, '{"a": 1}', empty]]) + "\n")
    with pytest.raises(UsageError) as refused:
        read_documents([path], tokenizer, 100)
    message = str(refused.value)
    assert message.startswith("5 of 7 rows cannot be learned from: it is not JSON: Expecting value")
    for named in ("it is not a JSON object: {} line 4;", "the text is empty: {} line 5, 7;"):
        assert named.format(path) in message
    documents, report = read_documents([path], tokenizer, 100, skip_bad_rows=True)
    assert len(documents) == report.kept == 2 and report.rows == 7
    assert report.dropped["the text is empty"] == 2 and report.dropped.total() == 5
    path.write_text('{"text": ""}\n' * 25)
    with pytest.raises(UsageError) as refused:
        read_documents([path], tokenizer, 100)
    lines = ", ".join(map(str, range(1, 21)))
    assert refused.value.message == (
        f"25 of 25 rows cannot be learned from: the text is empty: {path} line {lines} and 5 more"
    )


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
    with pytest.raises(UsageError, match=r"rows\.parquet row 2: text is not text"):
        read_documents([path], tokenizer, 100)


def test_a_part_is_held_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": str(i)} for i in range(40)])
    documents, report = read_documents([path], tokenizer, 64)
    kept, held_out = split_off(documents, report.sizes, 0.1, seed=3)
    assert len(held_out) == 4 and len(kept) == 36
    texts = {tuple(d.ids.tolist()) for d in kept} | {tuple(d.ids.tolist()) for d in held_out}
    assert len(texts) == 40
    again = split_off(documents, report.sizes, 0.1, seed=3)[1]
    assert [d.ids.tolist() for d in again] == [d.ids.tolist() for d in held_out]


def test_what_one_row_gave_stays_together() -> None:
    """A later turn's document holds the earlier ones'."""
    sizes = [3, 1, 2, 2]
    documents = [
        Document(np.array([row, i]), np.ones(2, bool))
        for row, n in enumerate(sizes)
        for i in range(n)
    ]
    for seed in range(8):
        parts = split_off(documents, sizes, 0.5, seed)
        rows = [{int(document.ids[0]) for document in part} for part in parts]
        assert not rows[0] & rows[1] and [len(found) for found in rows] == [2, 2]


def test_samples_are_coloured(tokenizer: Tokenizer) -> None:
    text = coloured(document_of({"prompt": "a", "completion": "b"}, tokenizer), tokenizer)
    assert text.plain == "a«b<|im_end|>»" and [str(span.style) for span in text.spans] == [
        "dim",
        "green",
    ]
