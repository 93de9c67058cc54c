"""AdaLoRA between the steps of a run: its penalty, and PEFT's allocation of ranks (Zhang et al. 2023)."""

from typing import Any

import torch
from torch import Tensor, nn

from lora.errors import UserError
from lora.methods.bridge import DEFAULT

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # PEFT's names: parameter -> its importance, smoothed, and its spread


class Ranks:
    """The singular values that AdaLoRA keeps, chosen by PEFT's allocator after every step.

    PEFT would cut the tensors to the ranks it chose. Here they stay whole, with zeros, so that the adapter of any
    epoch has the same form.

    Args:
        steps: Number of steps of the whole run, over which the ranks fall.
    Raises: UserError: If the schedule has no step left in which they could.
    """

    def __init__(self, model: nn.Module, steps: int):
        self.model, self.tuner = model, model.tuner
        self.config, self.pattern = self.tuner.peft_config[DEFAULT], None
        first, last = self.config.tinit, self.config.tfinal
        if steps <= first + last or self.config.target_r >= self.config.init_r:
            raise UserError(
                f"AdaLoRA lowers its ranks between step tinit and the last tfinal steps, from init_r to target_r: got "
                f"{first}, {last}, {self.config.init_r} and {self.config.target_r} in a run of {steps} steps"
            )
        self.config.total_step = steps

    def penalty(self) -> Tensor:
        """The mean distance of A and B from orthogonal matrices, times `orth_reg_weight`."""
        named = [(name, p) for name, p in self.model.named_parameters() if f".{DEFAULT}" in name]
        products = [p @ p.T for name, p in named if "lora_A" in name] + [p.T @ p for n, p in named if "lora_B" in n]
        distances = [torch.linalg.matrix_norm(one - torch.eye(len(one), device=one.device)) for one in products]
        return self.config.orth_reg_weight * torch.stack(distances).mean()

    def update(self, step: int) -> None:
        """Call after step 1, 2, ... of the optimizer, while its gradients are still there."""
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(step)
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def state_dict(self) -> dict[str, Any]:
        return {"pattern": self.pattern} | {name: getattr(self.tuner.rankallocator, name) for name in AVERAGES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pattern = state["pattern"]
        parameters = dict(self.model.named_parameters())  # whose devices the averages follow
        for kind in AVERAGES:
            averages = {name: average.to(parameters[name].device) for name, average in state[kind].items()}
            setattr(self.tuner.rankallocator, kind, averages)
