"""The compiled CPU runner against the torch transformer, and its independence of the batch."""

from __future__ import annotations

import dataclasses
from itertools import cycle

import numpy as np
import pytest
import torch

from apr.checkpoint.blocks import DECODERS
from apr.common.errors import AprError
from apr.engine.runners.compiled_runner import CompiledRunner, PackedWeights
from apr.engine.runners.runner import StepBatch
from apr.kernels.cpu.panels import HAS_SHUFFLE
from apr.model.config import ModelConfig, RopeScaling
from apr.model.transformer import Transformer
from apr.model.weights import Blocks
from kernels.test_blocks import random_blocks

LLAMA = ModelConfig(
    family="llama", vocab_size=200, hidden_size=96, intermediate_size=160, num_layers=3,
    num_heads=6, num_kv_heads=2, head_dim=16, max_position=512, norm_eps=1e-5,
)  # fmt: skip
CONFIGS = {
    "llama": LLAMA,
    "llama tied, full width": dataclasses.replace(
        LLAMA, tie_embeddings=True, hidden_size=128, num_heads=2, num_kv_heads=1, head_dim=64
    ),
    "llama linear rope": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("linear", factor=4.0)),
    "llama yarn": dataclasses.replace(
        LLAMA, rope_scaling=RopeScaling("yarn", factor=4.0, original_max_position=128)
    ),
    "mistral window": dataclasses.replace(
        LLAMA, family="mistral", sliding_window=70, sliding_layers=(True,) * 3
    ),
    "qwen2 bias": dataclasses.replace(
        LLAMA, family="qwen2", qkv_bias=True, num_heads=7, num_kv_heads=1
    ),
    "qwen3 norms": dataclasses.replace(LLAMA, family="qwen3", qk_norm=True, head_dim=80),
    "gemma3": dataclasses.replace(
        LLAMA, family="gemma3", head_dim=128, num_heads=4, num_kv_heads=1, qk_norm=True,
        norm_offset=1.0, sandwich_norms=True, embedding_scale=96**0.5, attention_scale=256**-0.5,
        activation="gelu_tanh", tie_embeddings=True, sliding_window=64, rope_theta=1e6,
        rope_local_theta=1e4, sliding_layers=(True, True, False),
    ),
    "phi3 fused, partial rotary": dataclasses.replace(
        LLAMA, family="phi3", fused_projections=True, rotary_dim=12, num_heads=6, num_kv_heads=6
    ),
}  # fmt: skip


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        scale = 0.3 if "norm" in name or "bias" in name else 0.12
        base = 1 - config.norm_offset if "norm" in name else 0.0
        parameter.data = base + torch.randn_like(parameter) * scale
    return model.to(torch.bfloat16)


def runner_of(model: Transformer, threads: int = 2, blocks: int = 24) -> CompiledRunner:
    return CompiledRunner(
        PackedWeights(model.config, model.state_dict().__getitem__), blocks, threads
    )


def batch(sequences: list[tuple[np.ndarray, int, list[int]]], rows: str = "all") -> StepBatch:
    """sequences: (new tokens, cached length, block table)."""
    ids = np.concatenate([tokens for tokens, _, _ in sequences]).astype(np.int32)
    starts = np.cumsum([0, *(len(tokens) for tokens, _, _ in sequences)]).astype(np.int32)
    width = max(len(table) for _, _, table in sequences)
    tables = np.array([t + [0] * (width - len(t)) for _, _, t in sequences], np.int32)
    wanted = np.arange(len(ids)) if rows == "all" else starts[1:] - 1
    contexts = np.array([cached for _, cached, _ in sequences], np.int32)
    return StepBatch(ids, starts, contexts, tables, wanted.astype(np.int32))


