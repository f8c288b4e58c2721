"""What a step of training learns: from a batch of packed documents to a loss."""

from __future__ import annotations

import torch

from apr.kernels import differentiable, ops
from apr.kernels.logprobs import cross_entropy, token_logprobs
from apr.model.config import ModelConfig
from apr.model.rope import needs_long_factors
from apr.model.transformer import Attend, Transformer, document_attention
from apr.train.loop import Objective
from apr.train.lora import LoraLinear
from apr.train.packing import Batch


def supervised(recompute: bool = False) -> Objective[Batch]:
    """Learn to write each document's targets after what comes before them: cross-entropy.

    recompute: see `hidden_states`.
    """
    return lambda model, batch: (token_loss(model, batch, recompute), {})


def token_loss(model: Transformer, batch: Batch, recompute: bool = False) -> torch.Tensor:
    """-target_logprobs(...).sum(), an fp32 scalar."""
    hidden, weight = output_factors(model, hidden_states(model, batch, recompute)[batch.rows])
    return cross_entropy(hidden, weight, batch.labels, model.config.logit_softcap)


def target_logprobs(model: Transformer, batch: Batch, recompute: bool = False) -> torch.Tensor:
    """log p(token | those before it in its document) of each of a batch's targets, in nats: fp32
    (n,), with a gradient for any weight on each.
    """
    hidden, weight = output_factors(model, hidden_states(model, batch, recompute)[batch.rows])
    return token_logprobs(hidden, weight, batch.labels, model.config.logit_softcap)


def hidden_states(model: Transformer, batch: Batch, recompute: bool = False) -> torch.Tensor:
    """What the output layer reads: (T, C) in the weights' dtype.

    recompute: keep only each layer's input and run layers again in the backward pass (Chen et al.
    2016, arXiv:1604.06174).
    """
    attend = document_attention(model, batch.starts)
    if batch.attend_to is not None and batch.attend_from is not None:
        attend = shared_beginnings(attend, batch.attend_to, batch.attend_from)
    longest = int(batch.positions.max()) + 1
    long = needs_long_factors(model.config, longest)
    recompute = recompute and torch.is_grad_enabled()
    return model.run(batch.ids, batch.positions, attend, long, recompute)


def shared_beginnings(attend: Attend, attend_to: torch.Tensor, attend_from: torch.Tensor) -> Attend:
    """Attention of documents whose common beginnings are there once; see `Batch`."""

    def shared(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        whole = (part.index_select(0, attend_to) for part in (q, k, v))
        return attend(layer, *whole).index_select(0, attend_from)

    return shared


def attention_note(config: ModelConfig, dtype: str) -> str:
    """Why documents go through torch's attention one by one; "" where the compiled one runs."""
    reason = ""
    if torch.cuda.is_available():
        reason = "the model trains on a GPU"
    elif config.attention_softcap is not None:
        reason = "its attention has a softcap"
    elif dtype != "bf16":
        reason = f"the model trains in {dtype}, not bf16"
    else:
        q = torch.empty(1, config.num_heads, config.head_dim, dtype=torch.bfloat16)
        k = torch.empty(1, config.num_kv_heads, config.head_dim, dtype=torch.bfloat16)
        if not differentiable.fits_document_attention(q, k):
            reason = f"no compiled kernel takes heads of {config.head_dim} here"
    return reason and f"attention falls back on torch's SDPA, document by document: {reason}"


def output_factors(model: Transformer, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C) and (V, C) whose product is the logits of hidden (N, C).

    An adapter of rank r on the output layer becomes r more columns of both: W h + B (s A h).
    """
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    if not isinstance(head, LoraLinear) or head.off:
        matrix = head.matrix
        assert isinstance(matrix, torch.Tensor)  # embedding and output layer train as numbers
        return hidden, matrix
    dtype = hidden.dtype
    inner = ops.linear(head.drop(hidden), head.lora_a.to(dtype)) * head.scaling
    frozen: torch.Tensor = head.base.weight
    weight = torch.cat([frozen, head.lora_b.to(dtype)], dim=1)
    return torch.cat([hidden, inner], dim=1), weight
