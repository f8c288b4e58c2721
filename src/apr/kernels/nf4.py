"""4-bit NormalFloat (NF4) with double quantization (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

A weight is cut into blocks of 64 numbers in the order of its memory. A block keeps its largest
magnitude (absmax) and, for each number, which of 16 levels is nearest to number / absmax; the
levels are quantiles of a normal distribution (appendix E). The absmax of 256 blocks are quantized
once more, to 8 bits, after their mean was taken off (section 3). All in all 4.13 bits a number.

Codes, absmax and scales are bit by bit those of bitsandbytes on a CPU (0.50, nf4 with
compress_statistics), which rounds what it looks up among the 256 levels to 65536 places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
import torch.nn.functional as F

BLOCK, GROUP = 64, 256
_CHUNK = 1 << 16  # blocks that are quantized at a time
_PLACES = 1 << 16
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Nf4:
    """codes: uint8 (ceil(n / 2),), two levels a byte, the first in the high half. absmax: uint8
    (blocks,), which of `dynamic_levels`. scales: fp32 (ceil(blocks / 256),). offset: fp32 (), the
    mean of all absmax. shape: of the weight, with n numbers.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    scales: torch.Tensor
    offset: torch.Tensor
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.codes, self.absmax, self.scales, self.offset))

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def numbers(self, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
        """`dequantize_nf4`."""
        return dequantize_nf4(self, dtype, out)

    def to(self, device: torch.device) -> Nf4:
        return Nf4(
            self.codes.to(device),
            self.absmax.to(device),
            self.scales.to(device),
            self.offset.to(device),
            self.shape,
        )


def nf4_bytes(count: int) -> int:
    """What `count` numbers take."""
    blocks = -(-count // BLOCK)
    return -(-count // 2) + blocks + 4 * -(-blocks // GROUP) + 4


def quantize_nf4(weight: torch.Tensor) -> Nf4:
    """weight: any shape, fp32, bf16 or fp16, finite; quantized on its device."""
    flat = weight.reshape(-1)
    step = _CHUNK * BLOCK
    parts = [_quantized(flat[start : start + step]) for start in range(0, len(flat), step)]
    absmax = torch.cat([part[1] for part in parts])
    offset = absmax.mean()
    levels, scales = _quantized_absmax(absmax - offset)
    codes = torch.cat([part[0] for part in parts])
    return Nf4(codes, levels, scales, offset, tuple(weight.shape))


def dequantize_nf4(
    weight: Nf4, dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The numbers, (shape) in dtype: fp32 products of level and absmax, rounded to nearest even.

    out: dtype, at least as many numbers, contiguous; what is returned is a view of it.
    """
    count = prod(weight.shape)
    if out is None:
        out = torch.empty(count, dtype=dtype, device=weight.codes.device)
    flat, absmax = out.view(-1)[:count], block_maxima(weight)
    if flat.device.type == "cpu" and dtype in (torch.bfloat16, torch.float32) and _compiled():
        from apr.kernels.cpu import nf4
        from apr.kernels.cpu.parallel import run_chunks

        body = nf4.to_bfloat16 if dtype == torch.bfloat16 else nf4.to_float32
        chunks = -(-len(absmax) // nf4.BLOCKS)
        table = _levels(flat.device)
        run_chunks(body, chunks, weight.codes, absmax, table, flat, count, len(absmax))
        return flat.view(weight.shape)
    levels = _levels(flat.device)
    for start in range(0, len(absmax), _CHUNK):
        codes = weight.codes[start * BLOCK // 2 : (start + _CHUNK) * BLOCK // 2].int()
        values = levels[torch.stack([codes >> 4, codes & 15], dim=1)].view(-1)
        values = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
        values *= absmax[start : start + _CHUNK, None]
        part = flat[start * BLOCK : (start + _CHUNK) * BLOCK]
        part.copy_(values.view(-1)[: len(part)])
    return flat.view(weight.shape)


def block_maxima(weight: Nf4) -> torch.Tensor:
    """fp32 (blocks,): absmax as dequantization sees it."""
    near = dynamic_levels(weight.absmax.device)[weight.absmax.int()]
    scales = weight.scales.repeat_interleave(GROUP)[: len(near)]
    return near * scales + weight.offset


@cache
def dynamic_levels(device: torch.device) -> torch.Tensor:
    """fp32 (256,), ascending: the signed 8-bit dynamic data type (Dettmers 2016,
    arXiv:1511.04561): seven decades, each halved in precision towards zero, with 0 and 1.
    """
    found = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10 ** (exponent - 6)
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(found), device=device)


def _quantized(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and absmax of whole blocks, or with a shorter block at the end."""
    count = len(flat)
    rest = count % BLOCK
    levels = _levels(flat.device)
    bounds = (levels[1:] + levels[:-1]) / 2
    blocks = F.pad(flat.float(), (0, -count % BLOCK)).view(-1, BLOCK)
    if flat.device.type == "cpu" and not rest and _compiled():
        from apr.kernels.cpu import nf4
        from apr.kernels.cpu.parallel import run_chunks

        codes = torch.empty(count // 2, dtype=torch.uint8)
        absmax = torch.empty(len(blocks))
        chunks = -(-len(blocks) // nf4.BLOCKS)
        run_chunks(nf4.quantize, chunks, blocks.contiguous(), bounds, codes, absmax, len(blocks))
        return codes, absmax
    absmax = blocks.abs().amax(1)
    least = absmax.clamp(min=1e-38)[:, None]
    scaled = blocks * (1.0 / least)
    if rest:  # as bitsandbytes: the short block is divided, and its absmax is never 0
        scaled[-1], absmax[-1] = blocks[-1] / least[-1], least[-1, 0]
    near = torch.bucketize(scaled.clamp_(-1, 1).view(-1), bounds, out_int32=True).to(torch.uint8)
    near = near[: count + count % 2]
    if count % 2:
        near[-1] = 7  # 0, as a pad
    return (near[::2] << 4) | near[1::2], absmax


def _quantized_absmax(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = F.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)
    scales = groups.abs().amax(1)
    scaled = (groups * (1.0 / scales)[:, None]).clamp(-1, 1)
    # One rounding, as of a fused multiply-add: in double the product is exact.
    places = (((scaled + 1.0) * 0.5).double() * (_PLACES - 1) + 0.5).float()
    near = _nearest(values.device)[places.nan_to_num(0).int()]
    near[scales == 0] = 0
    return near.view(-1)[: len(values)], scales


@cache
def _nearest(device: torch.device) -> torch.Tensor:
    """uint8 (65536,): the nearest of the 256 levels at places from -1 to 1."""
    levels = dynamic_levels(torch.device("cpu"))
    places = 2.0 * torch.arange(_PLACES, dtype=torch.float32) / (_PLACES - 1) - 1.0
    bounds = (levels[1:] + levels[:-1]) * 0.5
    return torch.searchsorted(bounds, places).to(device=device, dtype=torch.uint8)


@cache
def _levels(device: torch.device) -> torch.Tensor:
    return torch.tensor(LEVELS, device=device)


@cache
def _compiled() -> bool:
    try:
        import apr.kernels.cpu.nf4  # noqa: F401
    except ImportError:
        return False
    return True
