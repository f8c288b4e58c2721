"""The operations of a transformer for training, each with its backward pass.

On a CPU they run compiled, in bf16 and (but for attention) fp32 (`cpu.training`,
`cpu.training_attention`): every tensor is read once, sums are fp32, and only inputs are kept.
Everywhere else, and in inference mode, they are `reference`'s. Same names and shapes as there.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from apr.kernels import reference
from apr.kernels.ops import empty_like

# What the compiled steps are there for.
_DTYPES = (torch.bfloat16, torch.float32)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """As `reference.rms_norm`."""
    if not compiled(x):
        return reference.rms_norm(x, weight, eps, offset)
    return _RmsNorm.apply(x, weight.float() + offset, eps)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As `reference.rotate`."""
    if not compiled(x) or cos.shape[:-1] != x.shape[:-2]:
        return reference.rotate(x, cos, sin)
    return _Rotate.apply(x, cos, sin)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) * up; activation: "silu" or "gelu_tanh"."""
    if not compiled(gate, up):
        opened = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return opened * up
    return _Gated.apply(gate, up, activation != "silu")


def fits_document_attention(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether `document_attention` takes these: q (T, H, D), k (T, K, D)."""
    from apr.kernels.cpu.attention import TILE_ROWS

    fits = q.shape[-1] % 64 == 0 and q.shape[1] // k.shape[1] <= TILE_ROWS
    return fits and q.dtype == torch.bfloat16 and compiled(q, k)


