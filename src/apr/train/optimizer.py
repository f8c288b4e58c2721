"""AdamW (torch's) over parameters of any dtype, with clipping and exact save and restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from apr.common.errors import AprError
from apr.train.train_settings import TrainSettings


class Optimizer:
    """Trains named parameters (Loshchilov & Hutter 2019, arXiv:1711.05101).

    A parameter narrower than fp32 has an fp32 copy that gradients are added to and steps are taken
    on, and is rounded from it after each step: updates smaller than its own rounding are not lost.
    Parameters named `*.lora_b` learn `lora_plus` times as fast. Norms and biases do not decay.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
        self.parameters = dict(parameters)
        self._masters = {n: _master(p) for n, p in self.parameters.items()}
        self._max_norm = settings.max_grad_norm
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, master in self._masters.items():
            factor = settings.lora_plus if name.endswith(".lora_b") else 1.0
            decay = settings.weight_decay if master.dim() > 1 else 0.0
            groups.setdefault((factor, decay), []).append(master)
        device = next(iter(self._masters.values())).device.type
        self._adam = torch.optim.AdamW(
            [
                {"params": params, "weight_decay": decay, "factor": factor}
                for (factor, decay), params in groups.items()
            ],
            lr=settings.peak_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=device in ("cpu", "cuda"),
        )

    def step(self, rate: float) -> float:
        """Clip the gradients to the settings' norm, take one step, clear them.

        rate: the learning rate now. Returns the norm before clipping; if it is not finite nothing
        is changed.
        """
        masters = [m for m in self._masters.values() if m.grad is not None]
        norm = torch.nn.utils.get_total_norm([m.grad for m in masters if m.grad is not None])
        if bool(torch.isfinite(norm)):
            if self._max_norm:
                nn.utils.clip_grads_with_norm_(masters, self._max_norm, norm)
            for group in self._adam.param_groups:
                group["lr"] = rate * group["factor"]
            self._adam.step()
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    if self._masters[name] is not parameter:
                        parameter.copy_(self._masters[name])
        self._adam.zero_grad(set_to_none=True)
        return float(norm)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a later `restore` needs, by name."""
        found: dict[str, torch.Tensor] = {}
        for name, master in self._masters.items():
            found[f"value.{name}"] = master.detach()
            for key, value in self._adam.state.get(master, {}).items():
                found[f"{key}.{name}"] = value
        return found

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises AprError where the state belongs to other parameters."""
        with torch.no_grad():
            for name, master in self._masters.items():
                saved = state.get(f"value.{name}")
                if saved is None or saved.shape != master.shape:
                    raise AprError(f"the checkpoint does not fit: {name} is missing or has changed")
                master.copy_(saved)
                self.parameters[name].copy_(saved)
                own: dict[str, Any] = {
                    key.partition(".")[0]: value.clone()
                    for key, value in state.items()
                    if key.partition(".")[2] == name and not key.startswith("value.")
                }
                if own:
                    self._adam.state[master] = own


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or the fp32 copy that its gradients go to as soon as they are made."""
    if parameter.dtype == torch.float32:
        return parameter
    master = nn.Parameter(parameter.detach().float())

    def collect(narrow: torch.Tensor) -> None:
        assert narrow.grad is not None
        if master.grad is None:
            master.grad = narrow.grad.float()
        else:
            master.grad += narrow.grad
        narrow.grad = None

    parameter.register_post_accumulate_grad_hook(collect)
    return master
