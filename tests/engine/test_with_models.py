"""The engine over real networks: equal to transformers' greedy search, independent of the batch."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apr.engine.engine import Engine
from apr.engine.request import Request, Sampling
from apr.engine.runners.compiled_runner import CompiledRunner, PackedWeights
from apr.engine.runners.torch_runner import TorchRunner
from apr.model.config import ModelConfig
from apr.model.families import config_from_hf
from apr.model.transformer import Transformer

HF = LlamaConfig(
    vocab_size=300, hidden_size=96, intermediate_size=160, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
    initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, Transformer, ModelConfig]:
    torch.manual_seed(0)
    hf = LlamaForCausalLM(HF).eval()
    config = config_from_hf(hf.config.to_dict())
    ours = Transformer(config)
    ours.load_state_dict({k: v for k, v in hf.state_dict().items() if "rotary" not in k})
    return hf, ours.eval(), config


def test_greedy_equals_transformers_generate(
    models: tuple[LlamaForCausalLM, Transformer, ModelConfig],
) -> None:
    hf, ours, _ = models
    prompts = [tuple(range(5, 5 + n)) for n in (3, 70, 17)]
    engine = Engine(TorchRunner(ours, 64), max_step_tokens=32)
    requests = [Request(p, max_tokens=40, request_id=str(i)) for i, p in enumerate(prompts)]
    found = {c.request_id: c.token_ids for c in engine.generate(requests)}
    for i, prompt in enumerate(prompts):
        want = hf.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
        assert list(found[str(i)]) == want[0, len(prompt) :].tolist()


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1.0, top_p=0.9)])
@pytest.mark.parametrize("kind", ["compiled bf16", "torch fp32"])
def test_tokens_do_not_depend_on_the_batch(
    models: tuple[LlamaForCausalLM, Transformer, ModelConfig], how: Sampling, kind: str
) -> None:
    """Exact on the compiled kernels, by construction. In torch the matrix product may sum in
    another order for another number of rows (about 1e-6 in fp32), so equality could in principle
    break at a near-tie; on this fixed network it must hold.
    """
    _, ours, config = models

    def engine(concurrency: int, step_tokens: int) -> Engine:
        if kind == "torch fp32":
            runner = TorchRunner(ours, 160)
        else:
            packed = PackedWeights(config, ours.state_dict().__getitem__)
            runner = CompiledRunner(packed, 160)
        return Engine(runner, max_concurrency=concurrency, max_step_tokens=step_tokens)

    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 120, (32,), generator=generator).tolist()
    requests = [
        Request(
            tuple(torch.randint(0, 300, (n,), generator=generator).tolist()),
            max_tokens=20, sampling=how, seed=i, request_id=str(i), logprobs=True,
        )
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    together = {c.request_id: c for c in engine(32, 100).generate(requests)}
    alone_engine = engine(1, 512)
    for request in requests[::4]:
        (alone,) = alone_engine.generate([request])
        assert together[request.request_id].token_ids == alone.token_ids
        if kind == "compiled bf16":
            assert together[request.request_id].logprobs == alone.logprobs
