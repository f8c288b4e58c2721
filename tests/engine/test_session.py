"""Text requests: stop strings, chat, samples that continue a run, what is refused."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from apr.common.errors import AprError, UsageError
from apr.engine import session as sessions
from apr.engine.session import Conversation, Sampling, Session, TextCompletion, TextRequest
from apr.hub import resolve
from apr.model.opened import open_model
from convert import models

WARM = Sampling(temperature=1.0)
CHAT = TextRequest(messages=[], max_tokens=20)
USER = [{"role": "user", "content": "hi"}]


def answer(session: Session, request: TextRequest) -> TextCompletion:
    (completion,) = session.generate([request])
    return completion


def test_text_is_what_the_tokens_decode_to(session: Session) -> None:
    done = answer(session, TextRequest(prompt="def f(", max_tokens=40, sampling=WARM, seed=3))
    assert done.text == session.tokenizer.decode(done.token_ids)
    assert done.tokens_generated == len(done.token_ids) > 1


@pytest.mark.parametrize("length", [1, 4, 9])
def test_stop_string_over_several_tokens(session: Session, length: int) -> None:
    request = TextRequest(prompt="return ", max_tokens=60, sampling=WARM, seed=1)
    whole = answer(session, request)
    for start in (5, 17):
        stop = whole.text[start : start + length]
        stopping = replace(request, stop=("never in it", stop))
        done = answer(session, stopping)
        assert done.text == whole.text[: whole.text.index(stop)]
        assert done.finish_reason == "stop_string"
        assert done.token_ids == whole.token_ids[: done.tokens_generated]
        assert done.tokens_generated < whole.tokens_generated
        *pieces, last = session.stream(stopping)
        assert isinstance(last, TextCompletion)
        assert "".join(map(str, pieces)) == done.text == last.text


def test_streamed_pieces_join_to_the_text(session: Session) -> None:
    request = TextRequest(prompt="x", max_tokens=50, sampling=WARM, seed=2)
    *pieces, last = session.stream(request)
    assert isinstance(last, TextCompletion)
    assert len(pieces) > 10
    assert "".join(map(str, pieces)) == last.text == answer(session, request).text


def test_a_stream_left_early_frees_its_blocks(session: Session) -> None:
    stream = session.stream(TextRequest(prompt="x" * 100, max_tokens=50))
    next(stream)
    stream.close()
    scheduler = session.engine.scheduler
    assert not scheduler.busy
    assert scheduler.pool.available == scheduler.pool.num_blocks


def test_chat_prompt_and_prefill(session: Session) -> None:
    def prompt(**changes: str) -> str:
        ids = session.encode(TextRequest(messages=USER, **changes))
        return session.tokenizer.decode(ids, skip_special_tokens=False)

    opened = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt() == opened
    assert prompt(prefill="Sure: ") == opened + "Sure: "


def test_a_run_is_continued_with_the_samples_it_lacks(session: Session) -> None:
    request = TextRequest(prompt="def", n=5, max_tokens=12, sampling=WARM, seed=9)
    texts = {c.sample_index: c.text for c in session.generate([request])}
    rest = list(session.generate([replace(request, n=2, sample_offset=3)]))
    assert {c.sample_index: c.text for c in rest} == {3: texts[3], 4: texts[4]}
    assert len(set(texts.values())) > 1


def test_requests_may_share_a_name(session: Session) -> None:
    request = TextRequest(request_id="same", prompt="a", max_tokens=3, n=2)
    done = list(session.generate([request, replace(request, prompt="b")]))
    assert [c.request_id for c in done] == ["same"] * 4


def test_prompt_longer_than_the_context_names_both_lengths(session: Session) -> None:
    request = TextRequest(prompt="x" * 300)
    length = len(session.encode(request))
    message = f"the prompt has {length} tokens and the model's context 256"
    with pytest.raises(UsageError, match=message):
        session.check(request)
    with pytest.raises(UsageError, match=message):
        answer(session, request)
    session.check(TextRequest(prompt="x"))


@pytest.fixture(scope="module")
def larger_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has one token more than its embedding has rows."""
    path = models.folder(tmp_path_factory.mktemp("larger") / "m", models.small_model("Llama"))
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_tokens(["[PAD]"])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_token_beyond_the_embedding_is_named(larger_tokenizer: Path, dtype: str) -> None:
    session = Session.load(open_model(str(larger_tokenizer)), dtype=dtype, max_concurrency=1)
    assert answer(session, TextRequest(prompt="a", max_tokens=1)).tokens_generated == 1
    rows = models.VOCAB
    for asked in ({"prompt": "a [PAD]"}, {"messages": [{"role": "user", "content": "[PAD]"}]}):
        request = TextRequest(**asked)
        for use in (session.check, session.encode, lambda r: list(session.generate([r]))):
            with pytest.raises(UsageError, match=rf"'\[PAD\]', token {rows}, and .* {rows} rows"):
                use(request)


