"""`apr run`, `apr chat` and `apr bench` on a small random model."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert import models
from convert.models import gguf_file, small_model

from .command import Command


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_file(
        tmp_path_factory.mktemp("model") / "m.gguf",
        small_model("Llama", max_position_embeddings=1024),
    )


def rows(path: Path) -> dict[str, dict[str, object]]:
    return {row["task_id"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_streamed_text_is_the_whole_completion(apr: Command, model: Path) -> None:
    streamed = apr("run", model, "def f(", "--max-tokens", 12)
    assert streamed.code == 0
    whole = json.loads(apr("run", model, "def f(", "--max-tokens", 12, "--json").out)
    (sample,) = whole["samples"]
    assert streamed.out == sample["text"] + "\n"
    assert sample["finish_reason"] in ("length", "stop")
    assert "--chat asks in the model's chat template" in streamed.err
    assert whole["model"]["kernels"] in ("compiled", "torch")


def test_prompt_from_standard_input_and_samples(
    apr: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("def f("))
    arguments = ("--max-tokens", 8, "--temperature", 1, "--n", 3, "--seed", 5, "--json")
    piped = json.loads(apr("run", model, "-", *arguments).out)["samples"]
    given = json.loads(apr("run", model, "def f(", *arguments).out)["samples"]
    assert [s["text"] for s in piped] == [s["text"] for s in given]
    assert [s["sample_index"] for s in given] == [0, 1, 2]
    assert len({s["text"] for s in given}) > 1


def test_a_terminal_that_is_not_utf8(
    apr: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("run", model, "x", "--max-tokens", 30, "--temperature", 1, "--seed", 2)
    text = json.loads(apr(*asked, "--json").out)["samples"][0]["text"]
    assert not text.isascii()
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    assert apr(*asked).code == 0
    assert written.getvalue() == (text + "\n").encode("ascii", "backslashreplace")
    monkeypatch.undo()
    typed = io.BytesIO(b"caf\xe9")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, "utf-8"))
    refused = apr("run", model, "-", "--max-tokens", 1)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "byte 0xe9 at character 3 is no UTF-8" in refused.err


def test_stop_string_is_cut_off(apr: Command, model: Path) -> None:
    text = json.loads(apr("run", model, "x", "--max-tokens", 20, "--json").out)["samples"][0][
        "text"
    ]
    stop = text[3:5]
    cut = json.loads(apr("run", model, "x", "--max-tokens", 20, "--stop", stop, "--json").out)
    assert cut["samples"][0]["text"] == text[: text.index(stop)]
    assert cut["samples"][0]["finish_reason"] == "stop_string"


def test_file_of_prompts_resumes(apr: Command, model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"task_id": f"t{i}", "prompt": "def " * (i + 1)} for i in range(4)]
    lines.append({"task_id": "c", "messages": [{"role": "user", "content": "hi"}]})
    source.write_text("\n".join(map(json.dumps, lines)) + "\n")
    arguments = ("run", model, "--batch-jsonl", source, "-o", out, "--max-tokens", 5)
    done = apr(*arguments)
    assert (done.code, done.out) == (0, "")
    first = rows(out)
    assert set(first) == {"t0", "t1", "t2", "t3", "c"}
    assert set(first["t0"]) >= {"task_id", "text", "tokens_generated", "tok_per_sec"}
    # Two answers are lost and a third is cut off in the middle, as by a kill.
    kept = out.read_text().splitlines(keepends=True)
    out.write_text("".join(kept[:2]) + kept[2][:10])
    again = apr(*arguments)
    assert again.code == 0
    assert "2 of 5 rows" in again.err
    assert {k: r["text"] for k, r in rows(out).items()} == {k: r["text"] for k, r in first.items()}
    report = json.loads(apr(*arguments, "--json").out)
    assert (report["rows"], report["already_there"], report["answered"]) == (5, 5, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "in.jsonl line 1 is not JSON"),
        ('{"prompt": "a"}\n[1]\n', "in.jsonl line 2 is not a JSON object"),
        ('{"task_id": "a"}\n', "in.jsonl line 1 has no text in field 'prompt'"),
        ('{"task_id": 1, "prompt": "a"}\n{"task_id": 1, "prompt": "b"}\n', "occurs twice"),
        ("\n", "has no rows"),
        ('{"prompt": "a"}\n{"task_id": ' + "7" * 5000 + "}", "line 2 has a number too long"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_loaded(
    apr: Command, tmp_path: Path, text: str, message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    done = apr("run", tmp_path / "no-model", "--batch-jsonl", source, "-o", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line(apr: Command, model: Path, tmp_path: Path) -> None:
    for arguments, message in [
        ((model,), "needs a prompt, --batch-jsonl FILE or --fim FILE"),
        ((model, "x", "--temperature", "-1"), "--temperature is -1"),
        ((model, "x", "--dtype", "int3"), "--dtype int3 is unknown"),
        ((model, "x", "--device", "warp"), "--device warp"),
        ((tmp_path / "missing", "x"), "no such"),
        ((tmp_path / "missing", "x", "--max-tokens", 0), "max_tokens is 0"),
        ((tmp_path / "missing", "x", "--n", 0), "n is 0"),
        ((tmp_path / "missing", "x", "--n", -2, "--json"), "n is -2"),
        ((tmp_path / "missing", "x", "--top-k", -1), "--top-k is -1"),
        ((model, "x " * 900), "tokens and the model's context"),
    ]:
        done = apr("run", *arguments)
        assert done.code == 2, done
        assert message in done.err
        assert done.err.strip().count("\n") == 0


def test_chat_keeps_turns_and_follows_commands(
    apr: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "hello\n/nonsense\n/system Be brief.\nagain\n/reset\nlast\n/exit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    done = apr("chat", model, "--max-tokens", 4, "--json")
    assert done.code == 0, done.err
    messages = json.loads(done.out)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "last"
    assert done.err.count("/reset forgets") == 2


def test_chat_goes_on_after_a_question_that_does_not_fit(
    apr: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n" + "x" * 1100 + "\nlast\n"))
    done = apr("chat", model, "--max-tokens", 4, "--json")
    assert done.code == 0
    assert "tokens and the model's context 1024" in done.err
    messages = json.loads(done.out)["messages"]
    assert [m["content"] for m in messages[::2]] == ["hello", "last"]


def test_interrupt_ends_the_answer_not_the_conversation(
    apr: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr.engine.session import Conversation

    ask, asked = Conversation.ask, []

    def interrupted_once(self: Conversation, question: str) -> Iterator[str]:
        for number, piece in enumerate(ask(self, question)):
            if number == 2 and not asked:
                asked.append(question)
                signal.raise_signal(signal.SIGINT)
            yield piece

    monkeypatch.setattr(Conversation, "ask", interrupted_once)
    monkeypatch.setattr("sys.stdin", io.StringIO("first\nsecond\n"))
    before = signal.getsignal(signal.SIGINT)
    done = apr("chat", model, "--max-tokens", 50, "--temperature", 0, "--json")
    assert done.code == 0
    assert done.err.count("[stopped]") == 1
    messages = json.loads(done.out)["messages"]
    assert [m["content"] for m in messages[::2]] == ["first", "second"]
    assert signal.getsignal(signal.SIGINT) is before


def test_answers_do_not_go_into_the_file_of_prompts(apr: Command, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n')
    done = apr("run", tmp_path / "no-model", "--batch-jsonl", source, "-o", source)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "is the file of --batch-jsonl" in done.err
    assert source.read_text() == '{"prompt": "a"}\n'


def test_bench_reports_rates(apr: Command, model: Path) -> None:
    done = apr("bench", model, "--streams", 2, "--repeats", 1, "--json")
    assert done.code == 0, done.err
    rates = json.loads(done.out)["rates"]
    assert [r["name"] for r in rates] == ["prefill 512", "decode, 1 stream", "decode, 2 streams"]
    assert all(r["tok_per_sec"] > 0 for r in rates)
    for flag in ("--repeats", "--streams"):
        assert apr("bench", model, flag, 0).err == f"apr: {flag} is 0 (it must be 1 or more)\n"


@pytest.fixture(scope="module")
def infiller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With StarCoder's tokens, and three of other names."""
    with pytest.MonkeyPatch.context() as patch:
        tokens = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<a>", "<b>", "<c>"]
        patch.setattr(models, "CONTROL", [*models.CONTROL, *tokens])
        sizes = {"vocab_size": models.VOCAB + 6, "max_position_embeddings": 256}
        path = tmp_path_factory.mktemp("fim") / "m.gguf"
        return gguf_file(path, small_model("Llama", **sizes))