def tokens_of(config: ModelConfig, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_torch_transformer(name: str) -> None:
    """Against the same weights in fp32, no less accurate than torch's own bf16 forward."""
    model = random_model(CONFIGS[name])
    ids = tokens_of(model.config, 150)
    got = runner_of(model).forward(batch([(ids, 0, [3, 1, 7])])).clone()
    with torch.no_grad():
        torch_bf16 = model(torch.from_numpy(ids)[None])[0].float()
        want = model.float()(torch.from_numpy(ids)[None])[0]
    error, torch_error = (float((x - want).norm() / want.norm()) for x in (got, torch_bf16))
    assert error <= torch_error * 1.05
    assert error < 0.03


@pytest.mark.parametrize("name", ["llama", "mistral window", "gemma3", "qwen2 bias"])
def test_bits_do_not_depend_on_chunks_batch_or_threads(name: str) -> None:
    model = random_model(CONFIGS[name])
    config = model.config
    ids = tokens_of(config, 150)
    whole = runner_of(model, threads=1).forward(batch([(ids, 0, [3, 1, 7])])).clone()

    chunked = runner_of(model, threads=3)
    pieces = [
        chunked.forward(batch([(ids[a:b], a, [2, 4, 6])])).clone()
        for a, b in ((0, 1), (1, 64), (64, 130), (130, 149), (149, 150))
    ]
    assert torch.equal(torch.cat(pieces), whole)

    crowded = runner_of(model)
    others = [(tokens_of(config, n, seed=n), 0, [9 + i]) for i, n in enumerate((5, 33, 64))]
    mixed = crowded.forward(batch([others[0], (ids[:149], 0, [3, 1, 7]), *others[1:]]))
    assert torch.equal(mixed[5:154], whole[:149])
    follow = [(o[0][:1], len(o[0]) - 1, o[2]) for o in others]
    last = crowded.forward(batch([*follow, (ids[149:], 149, [3, 1, 7])], rows="last"))
    assert torch.equal(last[-1], whole[-1])


@pytest.mark.skipif(not HAS_SHUFFLE, reason="this processor shuffles no bytes")
@pytest.mark.parametrize("name", CONFIGS)
def test_matrices_without_zeros_give_the_same_bits(name: str) -> None:
    """Half of the matrices' numbers zero, in some layers: dense and thin runs are equal."""
    model = random_model(CONFIGS[name])
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".layers.1." in parameter_name + ".":
            parameter.data.masked_fill_(torch.rand(parameter.shape) < 0.5, 0)
    ids = tokens_of(model.config, 150)
    runners, logits = {}, {}
    for sparse in (False, True):
        packed = PackedWeights(model.config, model.state_dict().__getitem__, sparse)
        runners[sparse] = CompiledRunner(packed, 24, threads=3)
        kinds = [bool(matrix.table[:, 1].any()) for matrix in packed.matrices]
        assert kinds == [sparse and i // 4 == 1 for i in range(len(kinds))]
        first = runners[sparse].forward(batch([(ids[:149], 0, [3, 1, 7])])).clone()
        one = runners[sparse].forward(batch([(ids[149:], 149, [3, 1, 7])])).clone()
        logits[sparse] = torch.cat([first, one])
    assert torch.equal(logits[True], logits[False])
    assert runners[True]._packed.nbytes < runners[False]._packed.nbytes


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_give_the_bits_of_their_numbers(name: str) -> None:
    """Every matrix of another type, embedding and output layer included."""
    config = dataclasses.replace(CONFIGS[name], hidden_size=256, intermediate_size=512)
    model, kinds = random_model(config), cycle(DECODERS)
    weights: dict[str, torch.Tensor | Blocks] = dict(model.state_dict())
    for i, (key, tensor) in enumerate(model.state_dict().items()):
        if tensor.ndim == 2 and not tensor.shape[1] % 256:
            kind = next(kinds)
            data = random_blocks(kind, *tensor.shape, seed=i)
            weights[key] = Blocks(data, kind, tuple(tensor.shape))
    numbers = {
        key: weight.numbers(torch.bfloat16) if isinstance(weight, Blocks) else weight
        for key, weight in weights.items()
    }
    ids, found = tokens_of(config, 90), []
    for read in (weights, numbers):
        packed = PackedWeights(config, read.__getitem__)
        runner = CompiledRunner(packed, 24, threads=2)
        first = runner.forward(batch([(ids[:89], 0, [3, 1])])).clone()
        one = runner.forward(batch([(ids[89:], 89, [3, 1])])).clone()
        found.append((packed.nbytes, torch.cat([first, one])))
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].isfinite().all()
    assert found[0][0] < 0.7 * found[1][0]


def test_only_wanted_rows_and_prompt_chunks_without_logits() -> None:
    model = random_model(CONFIGS["llama"])
    ids = tokens_of(model.config, 100)
    runner = runner_of(model)
    whole = runner.forward(batch([(ids, 0, [0, 1])])).clone()
    step = batch([(ids, 0, [2, 3])])
    picked = dataclasses.replace(step, logit_rows=np.array([3, 50, 99], np.int32))
    assert torch.equal(runner.forward(picked), whole[[3, 50, 99]])
    silent = batch([(ids[:80], 0, [4, 5])])
    silent = dataclasses.replace(silent, logit_rows=np.zeros(0, np.int32))
    assert runner.forward(silent).shape == (0, model.config.vocab_size)
    assert torch.equal(runner.forward(batch([(ids[80:], 80, [4, 5])])), whole[80:])


def test_samples_can_share_blocks_and_part_ways() -> None:
    model = random_model(CONFIGS["llama"])
    ids = tokens_of(model.config, 90)
    runner = runner_of(model)
    runner.forward(batch([(ids[:80], 0, [0, 1])]))
    runner.copy_block(1, 5)
    a, b = ids[80:90], ids[80:90][::-1].copy()
    both = runner.forward(batch([(a, 80, [0, 1]), (b, 80, [0, 5])])).clone()
    alone = runner_of(model).forward(batch([(np.concatenate([ids[:80], b]), 0, [8, 9])]))
    assert torch.equal(both[10:], alone[80:])


def test_what_the_kernels_cannot_do_is_refused_by_name() -> None:
    config = dataclasses.replace(LLAMA, logit_softcap=30.0)
    with pytest.raises(AprError, match="soft-capped"):
        PackedWeights(config, {}.__getitem__)
