"""Makes llama.cpp's other formats of one GGUF file. Runs in the peer's own environment.

usage: gguf_formats.py SOURCE.gguf OUT_DIR  ->  bf16.gguf, f16.gguf, q8_0.gguf, q4_0.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import llama_cpp as lc
import numpy as np


def to_bf16(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for tensor in reader.tensors:
        data = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if data.ndim == 1:
            writer.add_tensor(tensor.name, data)
        else:
            packed = gguf.quantize(data, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(tensor.name, packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    bf16 = out / "bf16.gguf"
    if not bf16.exists():
        to_bf16(source, bf16)
    kinds = {"f16": 1, "q8_0": 7, "q4_0": 2}
    for name, kind in kinds.items():
        target = out / f"{name}.gguf"
        if target.exists():
            continue
        params = lc.llama_model_quantize_default_params()
        params.ftype = kind
        params.nthread = 2
        params.allow_requantize = True
        status = lc.llama_model_quantize(str(bf16).encode(), str(target).encode(), params)
        if status:
            raise SystemExit(f"llama_model_quantize({name}) returned {status}")


if __name__ == "__main__":
    main()
