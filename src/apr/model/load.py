"""From a checkpoint on disk to Hugging Face-named tensors and a filled `Transformer`.

GGUF stores some weights differently; reading undoes it: rows of q and k in the llama
architecture are interleaved for another rotary layout, and Gemma's norms have 1 added.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from apr.checkpoint import Checkpoint, open_checkpoint
from apr.checkpoint.blocks import DECODERS
from apr.checkpoint.dtypes import FLOATS
from apr.checkpoint.model_folder import check_fp16_range
from apr.checkpoint.names import gguf_to_hf, hf_to_gguf, is_rope_table, usual_names
from apr.checkpoint.safetensors_folder import SafetensorsSource
from apr.common.errors import AprError
from apr.kernels.nf4 import quantize_nf4
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.transformer import Transformer
from apr.model.weights import Blocks, Dense, Embedding, Linear, Weight

# What becomes of matrices; see `load_transformer`.
Form = Literal["numbers", "stored", "nf4"]


def expected_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape of every parameter of the model, in the order they are used."""
    with torch.device("meta"):
        model = Transformer(cfg)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def load_weights(
    checkpoint: Checkpoint,
    cfg: ModelConfig,
    dtype: torch.dtype | None = None,
    kept: bool = True,
) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters as (Hugging Face name, tensor), one at a time, in `expected_shapes` order.

    Shapes are (out, in). dtype None keeps what the file stores and gives fp32 for quantized
    blocks. kept False: see `read_unmapped`. Raises AprError naming
    the tensor that is missing, unexpected or of another shape.
    """
    shapes, stored = checked_names(checkpoint, cfg)
    _check_tied(checkpoint, cfg, stored)
    for name in shapes:
        if kept or dtype is not None:
            yield name, read_weight(checkpoint, stored[name], name, cfg, dtype)
        else:
            yield name, read_unmapped(checkpoint, stored[name], name, cfg)


def checked_names(
    checkpoint: Checkpoint, cfg: ModelConfig
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """`expected_shapes` and `stored_names`, which fit each other; reads no weight.

    Raises AprError as `load_weights` does, but for tied weights that differ.
    """
    shapes = expected_shapes(cfg)
    stored = stored_names(checkpoint, cfg)
    _check_names(checkpoint, shapes, stored)
    for name, shape in shapes.items():
        found = tuple(checkpoint.tensors.info(stored[name]).shape)
        if found != shape:
            raise AprError(
                f"{checkpoint.path}: tensor {stored[name]} has shape {found}, expected {shape}",
                "the weights do not belong to this configuration",
            )
    return shapes, stored


def read_weight(
    checkpoint: Checkpoint, stored: str, name: str, cfg: ModelConfig, dtype: torch.dtype | None
) -> torch.Tensor:
    """The tensor called `stored` in the file as Hugging Face has it under `name`, (out, in)."""
    if checkpoint.format == "gguf":
        return _from_gguf(checkpoint, stored, name, cfg, dtype)
    return checkpoint.tensors.get(stored, dtype)


def read_unmapped(checkpoint: Checkpoint, stored: str, name: str, cfg: ModelConfig) -> torch.Tensor:
    """As `read_weight` with dtype None, for a tensor that is not kept: where it would come from a
    memory map, whose pages would stay in this process, it is read instead.
    """
    source = checkpoint.tensors
    kind = FLOATS.get(source.info(stored).dtype)
    if not isinstance(source, SafetensorsSource) or kind is None:
        return read_weight(checkpoint, stored, name, cfg, None)
    found = torch.empty(source.info(stored).shape, dtype=kind)
    source.read_into(stored, 0, found.view(-1))
    return found


def load_transformer(
    source: str | Path | Checkpoint,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    form: Form = "numbers",
    keep_zeros: bool = False,
) -> Transformer:
    """The model at a path (Hugging Face folder, .safetensors or .gguf file) or open checkpoint.

    Weights are frozen (requires_grad False) and, where the file's type is dtype and the device
    the CPU, views of the memory-mapped file. Raises what `open_checkpoint`, `config_from_*` and
    `load_weights` raise.

    form: "numbers" of dtype. For training, where embedding and output layer are numbers: "stored":
    a GGUF file's blocks stay, and so do 16-bit floats where dtype is fp32; "nf4": matrices are
    rounded to dtype, then to NF4, one at a time, and with keep_zeros the places that were zero
    before are kept beside them.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    cfg = config_from_checkpoint(checkpoint)
    with torch.device("meta"):
        model = Transformer(cfg)
    shapes, stored = checked_names(checkpoint, cfg)
    _check_tied(checkpoint, cfg, stored)
    for name in shapes:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf == "weight" and isinstance(owner, Linear | Embedding):
            table = isinstance(owner, Embedding) or path == "lm_head"
            matrix: Weight | None = None
            zeros = None
            if form == "nf4" and not table:
                numbers = read_unmapped(checkpoint, stored[name], name, cfg)
                zeros = numbers == 0 if keep_zeros else None
                matrix = quantize_nf4(numbers.to(dtype))
            elif form == "stored" and not table and stays_packed(checkpoint, stored[name], dtype):
                matrix = stored_matrix(checkpoint, stored[name], name, cfg)
            if matrix is not None:
                owner.freeze(matrix.to(torch.device(device)), dtype, zeros)
                continue
        tensor = read_weight(checkpoint, stored[name], name, cfg, dtype)
        if dtype == torch.float16:
            check_fp16_range(checkpoint, name, tensor)
        weight = nn.Parameter(tensor.to(device=device, dtype=dtype), requires_grad=False)
        setattr(owner, leaf, weight)
    return model.eval()


