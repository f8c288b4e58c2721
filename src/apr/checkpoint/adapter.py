"""LoRA adapters in PEFT's layout, applied to their base's weights row by row.

Covers LoRA (Hu et al. 2022) on linear layers and embeddings, rank-stabilised scaling, DoRA (Liu et
al. 2024) on linear layers, rank and alpha patterns, fan_in_fan_out, biases and whole tensors saved
with the adapter. What changes weights in ways not covered here is refused by name, and so is any
setting this file does not know.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint.names import text_name
from apr.checkpoint.safetensors_folder import SafetensorsSource
from apr.checkpoint.tensors import read_json_object
from apr.common.errors import AprError, UsageError

EMBEDDING, OUTPUT_LAYER = "model.embed_tokens.weight", "lm_head.weight"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Our own setting: zeros of the layers' matrices get no update. PEFT does not know it.
KEEP_ZEROS = "apr_keep_zeros"
_PREFIX = "base_model.model."
# Every setting of PEFT that is read here, or that only says how the adapter was trained.
_KNOWN = {
    KEEP_ZEROS, "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
# Initialisations that also change the base model's own weights.
_MOVED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
# What else in its folder changes what the model is asked and where it ends.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
# Whole tensors: modules_to_save, and base layers that PEFT saves under an adapter (embeddings).
_SAVED = re.compile(r"(\.modules_to_save|\.base_layer)?(\.default)?\.(weight|bias)$")


@dataclass(frozen=True)
class Factors:
    """One layer's factors, fp32. a: (r, in), b: (out, r); for embeddings (r, V) and (width, r)."""

    scaling: float
    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None = None
    transposed: bool = False  # the weight is stored (in, out), as an embedding's is
    bias: torch.Tensor | None = None  # (out,), added to the layer's own
    keep_zeros: bool = False  # where the base is zero, nothing is added

    def shape(self) -> tuple[int, int]:
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape

    def apply(self, rows: torch.Tensor, start: int, end: int) -> torch.Tensor:
        if self.transposed:
            return rows + self.scaling * (self.a[:, start:end].T @ self.b.T)
        update = self.scaling * (self.b[start:end] @ self.a)
        merged = rows + (update.masked_fill(rows == 0, 0) if self.keep_zeros else update)
        if self.magnitude is not None:  # DoRA eq. 5: the direction of the sum at a learned length
            length = torch.linalg.vector_norm(merged, dim=1, keepdim=True)
            merged = self.magnitude[start:end, None] / length * merged
        return merged


