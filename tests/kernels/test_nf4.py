"""NF4 against bitsandbytes, bit by bit, and against its definition."""

from __future__ import annotations

import json
import os
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from apr.kernels import nf4
from apr.kernels.nf4 import (
    GROUP,
    LEVELS,
    Nf4,
    block_maxima,
    dequantize_nf4,
    dynamic_levels,
    nf4_bytes,
    quantize_nf4,
)

from .nf4_cases import nf4_cases

HERE = Path(__file__).parent
STORED = HERE / "data" / "nf4.json"


def digest(tensor: torch.Tensor) -> str:
    plain = tensor.reshape(-1).contiguous().view(torch.uint8)
    return sha256(plain.numpy().tobytes()).hexdigest()[:32]


def digests(packed: Nf4) -> dict[str, str]:
    parts = {
        "codes": packed.codes,
        "absmax": packed.absmax,
        "scales": packed.scales,
        "offset": packed.offset,
        "torch.float32": dequantize_nf4(packed),
        "torch.bfloat16": dequantize_nf4(packed, torch.bfloat16),
    }
    return {name: digest(tensor) for name, tensor in parts.items()}


def check(theirs: dict[str, dict[str, str]]) -> None:
    assert theirs == {name: digests(quantize_nf4(w)) for name, w in nf4_cases().items()}


@pytest.mark.parametrize("compiled", [True, False])
def test_bits_are_those_of_bitsandbytes(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes, absmax, scales, offset, and the numbers they stand for, in fp32 and bf16."""
    if not compiled:
        monkeypatch.setattr(nf4, "_compiled", lambda: False)
    check(json.loads(STORED.read_text()))


@pytest.mark.slow
def test_bitsandbytes_still_gives_these_bits(tmp_path: Path) -> None:
    python = os.environ.get("APR_TRL_PYTHON")
    if not python:
        pytest.skip("APR_TRL_PYTHON names no Python with bitsandbytes")
    out = tmp_path / "nf4.json"
    subprocess.run([python, HERE / "run_bitsandbytes.py", out], check=True, capture_output=True)
    check(json.loads(out.read_text()))


def test_a_number_becomes_the_nearest_level_of_its_block() -> None:
    weight = nf4_cases()["normal"]
    packed = quantize_nf4(weight)
    blocks = weight.view(-1, 64)
    levels = torch.tensor(LEVELS)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = (scaled[..., None] - levels).abs().amin(-1)
    codes = torch.stack([packed.codes >> 4, packed.codes & 15], dim=1).view(-1, 64).long()
    assert torch.allclose((scaled - levels[codes]).abs(), nearest, atol=1e-6)


def test_absmax_is_within_half_a_step_of_the_dynamic_type() -> None:
    weight = nf4_cases()["normal"]
    packed = quantize_nf4(weight)
    exact = weight.view(-1, 64).abs().amax(1)
    steps = dynamic_levels(torch.device("cpu")).diff().amax()
    bound = packed.scales.repeat_interleave(GROUP)[: len(exact)] * steps / 2
    assert ((block_maxima(packed) - exact).abs() <= bound * 1.001).all()


def test_what_a_number_takes() -> None:
    """4 bits, 8 of an absmax for 64, 32 of a scale for 64 x 256, and one offset."""
    packed = quantize_nf4(torch.zeros(1024, 1024))
    assert packed.nbytes == nf4_bytes(1 << 20) == (1 << 20) // 2 + (1 << 14) + 4 * (1 << 6) + 4
