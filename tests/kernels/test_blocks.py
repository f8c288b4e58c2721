"""Panels of quantized blocks: the results of the decoded matrix, bit by bit, for every type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apr.checkpoint import GGML_TYPES
from apr.checkpoint.blocks import DECODERS, dequantize
from apr.kernels.cpu.blocks import KINDS
from apr.kernels.cpu.packing import pack_panels, padded
from apr.kernels.cpu.panels import block_panels
from kernels.test_matmul import bf16_bits, product


def random_blocks(kind: str, rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 (rows, bytes): any bits, with scales that are finite, subnormal ones too."""
    generator = torch.Generator().manual_seed(seed)
    form, size = GGML_TYPES[kind], (rows, width // GGML_TYPES[kind].block_elements)
    blocks = torch.randint(
        0, 256, (*size, form.block_bytes), generator=generator, dtype=torch.uint8
    )
    scales = torch.tensor([1e-2, 1e-5, 1e-7])[torch.randint(0, 3, size, generator=generator)]
    for place in KINDS[kind].halves:
        half = scales * torch.randn(size, generator=generator)
        blocks[:, :, place : place + 2] = half.half()[..., None].view(torch.uint8)
    if kind == "Q8_K":
        blocks[:, :, :4] = torch.randn(size, generator=generator)[..., None].view(torch.uint8)
    return blocks.view(rows, -1)


@pytest.mark.parametrize("kind", DECODERS)
def test_products_are_those_of_the_decoded_matrix(kind: str) -> None:
    for n, k in (
        (64, 256),
        (100, 768),
        (192, 96 if GGML_TYPES[kind].block_elements == 32 else 512),
    ):
        data = random_blocks(kind, n, k, seed=n)
        found = block_panels(data, kind)
        assert found is not None
        assert found.nbytes == data.nbytes // n * padded(n)
        dense = pack_panels(dequantize(data, kind, torch.bfloat16))
        for rows in (1, 7):
            x = torch.randn(rows, k, generator=torch.Generator().manual_seed(rows))
            a = bf16_bits(x, padded(k))
            for threads in (1, 3):
                assert np.array_equal(product(a, found, threads), product(a, dense))


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_without_finite_scales_are_left_to_the_decoder(kind: str) -> None:
    data = random_blocks(kind, 64, 256).view(64, -1, GGML_TYPES[kind].block_bytes)
    if kind == "Q8_K":
        data[3, 0, :4] = torch.tensor([float("inf")]).view(torch.uint8)
    else:
        place = KINDS[kind].halves[-1]
        data[3, -1, place : place + 2] = torch.tensor([float("nan")]).half().view(torch.uint8)
    assert block_panels(data.view(64, -1), kind) is None
