"""bitsandbytes' NF4 with double quantization: digests of its bits for every case.

    python run_bitsandbytes.py OUT.json

Run in an environment with bitsandbytes and torch; data/nf4.json is what 0.50.2 gives on a CPU.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from nf4_cases import nf4_cases


def digest(tensor: torch.Tensor) -> str:
    plain = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
    return sha256(plain.numpy().tobytes()).hexdigest()[:32]


def main() -> None:
    found = {}
    for name, weight in nf4_cases().items():
        codes, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        parts = {
            "codes": codes,
            "absmax": state.absmax,
            "scales": state.state2.absmax,
            "offset": state.offset,
        }
        for dtype in (torch.float32, torch.bfloat16):
            state.dtype = dtype
            parts[str(dtype)] = bnb.dequantize_4bit(codes, state)
        found[name] = {key: digest(tensor) for key, tensor in parts.items()}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
