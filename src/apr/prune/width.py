"""A narrower hidden state: the dimensions of least importance go from every tensor.

Importance as in Minitron (Muralidharan et al. 2024, arXiv:2407.14679, section 3.1): the size of a
dimension behind the norms of all layers. Nothing is refitted: a narrower model wants training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

import torch

from apr.calibrate.statistics import Norms, Nothing, Statistic
from apr.calibrate.stream import ModelStream, layer_prefix
from apr.common.errors import AprError, UsageError
from apr.model.config import ModelConfig
from apr.model.transformer import Layer
from apr.prune.layers import walk
from apr.prune.output import PrunedOutput
from apr.prune.settings import PruneSettings
from apr.prune.smaller import HEADS_DIVIDE_HIDDEN

_READS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")
_WRITES = ("o_proj", "down_proj")
_TABLES = ("embed_tokens", "lm_head")


def narrower(config: ModelConfig, sparsity: float) -> ModelConfig:
    """The configuration with about the part `sparsity` of the hidden size taken.

    Raises UsageError where the family forbids it, and when nothing would go, or all.
    """
    if config.embedding_scale != 1.0:
        raise UsageError(
            f"--method width cannot narrow a {config.family} model: its embedding is multiplied by"
            " the root of the hidden size, and the output layer shares it",
            "--method structured or depth",
        )
    step = lcm(8, config.num_heads) if config.family in HEADS_DIVIDE_HIDDEN else 8
    size = round(config.hidden_size * (1 - sparsity) / step) * step
    if not 0 < size < config.hidden_size:
        raise UsageError(
            f"--sparsity {sparsity:g} leaves {size} of {config.hidden_size} hidden dimensions",
            f"they go in steps of {step} here",
        )
    return replace(config, hidden_size=size)


@dataclass(frozen=True)
class Narrowing:
    """kept: int64, ascending. gains: what each norm's weight is multiplied by, by its name, so
    that its output keeps its size: a norm divides by the root mean square of fewer dimensions.
    """

    kept: torch.Tensor
    gains: dict[str, float]


def plan_narrowing(
    stream: ModelStream, settings: PruneSettings, ids: torch.Tensor, size: int, progress: bool
) -> Narrowing:
    """Measured over the calibration ids. Raises AprError for activations that are not finite."""
    energies: dict[str, torch.Tensor] = {}
    importance = torch.zeros(stream.config.hidden_size, device=stream.device)

    def observe(names: Sequence[str], size: int) -> Statistic:
        reads = names[0].endswith(_READS)
        return Norms(size, stream.device) if reads else Nothing()

    def treat(index: int, layer: Layer, names: Sequence[str], found: Statistic) -> None:
        if isinstance(found, Nothing):
            return
        norm = "input_layernorm" if names[0].startswith("self_attn") else "post_attention_layernorm"
        try:
            norms = found.norms()
        except AprError as error:
            raise AprError(f"{layer_prefix(index)}{norm}: {error.message}", error.hint) from None
        importance.add_(norms / norms.mean())
        gain = layer.get_submodule(norm).get_parameter("weight").float()
        before = torch.where(gain == 0, 0.0, norms / gain)
        energies[f"{layer_prefix(index)}{norm}.weight"] = before.square()

    outputs = [x for _, x in walk(stream, ids, observe, treat, "measuring layer", progress)][-1:]
    last = outputs[0].float()
    sizes = last.square().mean(dim=1, keepdim=True).sqrt()
    energies["model.norm.weight"] = (last / sizes).square().sum(dim=0)
    kept = importance.topk(size).indices
    if settings.importance == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        kept = torch.randperm(len(importance), generator=generator)[:size].to(kept)
    kept = kept.sort().values
    gains = {n: float((e[kept].mean() / e.mean()).sqrt()) for n, e in energies.items()}
    return Narrowing(kept.cpu(), gains)


def write_narrow(stream: ModelStream, plan: Narrowing, output: PrunedOutput) -> None:
    """Write every tensor's part."""
    for name in output.waiting():
        tensor = stream.tensor(name)
        module = name.split(".")[-2]
        if name in plan.gains:
            tensor = tensor[plan.kept].float() * plan.gains[name]
        elif name.endswith(".bias"):
            pass  # of q, k and v: heads stay
        elif module in _WRITES:
            tensor = tensor[plan.kept]
        elif module in (*_READS, *_TABLES):
            tensor = tensor[:, plan.kept]
        output.put(name, tensor)
