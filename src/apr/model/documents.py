"""Attention of whole documents that lie one after another, without a cache."""

from __future__ import annotations

from itertools import groupby, pairwise

import torch

from apr.kernels import differentiable, ops, reference
from apr.model.transformer import Attend, Transformer


def document_attention(model: Transformer, starts: tuple[int, ...]) -> Attend:
    """Causal attention inside each document (and window, where a layer has one).

    starts: where documents begin, and the number of all tokens.
    """
    capped = model.config.attention_softcap is not None  # then all scores exist at once
    spans = _runs(starts, together=not capped)

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        window = model.config.sliding_window if model.slides[layer] else None
        if not capped and differentiable.fits_document_attention(q, k):
            scale = model.attention_scale
            return differentiable.document_attention(q, k, v, starts, window, scale)
        dtype = q.dtype
        if ops.widens(q):
            q, k, v = q.float(), k.float(), v.float()
        parts = []
        # Not slice by slice: each would get a gradient of the whole's size.
        sizes = [end - start for start, end, _ in spans]
        pieces = zip(spans, *(t.split(sizes) for t in (q, k, v)), strict=True)
        for (start, end, count), *rows in pieces:
            length = (end - start) // count
            mask = None
            if window is not None and length > window:
                index = torch.arange(length, device=q.device)
                mask = reference.causal_mask(index, index, window)[None]
            query, key, value = (t.unflatten(0, (count, length)) for t in rows)
            parts.append(model.attend(query, key, value, mask).flatten(0, 1))
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(dtype)

    return attend


def _runs(starts: tuple[int, ...], together: bool) -> list[tuple[int, int, int]]:
    """(begin, end, how many) of neighbours that are equally long, or of each document alone."""
    if not together:
        return [(begin, end, 1) for begin, end in pairwise(starts)]
    pairs = groupby(pairwise(starts), key=lambda span: span[1] - span[0])
    spans = [list(run) for _, run in pairs]
    return [(run[0][0], run[-1][1], len(run)) for run in spans]
