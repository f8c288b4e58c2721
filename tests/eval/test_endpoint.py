"""Models behind a server: what is sent, what is made of the answers, and what goes wrong."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from apr.common.errors import AprError, UsageError
from apr.engine.request import Sampling
from apr.eval.benchmarks.humaneval import PREFILL, HumanEval
from apr.eval.benchmarks.task import PromptStyle
from apr.eval.generators import PROMPT_TOO_LONG, Answer, Ask, endpoint_client
from apr.eval.generators.endpoint import endpoint_model
from apr.eval.generators.endpoint_client import normal_url
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate, sample_seed
from apr.eval.run.store import Generation
from convert.models import gguf_file, small_model

from .fake_server import Asked, FakeServer, Reply, chat, completion
from .runs import right_or_wrong

BENCHMARK = HumanEval()
TASKS = list(BENCHMARK.tasks.values())
MODEL = {"id": "m", "object": "model", "owned_by": "vllm"}
WARM = Sampling(temperature=0.8)
Serve = Callable[..., FakeServer]


def solve(asked: Asked) -> Reply:
    """Canonical solutions for tasks with even numbers: as `right_or_wrong`, for all samples."""
    prompt = asked.body["prompt"]
    task = next(task for task in TASKS if task.prompt.rstrip() == prompt)
    return completion(*["\n" + right_or_wrong(task, 0)] * asked.body.get("n", 1))


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "FIRST_DELAY", 0.001)
    monkeypatch.delenv("APR_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(answer, models) -> a running server."""
    with ExitStack() as stack:

        def start(answer: Any = solve, models: Any = (MODEL,)) -> FakeServer:
            return stack.enter_context(FakeServer(answer, models).running())

        yield start


@pytest.fixture
def settings(tmp_path: Path) -> EvalSettings:
    return EvalSettings(
        model="m", mode="base", limit=4, progress=False, workers=1, out=tmp_path / "run"
    )


def at(settings: EvalSettings, server: FakeServer, **changes: Any) -> EvalSettings:
    return replace(settings, endpoint=server.url, **changes)


def answers(settings: EvalSettings, prefill: bool = False) -> tuple[list[Answer], dict[str, Any]]:
    """What a run is given, in the order of samples, and what is told of the server. No judging."""
    style = PromptStyle("chat" if settings.mode is None else settings.mode, prefill=prefill)
    generator = endpoint_model(settings).load(BENCHMARK, style, settings)
    asks = (
        Ask(
            task.task_id,
            BENCHMARK.prompt(task, style),
            tuple(range(settings.n_samples)),
            sample_seed(settings.seed, task.task_id),
        )
        for task in TASKS[: settings.limit]
    )
    found = sorted(generator(asks), key=lambda answer: (answer.task_id, answer.sample))
    return found, dict(generator.description)


def solved(found: Iterable[Answer]) -> bool:
    """Whether these are the answers of `solve`."""
    return all(
        answer.text == "\n" + right_or_wrong(BENCHMARK.tasks[answer.task_id], 0) for answer in found
    )


def stored(out: Path) -> list[Generation]:
    database = sqlite3.connect(f"file:{out}/run.sqlite?mode=ro", uri=True)
    try:
        found = database.execute("SELECT * FROM generation ORDER BY task_id, sample").fetchall()
        return [Generation(*row) for row in found]
    finally:
        database.close()


def test_a_whole_run(serve: Serve, settings: EvalSettings) -> None:
    server = serve()
    result, _ = evaluate(at(settings, server))
    value = result.to_json()
    assert (value["pass@1"], value["subject"]) == (0.5, "m")
    assert value["settings"]["model"] == f"{server.url.removeprefix('http://')} m"
    assert {"dtype", "device", "chat_template"}.isdisjoint(value["settings"])
    assert value["generation"]["tokens_generated"] == 20
    assert value["generation"]["tokens_per_second"] > 0
    assert value["model"]["server"] == "vLLM" and value["model"]["endpoint"] == server.url
    assert value["model"]["reported_model"] == "m"
    assert {asked.path for asked in server.asked} == {"/v1/completions"}
    body = server.asked[0].body
    assert set(body) == {
        *("model", "prompt", "max_tokens", "temperature", "stop"),
        *("top_p", "top_k", "min_p", "repetition_penalty"),
    }
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 512, 0.0)
    assert len(body["stop"]) == 8, "vLLM takes any number"
    again, _ = evaluate(at(settings, server))
    assert again.to_json() == value and len(server.asked) == 4, "nothing is asked twice"