def document_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: tuple[int, ...],
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Causal attention inside each of the documents that lie one after another; (T, H, D).

    q: (T, H, D), k, v: (T, K, D), bf16. starts: where documents begin, and T. window: positions a
    token sees, itself included.
    """
    return _DocumentAttention.apply(q, k, v, starts, window or 0, scale)


def entropy_in_place(
    logits: torch.Tensor, labels: torch.Tensor, scales: torch.Tensor | None
) -> torch.Tensor:
    """fp32 (n,): -log softmax(logits)[label]. scales: fp32 (n,); with it, logits (n, V) become the
    gradient to them of (scales * that).sum().
    """
    if logits.dtype in _DTYPES and logits.device.type == "cpu" and _usable():
        losses = torch.empty(len(logits))
        factors: torch.Tensor | int = 0 if scales is None else scales.contiguous()
        _run("cross_entropy", len(logits), logits, labels, losses, factors, *logits.shape)
        return losses
    wide = logits.float()
    logsumexp = wide.logsumexp(1, keepdim=True)
    picked = labels[:, None]
    losses = (logsumexp - wide.gather(1, picked))[:, 0]
    if scales is not None:
        slope = (wide - logsumexp).exp_()
        slope.scatter_add_(1, picked, torch.full_like(picked, -1.0, dtype=torch.float32))
        logits.copy_(slope.mul_(scales[:, None]))
    return losses


def compiled(*tensors: torch.Tensor) -> bool:
    """Whether the compiled kernels can do it. Not for inference, which has kernels of its own."""
    return (
        not torch.is_inference_mode_enabled()
        and tensors[0].dtype in _DTYPES
        and all(x.dtype == tensors[0].dtype and x.device.type == "cpu" for x in tensors)
        and _usable()
    )


def _run(body: str, chunks: int, x: torch.Tensor, *more: Any) -> None:
    """A body of `cpu.training` for the type of x, its first argument."""
    from apr.kernels.cpu import training
    from apr.kernels.cpu.parallel import run_chunks

    name = body if x.dtype == torch.bfloat16 else f"{body}_fp32"
    run_chunks(getattr(training, name), chunks, x, *more)


@cache
def _usable() -> bool:
    """Not where numba cannot compile for this machine; torch's operations do the same work."""
    try:
        import apr.kernels.cpu.training_attention  # noqa: F401
    except ImportError:
        return False
    return True


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        from apr.kernels.cpu.training import ROWS

        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y, scales = empty_like(x), torch.empty(rows)
        chunks = -(-rows // ROWS)
        _run("rms_norm", chunks, x, weight, y, scales, rows, width, eps)
        ctx.save_for_backward(x, weight, scales)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from apr.kernels.cpu.training import ROWS

        x, weight, scales = ctx.saved_tensors
        dy = gradients[0].contiguous()
        dx = empty_like(x)
        rows, width = len(scales), x.shape[-1]
        chunks = -(-rows // ROWS)
        _run("rms_norm_gradient", chunks, x, weight, scales, dy, dx, rows, width)
        dweight = None
        if ctx.needs_input_grad[1]:
            normed = x.view(rows, width).float() * scales[:, None]
            dweight = (normed * dy.view(rows, width)).sum(0)
        return dx, dweight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, -1.0), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    from apr.kernels.cpu.training import ROWS

    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    heads, dim = x.shape[-2:]
    half = cos.shape[-1]
    rows = cos.numel() // half
    y = empty_like(x)
    chunks = -(-rows // ROWS)
    _run("rotate", chunks, x, cos, sin, y, rows, heads, dim, half, sign)
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, gelu: bool) -> torch.Tensor:
        from apr.kernels.cpu.training import ELEMENTS

        gate, up = gate.contiguous(), up.contiguous()
        y = empty_like(gate)
        chunks = -(-y.numel() // ELEMENTS)
        _run("gated", chunks, gate, up, y, y.numel(), int(gelu))
        ctx.save_for_backward(gate, up)
        ctx.gelu = gelu
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from apr.kernels.cpu.training import ELEMENTS

        gate, up = ctx.saved_tensors
        dy = gradients[0].contiguous()
        dgate, dup = empty_like(gate), empty_like(up)
        count = dy.numel()
        chunks = -(-count // ELEMENTS)
        _run("gated_gradient", chunks, gate, up, dy, dgate, dup, count, int(ctx.gelu))
        return dgate, dup, None


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts: tuple[int, ...],
        window: int,
        scale: float,
    ) -> torch.Tensor:
        from apr.kernels.cpu import training_attention as kernels
        from apr.kernels.cpu.parallel import run_chunks

        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        tokens, heads, dim = q.shape
        kv_heads = k.shape[1]
        out, lse = empty_like(q), torch.empty(tokens, heads)
        places = torch.tensor(starts)
        scratch = _Scratch(kernels.forward_scratch(_longest(starts), dim))
        chunks = (len(starts) - 1) * kv_heads
        run_chunks(
            kernels.attention, chunks, q, k, v, out, lse, places, tokens, heads, kv_heads, dim,
            window, float(scale), *scratch.words(),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse, places)
        ctx.window, ctx.scale, ctx.longest = window, float(scale), _longest(starts)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from apr.kernels.cpu import training_attention as kernels
        from apr.kernels.cpu.parallel import run_chunks

        q, k, v, out, lse, places = ctx.saved_tensors
        dout = gradients[0].contiguous()
        tokens, heads, dim = q.shape
        kv_heads = k.shape[1]
        dq, dk, dv = empty_like(q), empty_like(k), empty_like(v)
        scratch = _Scratch(kernels.backward_scratch(ctx.longest, dim))
        chunks = (len(places) - 1) * kv_heads
        run_chunks(
            kernels.attention_gradient, chunks, q, k, v, out, lse, dout, dq, dk, dv, places,
            tokens, heads, kv_heads, dim, ctx.window, ctx.scale, *scratch.words(),
        )  # fmt: skip
        return dq, dk, dv, None, None, None


def _longest(starts: tuple[int, ...]) -> int:
    return max(b - a for a, b in pairwise(starts))


class _Scratch:
    """Memory for every worker of one call, and the counter by which they find their own."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-nbytes // 64) * 64
        self.memory = torch.empty(self.nbytes * torch.get_num_threads(), dtype=torch.uint8)
        self.workers = torch.zeros(1, dtype=torch.int64)

    def words(self) -> tuple[torch.Tensor, int, torch.Tensor]:
        return self.memory, self.nbytes, self.workers