def test_float16_that_overflows_says_which_type_to_take(tmp_path: Path) -> None:
    model = models.small_model("Llama")
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            getattr(model.model.layers[0].mlp, name).weight.mul_(3000)
    path = models.folder(tmp_path / "m", model)
    session = Session.load(open_model(str(path)), dtype="float16", max_concurrency=1)
    with pytest.raises(AprError, match=r"not finite .*try `dtype` bfloat16 or float32; apr check"):
        answer(session, TextRequest(prompt="def f(a"))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e5
    model.save_pretrained(path)
    with pytest.raises(AprError, match=r"down_proj\.weight has values that fp16 cannot hold"):
        Session.load(open_model(str(path)), dtype="float16", max_concurrency=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    model.save_pretrained(path)
    with pytest.raises(AprError, match=r"down_proj\.weight holds NaN"):
        Session.load(open_model(str(path)), dtype="float16", max_concurrency=1)
    damaged = Session.load(open_model(str(path)), max_concurrency=1)
    with pytest.raises(AprError, match=r"after 2 tokens are not finite .*apr check .*m finds"):
        answer(damaged, TextRequest(prompt="ab"))


def test_a_context_that_other_rotary_factors_extend(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 6, "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    model = models.small_model(
        "Phi3",
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
    )
    opened = open_model(str(models.folder(tmp_path / "m", model)))
    request = TextRequest(prompt="x" * 100, max_tokens=1, logprobs=True)
    short = Session.load(opened, dtype="float32", max_concurrency=1)
    with pytest.raises(UsageError, match=r"context 64 \(`max_context` up to 256 takes its long"):
        short.check(request)
    session = Session.load(opened, dtype="float32", context=200, max_concurrency=1)
    done = answer(session, request)
    ids = torch.tensor([session.encode(request)])
    with torch.inference_mode():
        row = model.eval()(ids).logits[0, -1].log_softmax(-1)  # beyond 64: transformers' long ones
    assert done.token_ids == (int(row.argmax()),)
    assert done.logprobs == pytest.approx([float(row.max())], abs=1e-4)
    with pytest.raises(UsageError, match="`max_context` is 257, the model's 256"):
        Session.load(opened, context=257)
    lower = Session.load(opened, dtype="float32", context=50, max_concurrency=1)
    with pytest.raises(UsageError, match="a `max_context` of up to 256 is"):
        lower.check(request)


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="either a prompt or messages"):
        TextRequest()
    with pytest.raises(UsageError, match="either a prompt or messages"):
        TextRequest(prompt="x", messages=USER)
    with pytest.raises(UsageError, match="prefill without messages"):
        TextRequest(prompt="x", prefill="y")


@pytest.mark.parametrize(("blocks_free", "expected"), [(1000, 32), (40, 20), (16, 8)])
def test_cache_takes_half_of_the_free_memory_at_most(
    monkeypatch: pytest.MonkeyPatch, blocks_free: int, expected: int
) -> None:
    monkeypatch.setattr(sessions, "free_memory", lambda device: blocks_free * 2**20)
    # 8 samples of 256 positions in blocks of 64 would like 32 blocks of 1 MiB.
    plan = sessions.plan_cache(torch.device("cpu"), 2**20, 64, 256, 8)
    assert (plan.num_blocks, plan.bytes) == (expected, expected * 2**20)
    assert f"cache: {expected} blocks of 64 positions" in str(plan)


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "free_memory", lambda device: 15 * 2**20)
    with pytest.raises(AprError, match=r"cache for 8 samples needs at least 0\.02"):
        sessions.plan_cache(torch.device("cpu"), 2**20, 64, 256, 8)