def test_chat_is_the_usual_mode_and_the_answer_is_not_begun(
    serve: Serve, settings: EvalSettings
) -> None:
    def answer(asked: Asked) -> Reply:
        question = asked.body["messages"][-1]["content"]
        task = next(task for task in TASKS if task.prompt.strip() in question)
        return chat(f"Sure!\n```python\n{task.prompt}{task.canonical_solution}\n```\nDone.")

    server = serve(answer)
    result, _ = evaluate(at(settings, server, mode=None))
    value = result.to_json()
    assert (value["pass@1"], value["settings"]["prompt"]) == (1.0, "chat, without prefill")
    assert server.asked[0].path == "/v1/chat/completions"
    assert [m["role"] for m in server.asked[0].body["messages"]] == ["user"]
    assert "stop" not in server.asked[0].body and "continue_final_message" not in str(server.asked)


def test_thoughts_are_not_judged(serve: Serve, settings: EvalSettings) -> None:
    """In the text, apart from it, and cut off before there is an answer."""

    def answer(asked: Asked) -> Reply:
        question = asked.body["messages"][-1]["content"]
        number, task = next(
            (n, task) for n, task in enumerate(TASKS) if task.prompt.strip() in question
        )
        draft = f"```python\n{task.prompt}    return None\n```\n"
        right = f"```python\n{task.prompt}{task.canonical_solution}```\n"
        message = (
            {"content": f"<think>\n{draft}</think>\n{right}"},
            {"content": right, "reasoning_content": draft},
            {"content": f"<think>\n{right}"},
            {"content": None, "reasoning": right},
        )[number]
        ending = "stop" if number < 2 else "length"
        return Reply({"choices": [{"message": message, "finish_reason": ending}]})

    result, out = evaluate(at(settings, serve(answer), mode=None))
    assert [v.verdict == "passed" for v in result.verdicts] == [True, True, False, False]
    assert result.generation["cut_while_thinking"] == 2
    assert any(note.startswith("2 of 4 samples have no answer, 2 of") for note in result.notes)
    assert all("<think>" in found.text for found in stored(out))