def test_a_gap_is_filled(
    apr: Command, infiller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two files, one with a marker or standard input: the same as the written prompt."""
    prefix, suffix, whole = (tmp_path / name for name in ("prefix.py", "suffix.py", "whole.py"))
    prefix.write_bytes(b"def f(\r\n")
    suffix.write_bytes(b"\n    return")
    whole.write_bytes(b"def f(\r\n<FILL>\n    return")
    arguments = ("--max-tokens", 8, "--temperature", 1, "--seed", 3, "--json")

    def text(*gap: object) -> str:
        done = apr("run", infiller, *gap, *arguments)
        assert done.code == 0, done.err
        return json.loads(done.out)["samples"][0]["text"]

    wanted = text("<fim_prefix>def f(\r\n<fim_suffix>\n    return<fim_middle>")
    assert text("--prefix", prefix, "--suffix", suffix) == text("--fim", whole) == wanted
    whole.write_bytes(whole.read_bytes().replace(b"<FILL>", b"???"))
    assert text("--fim", whole, "--marker", "???") == wanted
    monkeypatch.setattr("sys.stdin", io.StringIO("def f(<FILL>\n    return"))
    assert text("--fim", "-") == text("<fim_prefix>def f(<fim_suffix>\n    return<fim_middle>")
    spm = text("<fim_prefix><fim_suffix>\n    return<fim_middle>def f(\r\n")
    assert text("--prefix", prefix, "--suffix", suffix, "--fim-order", "spm") == spm
    named = ("--fim-tokens", "<a>,<b>,<c>")
    assert text("--prefix", prefix, *named) == text("<a>def f(\r\n<b><c>")
    streamed = apr("run", infiller, "--prefix", prefix, "--max-tokens", 4)
    assert streamed.code == 0 and "--chat" not in streamed.err


def test_gaps_that_cannot_be_filled(
    apr: Command, infiller: Path, model: Path, tmp_path: Path
) -> None:
    file, binary = tmp_path / "a.py", tmp_path / "b.bin"
    file.write_text("x<FILL>y<FILL>")
    binary.write_bytes(b"\xff\xfe")
    cases = [
        (infiller, ["--fim", file], "has <FILL> 2 times (mark the one gap"),
        (infiller, ["--fim", file, "--prefix", file], "exclude each other"),
        (infiller, ["--prefix", tmp_path / "none.py"], "none.py cannot be read: No such file"),
        (infiller, ["--suffix", binary], "b.bin is not UTF-8 text"),
        (infiller, ["x", "--suffix", file], "one of the three"),
        (infiller, ["--suffix", file, "--chat"], "do not go with filling a gap"),
        (infiller, ["--suffix", file, "--fim-order", "mps"], "--fim-order mps is unknown"),
        (infiller, ["--suffix", file, "--fim-tokens", "<a>,<b>,<x>"], "has no token <x>"),
        (model, ["--suffix", file], "no tokens for filling in the middle"),
    ]
    for path, arguments, message in cases:
        done = apr("run", path, *arguments)
        assert (done.code, done.out) == (2, "") and message in done.err, (arguments, done.err)
        assert done.err.count("\n") == 1
