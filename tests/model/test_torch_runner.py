"""The paged, ragged runner gives what the dense forward gives, however the work is cut up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apr.common.errors import AprError
from apr.engine.runners.runner import StepBatch
from apr.engine.runners.torch_runner import TorchRunner, bytes_per_block
from apr.kernels import reference
from apr.model.transformer import Transformer

from .zoo import make_pair, random_ids, relative_error

TOLERANCE = 1e-5
BLOCK = 4


def build(name: str) -> Transformer:
    return make_pair(name)[1]


def dense(model: Transformer, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()[None])[0]  # (T, V)


def step(
    work: list[tuple[np.ndarray, int, np.ndarray]], rows: np.ndarray | None = None
) -> StepBatch:
    """A StepBatch from (new ids, context length, block table) of each sequence."""
    counts = [len(ids) for ids, _, _ in work]
    width = max(len(table) for _, _, table in work)
    tables = np.zeros((len(work), width), np.int32)
    for i, (_, _, table) in enumerate(work):
        tables[i, : len(table)] = table
    return StepBatch(
        token_ids=np.concatenate([ids for ids, _, _ in work]).astype(np.int32),
        query_starts=np.cumsum([0, *counts]).astype(np.int32),
        context_lens=np.array([context for _, context, _ in work], np.int32),
        block_tables=tables,
        logit_rows=np.arange(sum(counts), dtype=np.int32) if rows is None else rows,
    )


def run_at_random(runner: TorchRunner, prompts: list[np.ndarray], seed: int) -> list[torch.Tensor]:
    """Feed every prompt in random pieces, in random company; all logits of each, (T, V)."""
    rng = np.random.default_rng(seed)
    free = rng.permutation(runner.num_blocks)
    tables, taken = [], 0
    for prompt in prompts:
        need = -(-len(prompt) // BLOCK)
        tables.append(free[taken : taken + need])
        taken += need
    done = [0] * len(prompts)
    pieces: list[list[torch.Tensor]] = [[] for _ in prompts]
    while any(d < len(p) for d, p in zip(done, prompts, strict=True)):
        waiting = [i for i, p in enumerate(prompts) if done[i] < len(p)]
        chosen = rng.permutation(waiting)[: rng.integers(1, len(waiting) + 1)]
        work, spans = [], []
        for i in chosen:
            left = len(prompts[i]) - done[i]
            count = 1 if rng.random() < 0.5 else int(rng.integers(1, left + 1))
            work.append((prompts[i][done[i] : done[i] + count], done[i], tables[i]))
            spans.append(count)
        logits = runner.forward(step(work))
        for i, part in zip(chosen, logits.split(spans), strict=True):
            pieces[i].append(part)
            done[i] += len(part)
    return [torch.cat(parts) for parts in pieces]


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama-mqa",
        "llama-yarn",
        "mistral-window",
        "qwen2-window-tied",
        "qwen3",
        "gemma3",
        "gemma3-softcap-untied",
        "phi3-partial-window",
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_any_schedule_equals_dense(name: str, seed: int) -> None:
    model = build(name)
    lengths = np.random.default_rng(100 + seed).integers(1, 45, size=5)
    prompts = [random_ids(1, n, seed=200 + i)[0].numpy() for i, n in enumerate(lengths)]
    runner = TorchRunner(model, num_blocks=64, block_size=BLOCK)
    for prompt, got in zip(prompts, run_at_random(runner, prompts, seed), strict=True):
        assert relative_error(got, dense(model, prompt)) <= TOLERANCE


def test_longrope_uses_one_set_of_factors_per_runner() -> None:
    """Short factors up to the original context (32); long ones for runners made for more."""
    model = build("phi3-longrope")
    short, long = random_ids(1, 32)[0].numpy(), random_ids(1, 60)[0].numpy()
    runner = TorchRunner(model, num_blocks=32, block_size=BLOCK)
    (got,) = run_at_random(runner, [short], seed=0)
    assert relative_error(got, dense(model, short)) <= TOLERANCE
    assert runner.context_length == 32
    with pytest.raises(AprError, match="33 tokens is longer than the 32"):
        runner.forward(step([(long[:33], 0, np.arange(9))]))
    wide = TorchRunner(model, num_blocks=32, block_size=BLOCK, max_context=60)
    assert wide.context_length == model.config.max_position
    (got,) = run_at_random(wide, [long], seed=1)
    assert relative_error(got, dense(model, long)) <= TOLERANCE


def test_shared_prefix_and_copied_block() -> None:
    """Two continuations share full blocks; the half-filled one is copied before they part."""
    model = build("gemma3")
    runner = TorchRunner(model, num_blocks=16, block_size=BLOCK)
    prefix = random_ids(1, 10, seed=5)[0].numpy()
    runner.forward(step([(prefix, 0, np.array([3, 9, 5]))]))  # block 5 holds positions 8, 9
    runner.copy_block(5, 11)
    tails = [random_ids(1, 5, seed=s)[0].numpy() for s in (6, 7)]
    tables = [np.array([3, 9, 5, 1]), np.array([3, 9, 11, 2])]
    logits = runner.forward(
        step([(tail, 10, table) for tail, table in zip(tails, tables, strict=True)])
    )
    for tail, got in zip(tails, logits.split(5), strict=True):
        want = dense(model, np.concatenate([prefix, tail]))[10:]
        assert relative_error(got, want) <= TOLERANCE


def test_only_the_wanted_rows() -> None:
    model = build("llama")
    runner = TorchRunner(model, num_blocks=16, block_size=BLOCK)
    ids = random_ids(1, 12)[0].numpy()
    table = np.arange(3)
    none = runner.forward(step([(ids[:7], 0, table)], np.zeros(0, np.int32)))
    assert none.shape == (0, model.config.vocab_size) and none.dtype == torch.float32
    last = runner.forward(step([(ids[7:], 7, table)], np.array([4, 2], np.int32)))
    assert relative_error(last, dense(model, ids)[[11, 9]]) <= TOLERANCE


def test_decoding_does_not_depend_on_the_company() -> None:
    """One row alone and among seven others of any length; only the matrix products of the whole
    step may round differently.
    """
    model = build("mistral-window")
    prompts = [random_ids(1, n, seed=n)[0].numpy() for n in (9, 3, 17, 30, 12, 8, 21, 26)]
    tables = [np.arange(8 * i, 8 * i + 8) for i in range(8)]
    alone, crowd = (TorchRunner(model, num_blocks=64, block_size=BLOCK) for _ in range(2))
    for runner in (alone, crowd):
        for prompt, table in zip(prompts, tables, strict=True):
            runner.forward(step([(prompt, 0, table)]))
    token = np.array([7])
    want = alone.forward(step([(token, len(prompts[0]), tables[0])]))
    work = [(token, len(p), t) for p, t in zip(prompts, tables, strict=True)]
    got = crowd.forward(step(work))[:1]
    assert relative_error(got, want) <= 1e-6


def test_bfloat16_is_close_to_float32() -> None:
    model = build("qwen3").to(torch.bfloat16)
    ids = random_ids(1, 30)[0].numpy()
    runner = TorchRunner(model, num_blocks=16, block_size=BLOCK)
    (got,) = run_at_random(runner, [ids], seed=3)
    want = dense(model.float(), ids)
    assert got.dtype == torch.float32
    assert relative_error(got, want) <= 0.05


def test_block_tables_are_checked() -> None:
    runner = TorchRunner(build("llama"), num_blocks=4, block_size=BLOCK)
    with pytest.raises(ValueError, match="cover 9 positions"):
        runner.forward(step([(np.arange(9), 0, np.array([0, 1]))]))
    with pytest.raises(ValueError, match="beyond 4"):
        runner.forward(step([(np.arange(3), 0, np.array([4]))]))


def test_bytes_per_block() -> None:
    model = build("llama")
    runner = TorchRunner(model, num_blocks=6, block_size=BLOCK)
    held = runner._cache.keys.nbytes + runner._cache.values.nbytes
    assert held == 6 * bytes_per_block(model.config, BLOCK, torch.float32)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_other_devices(device: str) -> None:
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not available[device]():
        pytest.skip(f"this machine has no {device} device")
    model = build("gemma3")
    ids = random_ids(1, 40)[0].numpy()
    want = dense(model, ids)
    runner = TorchRunner(model.to(device), num_blocks=16, block_size=BLOCK)
    (got,) = run_at_random(runner, [ids], seed=3)
    assert relative_error(got.cpu(), want) <= 1e-4


def test_paged_slots() -> None:
    got = reference.paged_slots(torch.tensor([[2, 0]]), block_size=3)
    assert got.tolist() == [[6, 7, 8, 0, 1, 2]]