@pytest.mark.parametrize("repeats", [False, True], ids=["goes on", "repeats the beginning"])
def test_a_begun_answer(serve: Serve, settings: EvalSettings, repeats: bool) -> None:
    def answer(asked: Asked) -> Reply:
        question, begun = (message["content"] for message in asked.body["messages"])
        task = next(task for task in TASKS if task.prompt.strip() in question)
        text = f"{task.prompt}{task.canonical_solution}\n```\nand more"
        return chat(begun + text if repeats else text)

    server = serve(answer)
    found, _ = answers(at(settings, server, mode="chat", limit=2), prefill=True)
    assert [a.text for a in found] == [t.prompt + t.canonical_solution for t in TASKS[:2]]
    body = server.asked[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": PREFILL}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_server_that_cannot_go_on_with_an_answer(serve: Serve, settings: EvalSettings) -> None:
    server = serve(models=[{"id": "m", "owned_by": "me"}])
    with pytest.raises(UsageError, match="--prefill: llama-cpp-python does not"):
        answers(at(settings, server, mode="chat"), prefill=True)
    assert not server.asked


VLLM_ON = {"top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2}
FILTERS = [
    ("vllm", {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}, VLLM_ON),
    ("sglang", {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}, VLLM_ON),
    (
        "llamacpp",
        {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
        {"top_p": 0.9, "top_k": 40, "min_p": 0.1, "repeat_penalty": 1.2},
    ),
    ("library", {}, VLLM_ON),
]


@pytest.mark.parametrize(("owner", "off", "on"), FILTERS, ids=[row[0] for row in FILTERS])
def test_filters_that_are_off_are_said_where_the_server_would_filter_by_itself(
    serve: Serve, settings: EvalSettings, owner: str, off: dict, on: dict
) -> None:
    server = serve(models=[{"id": "m", "owned_by": owner}])
    names = {"top_p", "top_k", "min_p", "repetition_penalty", "repeat_penalty"}
    _, facts = answers(at(settings, server, limit=1))
    assert {k: v for k, v in server.asked[0].body.items() if k in names} == off
    assert facts.get("left_to_the_server") == (
        None if off else "top_p, top_k, min_p, repetition_penalty"
    )
    warm = Sampling(0.7, 40, 0.9, 0.1, 1.2)
    answers(at(settings, server, limit=1, sampling=warm))
    body = server.asked[1].body
    assert {k: v for k, v in body.items() if k in names} == on
    assert body["temperature"] == 0.7 and 0 <= body["seed"] < 2**31


def test_stop_strings_above_four_are_cut_here(serve: Serve, settings: EvalSettings) -> None:
    """Four are sent, special tokens last; the text is cut at the others all the same."""
    tail = '<file_sep>\nraise ValueError("not cut")\n'
    server = serve(
        lambda asked: completion(solve(asked).body["choices"][0]["text"] + tail),
        models=[{"id": "m", "owned_by": "somebody"}],
    )
    found, facts = answers(at(settings, server))
    assert solved(found) and {a.finish_reason for a in found} == {"stop"}
    assert server.asked[0].body["stop"] == ["\nclass", "\ndef", "\n#", "\n@"]
    assert facts["stop_strings_sent"] == "4 of 8, cut at the others here"


def test_samples_of_a_task_come_from_one_request(serve: Serve, settings: EvalSettings) -> None:
    server = serve()
    settings = at(settings, server, limit=2, n_samples=5, sampling=WARM)
    result, out = evaluate(settings)
    assert [asked.body["n"] for asked in server.asked] == [5, 5]
    assert len(result.verdicts) == 10
    assert sum(g.tokens for g in stored(out)) == 50
    # More samples later: another request, with another seed.
    evaluate(replace(settings, n_samples=7))
    assert sorted(asked.body["n"] for asked in server.asked) == [2, 2, 5, 5]
    assert len({asked.body["seed"] for asked in server.asked}) == 4


def ignoring(asked: Asked) -> Reply:
    return solve(replace(asked, body={**asked.body, "n": 1}))


def refusing(asked: Asked) -> Reply:
    return Reply({"error": "n must be 1"}, 422) if asked.body.get("n", 1) > 1 else solve(asked)


@pytest.mark.parametrize("answer", [ignoring, refusing])
def test_servers_without_n_are_asked_one_by_one(
    serve: Serve, settings: EvalSettings, answer: Any
) -> None:
    seeds = []
    for _ in range(2):
        server = serve(answer)
        changes: dict[str, Any] = {"n_samples": 4, "sampling": WARM, "max_concurrency": 4}
        found, facts = answers(at(settings, server, limit=3, **changes))
        assert solved(found) and [(a.task_id, a.sample) for a in found] == [
            (f"HumanEval/{task}", sample) for task in range(3) for sample in range(4)
        ]
        assert facts["samples_a_request"] == 1
        # Known after the first answer: the tasks after it are not asked for four at once.
        assert sum("n" in asked.body for asked in server.asked) == 1
        seeds.append({asked.body["seed"] for asked in server.asked if "n" not in asked.body})
    assert len(seeds[0]) >= 11 and seeds[0] == seeds[1]


def test_no_more_samples_under_way_than_asked_for(serve: Serve, settings: EvalSettings) -> None:
    together = threading.Barrier(3)

    def answer(asked: Asked) -> Reply:
        together.wait(timeout=20)  # breaks, and the run with it, unless three come at a time
        return solve(asked)

    server = serve(answer)
    found, _ = answers(at(settings, server, limit=9, max_concurrency=3))
    assert solved(found) and server.busiest == 3
    server = serve()
    found, _ = answers(at(settings, server, n_samples=10, sampling=WARM, max_concurrency=4))
    assert len(found) == 40
    assert server.busiest <= 4 and max(asked.body["n"] for asked in server.asked) == 4


def busy(**headers: str) -> Reply:
    return Reply({"error": {"message": "slow down"}}, 429, headers)


SOON = format_datetime(datetime.now(UTC) + timedelta(seconds=-5))
PASSING = {
    "busy": busy(),
    "busy, for seconds": busy(**{"Retry-After": "0.2"}),
    "busy, until a date": busy(**{"Retry-After": SOON}),
    "busy, for who knows how long": busy(**{"Retry-After": "soon"}),
    "overloaded": Reply({"detail": "overloaded"}, 503),
    "broken": Reply("<html>Internal Server Error</html>", 500),
    "half an object": Reply('{"choices": [{"tex'),
    "no object": Reply("[]"),
    "reset": Reply(reset=True),
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=list(PASSING))
def test_what_passes_is_tried_again(serve: Serve, settings: EvalSettings, failure: Reply) -> None:
    script = [failure, failure]
    server = serve(lambda asked: script.pop() if script else solve(asked))
    start = time.monotonic()
    found, _ = answers(at(settings, server, limit=2, max_concurrency=1))
    assert solved(found) and len(found) == 2 and len(server.asked) == 4
    if failure.headers.get("Retry-After") == "0.2":
        assert time.monotonic() - start >= 0.4, "it was asked to wait, twice"


LASTING = {
    "busy": (busy(), 6, r"task HumanEval/1: http.*/v1/completions answered 429: slow down"),
    "broken": (Reply("oops", 500), 6, r"answered 500 \(try again later; what is done is stored"),
    "no JSON": (Reply("{"), 6, "answered 200 without a JSON object"),
    "reset": (Reply(reset=True), 6, "cannot reach http.*check that the server runs"),
    "busy for long": (busy(**{"Retry-After": "4000"}), 1, "left alone for 4000 s"),
    "no money": (
        Reply({"error": {"message": "pay", "code": "insufficient_quota"}}, 429),
        1,
        "429: pay",
    ),
    "no choices": (Reply({"choices": []}), 1, "answered without choices"),
    "odd choice": (Reply({"choices": [{"text": 5}]}), 1, "whose text is no text"),
    "odder choice": (Reply({"choices": ["x"]}), 1, "none of this API"),
    "refused": (Reply({"detail": "no template"}, 400), 1, "answered 400: no template"),
    "gone": (Reply("", 404), 1, r"answered 404 \(check --endpoint"),
    "moved": (Reply("", 307, {"Location": "http://x"}), 1, "answered 307"),
    "locked": (Reply({"error": {"message": "bad key sk-12"}}, 401), 1, "401 .*set APR_API_KEY"),
}


@pytest.mark.parametrize(("failure", "tries", "message"), LASTING.values(), ids=list(LASTING))
def test_what_lasts_is_told(
    serve: Serve, settings: EvalSettings, failure: Reply, tries: int, message: str
) -> None:
    server = serve(lambda asked: solve(asked) if len(server.asked) == 1 else failure)
    with pytest.raises(AprError, match=message) as caught:
        answers(at(settings, server, limit=2, max_concurrency=1))
    assert "\n" not in str(caught.value) and "sk-12" not in str(caught.value)
    assert len(server.asked) == 1 + tries


def test_answers_on_their_way_are_kept_when_another_fails(
    serve: Serve, settings: EvalSettings
) -> None:
    failed = threading.Event()

    def answer(asked: Asked) -> Reply:
        if asked.body["prompt"] == TASKS[1].prompt.rstrip():
            failed.set()
            return Reply({"detail": "no"}, 400)
        failed.wait(20)
        time.sleep(0.2)
        return solve(asked)

    server = serve(answer)
    with pytest.raises(AprError, match=r"task HumanEval/1.*answered 400"):
        evaluate(at(settings, server, max_concurrency=4))
    assert settings.out is not None
    assert [g.task_id for g in stored(settings.out)] == [f"HumanEval/{i}" for i in (0, 2, 3)]
    server.answer = solve
    result, _ = evaluate(at(settings, server, max_concurrency=4))
    assert len(server.asked) == 5 and result.to_json()["pass@1"] == 0.5


def test_a_slow_server(serve: Serve, settings: EvalSettings) -> None:
    over = threading.Event()

    def answer(asked: Asked) -> Reply:
        over.wait(20)
        return solve(asked)

    server = serve(answer)
    try:
        with pytest.raises(AprError, match=r"no answer within 0\.2 s \(--request-timeout"):
            answers(at(settings, server, limit=1, request_timeout=0.2))
    finally:
        over.set()
    assert len(server.asked) == 2


def test_nobody_there(settings: EvalSettings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(AprError, match=f"cannot reach {url}/v1/models.*check that the server"):
            answers(replace(settings, endpoint=url))


def test_unknown_models(serve: Serve, settings: EvalSettings) -> None:
    server = serve(models=[{"id": "qwen2.5-coder:latest"}, {"id": "smollm2:135m"}])
    with pytest.raises(UsageError, match=r"has no model qwen25-coder \(it has qwen2\.5-coder:lat"):
        answers(at(settings, server, model="qwen25-coder"))
    with pytest.raises(UsageError, match=r"it has qwen2\.5-coder:latest, smollm2:135m\)"):
        answers(at(settings, server, model="xyz"))
    assert solved(answers(at(settings, server, model="qwen2.5-coder"))[0])


@pytest.mark.parametrize("models", [None, [], ["x"]])
def test_servers_without_a_list_of_models(
    serve: Serve, settings: EvalSettings, models: Any
) -> None:
    assert solved(answers(at(settings, serve(models=models)))[0])


# Of vLLM: today's, which counts no further than it must, and two earlier ones, also OpenAI's.
TOO_LONG = [
    "You passed 489 input tokens and requested 512 output tokens. However, the model's context"
    " length is only 1000 tokens, resulting in a maximum input length of 488 tokens.",
    "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context"
    " length is 1000 tokens and your request has 700 input tokens (512 > 1000 - 700).",
    "This model's maximum context length is 1000 tokens. However, you requested 1212 tokens (700"
    " in the messages, 512 in the completion). Please reduce the length of the messages.",
]


@pytest.mark.parametrize("words", TOO_LONG)
def test_a_prompt_that_leaves_room_for_fewer_tokens(
    serve: Serve, settings: EvalSettings, words: str
) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.body["max_tokens"] > 300:
            return Reply({"error": {"message": words}}, 400)
        reply = solve(asked)
        reply.body["usage"]["prompt_tokens"] = 700
        return reply

    server = serve(answer)
    found, _ = answers(at(settings, server, limit=1, n_samples=2, sampling=WARM))
    assert solved(found) and len(found) == 2
    sent = [(asked.body["max_tokens"], asked.body.get("n", 1)) for asked in server.asked]
    assert sent == [(512, 2), (1, 1), (300, 2)]


@pytest.mark.parametrize(
    "message",
    [
        TOO_LONG[0],
        "request (9412 tokens) exceeds the available context size (8192 tokens), try increasing it",
        "Requested tokens (3000) exceed context window of 2048",
    ],
)
def test_a_prompt_longer_than_the_context_is_a_counted_empty_answer(
    serve: Serve, settings: EvalSettings, message: str
) -> None:
    def answer(asked: Asked) -> Reply:
        long = asked.body["prompt"] == TASKS[0].prompt.rstrip()
        return Reply({"error": {"message": message}}, 400) if long else solve(asked)

    server = serve(answer)
    found, _ = answers(at(settings, server, limit=3, n_samples=2, sampling=WARM))
    assert [(a.text, a.finish_reason) for a in found[:2]] == [("", PROMPT_TOO_LONG)] * 2
    assert solved(found[2:]) and len(server.asked) == 3 + (message == TOO_LONG[0])


def test_keys_that_no_header_holds(
    serve: Serve, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setenv("APR_API_KEY", " sk-secret\n")
    answers(at(settings, server, limit=1))
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    for odd in ("sk-\nsecret", "sk-secret\u2013"):
        monkeypatch.setenv("APR_API_KEY", odd)
        with pytest.raises(UsageError, match="APR_API_KEY holds characters") as caught:
            answers(at(settings, server))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["APR_API_KEY", "OPENAI_API_KEY"])
def test_keys(
    serve: Serve, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Sent as they should be, and found nowhere else; OpenAI's to nobody but OpenAI."""
    monkeypatch.setenv(name, "sk-secret")
    server = serve()
    _, out = evaluate(at(settings, server, limit=1))
    sent = [asked.headers.get("Authorization") for asked in server.asked]
    assert sent == (["Bearer sk-secret"] if name == "APR_API_KEY" else [None])
    assert endpoint_client.api_key("https://api.openai.com/v1") == "sk-secret"
    for path in out.iterdir():
        assert b"sk-secret" not in path.read_bytes(), path
    server.answer = lambda asked: Reply({"error": "no, sk-secret!"}, 400)
    with pytest.raises(AprError) as caught:
        answers(at(settings, server))
    assert ("sk-secret" in str(caught.value)) == (name != "APR_API_KEY")


def test_log_probabilities_for_reranking(serve: Serve, settings: EvalSettings) -> None:
    def answer(asked: Asked) -> Reply:
        assert asked.body["logprobs"] == 1
        reply = completion("\n    return 1\n", "\n" + TASKS[0].canonical_solution)
        reply.body["choices"][0]["logprobs"] = {"token_logprobs": [-1.0, -3.0]}
        reply.body["choices"][1]["logprobs"] = {"token_logprobs": [-0.5, -1.5]}
        return reply

    settings = replace(settings, n_samples=2, sampling=WARM, rerank=("logprob",), limit=1)
    result, out = evaluate(at(settings, serve(answer)))
    assert [g.mean_logprob for g in stored(out)] == [-2.0, -1.0]
    assert result.reranked["logprob"]["pass@1"] == 1.0


def test_odd_answers(serve: Serve, settings: EvalSettings) -> None:
    """Nothing but reasoning, half a character, no usage."""
    replies = [chat(None), chat("\ud800"), chat("x = 1")]
    del replies[2].body["usage"]
    server = serve(lambda asked: replies[len(server.asked) - 1])
    found, _ = answers(at(settings, server, mode="chat", limit=3, max_concurrency=1))
    assert [(a.text, a.tokens) for a in found] == [("", 5), ("?", 5), ("x = 1", 0)]


def test_urls() -> None:
    for given, wanted in {
        "http://localhost:8000": "http://localhost:8000/v1",
        "http://localhost:8000/": "http://localhost:8000/v1",
        "https://host/v1/": "https://host/v1",
        "https://host/api/openai/v1": "https://host/api/openai/v1",
        "http://[::1]:80/v1/chat/completions": "http://[::1]:80/v1",
        "http://host/v1/completions/": "http://host/v1",
    }.items():
        assert normal_url(given) == wanted
    for wrong in ("localhost:8000", "ftp://host", "http://", "http://host:port", "", "http://["):
        with pytest.raises(UsageError, match="not an http or https URL"):
            normal_url(wrong)
    for secret in ("http://me:secret@host/v1", "http://host/v1?key=secret"):
        with pytest.raises(UsageError, match="APR_API_KEY") as caught:
            normal_url(secret)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float32"}, "--dtype with --endpoint"),
        ({"device": "cuda"}, "--device with --endpoint"),
        ({"offline": True}, "--offline with --endpoint"),
        ({"request_timeout": 0.0}, "--request-timeout is 0"),
        ({"benchmark": "infilling-single-line", "mode": "psm"}, "no fill-in-the-middle prompts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_go_with_an_endpoint(
    settings: EvalSettings, tmp_path: Path, changes: dict, message: str
) -> None:
    data = tmp_path / "tasks.jsonl"
    row = {"task_id": "T/f", "prompt": "def f():\n", "suffix": "", "entry_point": "f"}
    data.write_text(json.dumps({**row, "test": "def check(f): ...", "canonical_solution": "  1"}))
    with pytest.raises(UsageError, match=message):
        evaluate(replace(settings, endpoint="http://127.0.0.1:9", data=data, **changes))


@pytest.mark.slow
def test_llama_cpp_s_server_says_what_our_engine_says(tmp_path: Path) -> None:
    """The same fp32 model here and behind llama-cpp-python's server, greedy: equal texts."""
    python = os.environ.get("APR_LLAMA_CPP_PYTHON")
    if not python:
        pytest.skip("APR_LLAMA_CPP_PYTHON names no Python with llama-cpp-python[server]")
    torch.manual_seed(0)
    file = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    data = tmp_path / "tasks.jsonl"
    with data.open("w") as lines:
        for number in range(10):
            row = {"task_id": f"T/{number}", "prompt": f"def f{number}(x):\n    return"}
            rest = {"entry_point": f"f{number}", "test": "def check(f):\n    assert f(1)\n"}
            lines.write(json.dumps({**row, **rest, "canonical_solution": " x\n"}) + "\n")
    common = EvalSettings(model=str(file), mode="base", data=data, max_tokens=16, progress=False)
    _, own = evaluate(replace(common, dtype="float32", out=tmp_path / "own"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--model", file, "--model_alias", "small", "--port", port, "--n_ctx", 128]
    arguments += ["--type_k", 0, "--type_v", 0]  # fp32
    process = subprocess.Popen(
        [python, "-m", "llama_cpp.server", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/models", process)
        served = replace(common, model="small", endpoint=f"http://127.0.0.1:{port}")
        result, out = evaluate(replace(served, out=tmp_path / "there", max_concurrency=1))
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert result.to_json()["model"]["server"] == "llama-cpp-python"
    there, here = stored(out), stored(own)
    assert [g.prompt_tokens for g in there] == [g.prompt_tokens for g in here]
    # That server leaves out bytes that are no UTF-8, where we write U+FFFD, and makes one token
    # more where the last one ends inside a character.
    wanted = [g.text.replace("\ufffd", "") for g in here]
    assert len(set(wanted)) >= 5
    for theirs, ours, text in zip(there, here, wanted, strict=True):
        assert theirs.text.startswith(text) and theirs.finish_reason == ours.finish_reason
        assert theirs.text == text or theirs.tokens == ours.tokens + 1


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")