def test_real_model_knows_the_capital_of_france() -> None:
    folder = os.environ.get("APR_TEST_MODELS")
    path = Path(folder or "missing") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    try:
        found = path if path.is_file() else resolve("smollm2-135m", offline=True)
    except AprError as error:
        pytest.skip(f"smollm2-135m is neither in APR_TEST_MODELS nor in the cache ({error})")
    session = Session.load(open_model(str(found)), max_concurrency=2)
    prompt = "The capital of France is"
    raw = TextRequest(request_id="raw", prompt=prompt, max_tokens=4)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    chat = TextRequest(request_id="chat", messages=question, max_tokens=40)
    done = {c.request_id: c for c in session.generate([raw, chat])}
    assert done["raw"].text.startswith(" Paris")
    assert "Paris" in done["chat"].text
    assert done["chat"].finish_reason == "stop", "the end of the turn was not noticed"


@pytest.fixture(scope="module")
def infilling_session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The small model with StarCoder's fill-in-the-middle tokens."""
    with pytest.MonkeyPatch.context() as patch:
        tokens = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
        patch.setattr(models, "CONTROL", [*models.CONTROL, *tokens])
        sizes = {"vocab_size": models.VOCAB + 3, "max_position_embeddings": 256}
        path = tmp_path_factory.mktemp("fim") / "m.gguf"
        models.gguf_file(path, models.small_model("Llama", **sizes))
    return Session.load(open_model(str(path)), max_concurrency=8)


def test_a_gap_is_put_in_the_models_own_format(infilling_session: Session) -> None:
    tokenizer = infilling_session.tokenizer
    request = TextRequest(prompt="def f(", suffix="\n    return", max_tokens=3)
    written = {
        "psm": "<fim_prefix>def f(<fim_suffix>\n    return<fim_middle>",
        "spm": "<fim_prefix><fim_suffix>\n    return<fim_middle>def f(",
    }
    for order, text in written.items():
        ids = infilling_session.encode(replace(request, order=order))
        assert list(ids) == tokenizer.encode(text)
    done = answer(infilling_session, request)
    assert done.prompt_tokens == len(tokenizer.encode(written["psm"]))
    raw = answer(infilling_session, replace(request, prompt=written["psm"], suffix=None))
    assert done.token_ids == raw.token_ids


def test_a_token_of_the_format_ends_a_middle(infilling_session: Session) -> None:
    hot = Sampling(temperature=50.0)  # nearly uniform: any token soon comes
    request = TextRequest(prompt="a", suffix="b", n=8, max_tokens=200, sampling=hot)
    raw = replace(request, prompt="<fim_prefix>a<fim_suffix>b<fim_middle>", suffix=None)
    fim = {infilling_session.tokenizer.token_to_id(f"<fim_{p}>") for p in ("prefix", "suffix")}
    filled = {c.sample_index: c for c in infilling_session.generate([request])}
    plain = {c.sample_index: c for c in infilling_session.generate([raw])}
    assert any(fim & set(c.token_ids) for c in plain.values())
    for index, done in filled.items():
        same = plain[index].token_ids[: done.tokens_generated]
        assert done.token_ids == same and not fim & set(same)
        assert done.finish_reason in ("stop", "length", "eos")


def test_gaps_that_cannot_be_filled(session: Session) -> None:
    with pytest.raises(UsageError, match="no tokens for filling in the middle"):
        session.encode(TextRequest(prompt="a", suffix="b"))
    with pytest.raises(UsageError, match="a suffix without a prompt"):
        TextRequest(messages=USER, suffix="b")


def test_oldest_turns_are_dropped_when_the_context_is_full(session: Session) -> None:
    talk = Conversation(session, CHAT, system="sys")
    dropped = 0
    for number in range(8):
        question = f"{number}" * 40
        answer = "".join(talk.ask(question))
        dropped += talk.forgotten
        assert talk.turns[-2:] == [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * (
            len(talk.turns) // 2
        )
    assert dropped == 16 - len(talk.turns) > 0


def test_a_question_that_never_fits_leaves_the_conversation_as_it_was(session: Session) -> None:
    talk = Conversation(session, CHAT)
    list(talk.ask("hello"))
    before = list(talk.turns)
    with pytest.raises(UsageError, match="model's context 256"):
        list(talk.ask("x" * 400))
    assert talk.turns == before
    list(talk.ask("again"))
    assert len(talk.turns) == 4


def test_an_answer_left_early_is_kept_as_far_as_it_came(session: Session) -> None:
    talk = Conversation(session, CHAT)
    with closing(talk.ask("hello")) as answer:
        said = [next(answer) for _ in range(5)]
    assert talk.turns[-1] == {"role": "assistant", "content": "".join(said)}
    assert not session.engine.scheduler.busy
    talk.reset()
    assert talk.turns == []
