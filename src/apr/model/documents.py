"""Attention of whole documents that lie one after another, without a cache."""

from __future__ import annotations

from itertools import pairwise

import torch

from apr.kernels import differentiable, reference
from apr.model.transformer import Attend, Transformer


def document_attention(model: Transformer, starts: tuple[int, ...]) -> Attend:
    """Causal attention inside each document (and window, where a layer has one).

    starts: where documents begin, and the number of all tokens.
    """
    spans = list(pairwise(starts))

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        window = model.config.sliding_window if model.slides[layer] else None
        if model.config.attention_softcap is None and differentiable.fits_document_attention(q, k):
            scale = model.attention_scale
            return differentiable.document_attention(q, k, v, starts, window, scale)
        parts = []
        for start, end in spans:
            mask = None
            if window is not None and end - start > window:
                index = torch.arange(end - start, device=q.device)
                mask = reference.causal_mask(index, index, window)[None]
            query, key, value = (t[None, start:end] for t in (q, k, v))
            parts.append(model.attend(query, key, value, mask)[0])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return attend