@dataclass(frozen=True)
class Adapter:
    """path: the folder. config: adapter_config.json. saved: whole tensors, factors: of those with a
    low-rank update; both by the base's names.
    """

    path: Path
    config: Mapping[str, Any]
    saved: Mapping[str, torch.Tensor] = field(repr=False)
    factors: Mapping[str, Factors] = field(repr=False)

    @property
    def base(self) -> str | None:
        """The base model, as whoever made the adapter called it."""
        return self.config.get("base_model_name_or_path")

    @cached_property
    def targets(self) -> frozenset[str]:
        """Names of the base's tensors that differ with this adapter."""
        return frozenset({*self.saved, *self.factors, *self._shifts})

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of what its files hold."""
        digest = hashlib.sha256()
        for name in (CONFIG_FILE, WEIGHTS_FILE, "fim.json"):
            path = self.path / name
            digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
        for name in _TOKENIZER_FILES:
            if (path := self.path / name).is_file():
                digest.update(hashlib.sha256(name.encode() + path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def unties(self, tied: bool, rows: int) -> bool:
        """Whether an embedding and an output layer that are one matrix in the base are two with
        this adapter: it changes one of them, and that one alone. rows: of the base's. An embedding
        of another number of rows takes the place of both.
        """
        both = self.rows not in (None, rows) and OUTPUT_LAYER not in self.targets
        return tied and not both and not self.targets.isdisjoint((EMBEDDING, OUTPUT_LAYER))

    @property
    def rows(self) -> int | None:
        """Rows of the embedding, where the adapter holds it whole."""
        return len(self.saved[EMBEDDING]) if EMBEDDING in self.saved else None

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor with the adapter. shape: of the base's."""
        return tuple(self.saved[name].shape) if name in self.saved else shape

    def with_rows(self, config: dict[str, Any]) -> dict[str, Any]:
        """A base's config.json for the adapter's number of rows."""
        if self.rows is None:
            return config
        text = config.get("text_config")
        inner = {} if text is None else {"text_config": {**text, "vocab_size": self.rows}}
        return {**config, **inner, **({} if inner else {"vocab_size": self.rows})}

    @cached_property
    def _shifts(self) -> dict[str, torch.Tensor]:
        """What is added to biases."""
        return {
            name.removesuffix("weight") + "bias": own.scaling * own.bias
            for name, own in self.factors.items()
            if own.bias is not None
        }

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """AprError naming a tensor of the adapter that fits none of the base's.

        An embedding and an output layer may have other numbers of rows, the same both.
        """
        tables = [self.shape(n, shapes[n]) for n in (EMBEDDING, OUTPUT_LAYER) if n in shapes]
        if len({rows for rows, *_ in tables}) > 1:
            raise AprError(
                f"{self.path}: the adapter's embedding has {tables[0][0]} rows, the output layer"
                f" {tables[1][0]}",
                "save both with it: save_embedding_layers=True in PEFT's save_pretrained",
            )
        shapes = {
            name: (len(self.saved[name]), *shape[1:])
            if name in self.saved and name in (EMBEDDING, OUTPUT_LAYER)
            else shape
            for name, shape in shapes.items()
        }
        own: list[tuple[str, tuple[int, ...]]]
        own = [(name, factors.shape()) for name, factors in self.factors.items()]
        for tensors in (self.saved, self._shifts):
            own += [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
        for name, shape in own:
            if name not in shapes:
                raise AprError(
                    f"{self.path}: the adapter changes {name}, which its base does not have",
                    "name the base it was trained on",
                )
            if shapes[name] != shape:
                raise AprError(
                    f"{self.path}: the adapter's {name} is {shape}, the base's is {shapes[name]}",
                    "name the base it was trained on",
                )

    def apply(self, name: str, rows: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Rows start .. end of tensor `name` with the adapter.

        rows: fp32 (end - start, in), the base's, which count only where the adapter does not hold
        the tensor whole; vectors have rows of one element. Returns fp32 (end - start, in).
        """
        if name in self.saved:
            rows = self.saved[name][start:end].float().reshape(end - start, -1)
        if name in self._shifts:
            rows = rows + self._shifts[name][start:end].view(rows.shape)
        return self.factors[name].apply(rows, start, end) if name in self.factors else rows


def is_adapter(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file()


def open_adapter(path: str | Path) -> Adapter:
    """Read an adapter folder. Raises UsageError (no adapter, a kind that is not covered), AprError
    (damaged files, factors without their counterpart).
    """
    folder = Path(path).expanduser()
    if not is_adapter(folder):
        raise UsageError(f"{folder} has no {CONFIG_FILE}", "name a PEFT adapter's folder")
    config = read_json_object(folder / CONFIG_FILE)
    _refuse_unknown(folder, config)
    if not (folder / WEIGHTS_FILE).is_file():
        hint = ""
        if (folder / "adapter_model.bin").is_file():
            hint = (
                "adapter_model.bin is a pickle, which can run any code: convert it to safetensors"
            )
        raise UsageError(f"{folder} has no {WEIGHTS_FILE}", hint)
    source = SafetensorsSource.from_file(folder / WEIGHTS_FILE)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    saved: dict[str, torch.Tensor] = {}
    for key in source.names():
        found = text_name(key.removeprefix(_PREFIX))
        if found is None:
            continue  # of another modality, which no text runs through
        name = found.replace(".default.", ".").removesuffix(".default")
        part = next((suffix for suffix in _PARTS if name.endswith(suffix)), None)
        if part is not None:
            module = name.removesuffix(part)
            parts.setdefault(module, {})[_PARTS[part]] = source.get(key, torch.float32)
        elif (match := _SAVED.search(name)) and ".lora_" not in name:
            saved[f"{name[: match.start()]}.{match[3]}"] = source.get(key)
        else:
            raise UsageError(f"{folder}: tensor {key} of the adapter is of an unknown kind")
    factors = {f"{m}.weight": _factors(folder, config, m, found) for m, found in parts.items()}
    if not factors and not saved:
        raise AprError(f"{folder}: the adapter is empty")
    return Adapter(folder, config, saved, factors)


def _refuse_unknown(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UsageError(f"{folder}: peft_type {kind} is not supported", "LORA is")
    for key in sorted(config.keys() - _KNOWN):
        if config[key]:
            raise UsageError(f"{folder}: adapters with {key} are not supported")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_MOVED_BASES):
        raise UsageError(
            f"{folder}: the adapter was initialised by {start}, which changed its base's weights",
            "convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion)",
        )


def _factors(
    folder: Path, config: Mapping[str, Any], module: str, found: Mapping[str, torch.Tensor]
) -> Factors:
    embedding = "embedding_a" in found or "embedding_b" in found
    a = found.get("embedding_a" if embedding else "a")
    b = found.get("embedding_b" if embedding else "b")
    if a is None or b is None:
        raise AprError(f"{folder}: one of the two factors of {module} is missing")
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise AprError(f"{folder}: {module} has factors {tuple(b.shape)} and {tuple(a.shape)}")
    rank = a.shape[0]
    stated = _pattern(folder, config, "rank_pattern", module, config.get("r", rank))
    if stated != rank:
        raise AprError(
            f"{folder}: {module} has rank {rank}, {CONFIG_FILE} says {stated:g}",
            "file and configuration do not belong together",
        )
    alpha = _pattern(folder, config, "alpha_pattern", module, config.get("lora_alpha", rank))
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    magnitude = _magnitude(folder, config, module, found, transposed)
    zeros = bool(config.get(KEEP_ZEROS)) and module.endswith("_proj")
    return Factors(float(scaling), a, b, magnitude, transposed, found.get("bias"), zeros)


def _magnitude(
    folder: Path,
    config: Mapping[str, Any],
    module: str,
    found: Mapping[str, torch.Tensor],
    transposed: bool,
) -> torch.Tensor | None:
    """DoRA's learned length of each output row, (out,)."""
    magnitude = found.get("magnitude")
    if (magnitude is not None) != bool(config.get("use_dora")):
        has = "has no" if magnitude is None else "has a"
        raise AprError(
            f"{folder}: use_dora is {bool(config.get('use_dora'))}, but {module} {has} magnitude",
            "file and configuration do not belong together",
        )
    if magnitude is None:
        return None
    if transposed:
        raise UsageError(f"{folder}: DoRA of {module}, no linear layer, is not supported")
    if magnitude.numel() != found["b"].shape[0]:
        raise AprError(f"{folder}: the magnitude of {module} has {magnitude.numel()} elements")
    return magnitude.reshape(-1)


def _pattern(
    folder: Path, config: Mapping[str, Any], key: str, module: str, default: Any
) -> int | float:
    """A number of PEFT's rank_pattern or alpha_pattern, whose keys match the end of a name."""
    value, patterns = default, config.get(key) or {}
    if not isinstance(patterns, dict):
        raise AprError(f"{folder}: {key} in {CONFIG_FILE} is no object")
    for pattern, number in patterns.items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise AprError(f"{folder}: {key} holds {pattern!r}: {error}") from None
        if matches:
            value = number
            break
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AprError(f"{folder}: {key} or its default for {module} is {value!r}, no number")
    return value