def stored_names(checkpoint: Checkpoint, cfg: ModelConfig) -> dict[str, str]:
    """Hugging Face name -> name in the file, for everything that belongs to the language model."""
    names = checkpoint.tensors.names()
    if checkpoint.format == "gguf":
        arch = _gguf_architecture(checkpoint)
        try:
            return {gguf_to_hf(name, arch): name for name in names if not is_rope_table(name)}
        except AprError as error:
            raise AprError(f"{checkpoint.path}: {error.message}", error.hint) from None
    # Older checkpoints saved this buffer; it follows from the configuration.
    weights = [name for name in names if not name.endswith("rotary_emb.inv_freq")]
    return usual_names(weights, cfg.tie_embeddings)


def _check_names(checkpoint: Checkpoint, expected: Collection[str], stored: dict[str, str]) -> None:
    missing = [name for name in expected if name not in stored]
    if missing:
        name = missing[0]
        if checkpoint.format == "gguf":
            name = hf_to_gguf(name, _gguf_architecture(checkpoint))
        raise AprError(
            f"{checkpoint.path}: tensor {name} is missing{_more(missing)}",
            "the file is incomplete or belongs to another configuration",
        )
    tied = "lm_head.weight"  # tied embeddings: some checkpoints store the copy as well
    extra = [found for ours, found in stored.items() if ours not in expected and ours != tied]
    if extra:
        raise AprError(
            f"{checkpoint.path}: tensor {extra[0]} is unexpected{_more(extra)}",
            "this model computes something the configuration does not mention",
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_tied(checkpoint: Checkpoint, cfg: ModelConfig, stored: dict[str, str]) -> None:
    if not (cfg.tie_embeddings and "lm_head.weight" in stored):
        return
    head = checkpoint.tensors.get(stored["lm_head.weight"])
    if not torch.equal(head, checkpoint.tensors.get(stored["model.embed_tokens.weight"])):
        raise AprError(
            f"{checkpoint.path}: tie_word_embeddings is true, but lm_head.weight differs from "
            "model.embed_tokens.weight",
            "set tie_word_embeddings to false in config.json if the output layer is meant",
        )


def _gguf_architecture(checkpoint: Checkpoint) -> str:
    return str((checkpoint.metadata or {})["general.architecture"])


def _from_gguf(
    checkpoint: Checkpoint, stored: str, name: str, cfg: ModelConfig, dtype: torch.dtype | None
) -> torch.Tensor:
    """One tensor in Hugging Face's layout and values."""
    if cfg.norm_offset and name.endswith("norm.weight"):
        # In fp32, or a small weight next to the 1 would lose its digits.
        tensor = checkpoint.tensors.get(stored, torch.float32) - cfg.norm_offset
        return tensor if dtype is None else tensor.to(dtype)
    return _reordered(checkpoint, name, checkpoint.tensors.get(stored, dtype), cfg)


def _reordered(
    checkpoint: Checkpoint, name: str, tensor: torch.Tensor, cfg: ModelConfig
) -> torch.Tensor:
    if _gguf_architecture(checkpoint) != "llama":
        return tensor
    if ".q_proj." in name:
        return unpermute(tensor, cfg.num_heads)
    if ".k_proj." in name:
        return unpermute(tensor, cfg.num_kv_heads)
    return tensor


def stored_matrix(
    checkpoint: Checkpoint, stored: str, name: str, cfg: ModelConfig, kept: bool = True
) -> Dense | Blocks:
    """A matrix in the form the file has it in; rows in Hugging Face's order. kept False: see
    `read_unmapped`.
    """
    if not is_packed(checkpoint, stored):
        if not kept:
            return Dense(read_unmapped(checkpoint, stored, name, cfg))
        return Dense(read_weight(checkpoint, stored, name, cfg, None))
    data, kind = checkpoint.tensors.get_packed(stored)
    shape = checkpoint.tensors.info(stored).shape
    return Blocks(_reordered(checkpoint, name, data, cfg), kind, shape)


def stored_weights(checkpoint: Checkpoint, cfg: ModelConfig) -> Callable[[str], Dense | Blocks]:
    """A function that reads a weight by its Hugging Face name, to be copied and dropped.

    Raises AprError as `load_weights` does.
    """
    _, stored = checked_names(checkpoint, cfg)
    _check_tied(checkpoint, cfg, stored)
    return lambda name: stored_matrix(checkpoint, stored[name], name, cfg, kept=False)


def is_packed(checkpoint: Checkpoint, stored: str) -> bool:
    """Whether a tensor is stored as quantized blocks."""
    return checkpoint.format == "gguf" and checkpoint.tensors.info(stored).dtype in DECODERS


def stays_packed(checkpoint: Checkpoint, stored: str, dtype: torch.dtype) -> bool:
    """Whether a layer's matrix is left as it is stored by the form "stored": blocks, and 16-bit
    floats that dtype holds exactly, in twice the memory.
    """
    widens = dtype == torch.float32 and checkpoint.tensors.info(stored).dtype in ("BF16", "F16")
    return widens or is_packed(checkpoint, stored)


def unpermute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of q and k rows: pairs (2i, 2i + 1) of a head back to (i, i + D/2).

    tensor: (heads * D, ...), weight or bias.
    """
    rest = tensor.shape[1:]
    pairs = tensor.reshape(heads, -1, 2, *rest)  # (heads, D / 2, 2, ...)
    return pairs.transpose(1, 2).reshape(tensor.shape)
