"""What PEFT allocates between the steps of a run: AdaLoRA's ranks (Zhang et al. 2023), and AdaMSS's subspaces."""

from typing import Any

import torch
from torch import Tensor, nn

from lora.errors import UserError
from lora.methods.bridge import DEFAULT, layers_of

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # PEFT's names: parameter -> its importance, smoothed, and its spread
SUBSPACE_AVERAGES = ("exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")  # likewise, in each layer


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
        self.pattern = state.pop("pattern")
        vars(self.tuner.rankallocator).update(state)


class Subspaces:
    """The subspaces that AdaMSS trains to the end with `use_asa`. PEFT freezes the others as they are, step by step.

    Raises: UserError: If it would freeze none in a run of `steps` steps.
    """

    def __init__(self, model: nn.Module, steps: int):
        self.update = model.tuner.update_and_allocate
        self.layers = list(layers_of(model).values())
        config = model.tuner.peft_config[DEFAULT]
        total = sum(layer.num_subspaces[DEFAULT] for layer in self.layers)
        first, last, interval = config.init_warmup, config.final_warmup, config.mask_interval
        if min(last, steps) // interval * interval < max(first, 1) or config.asa_target_subspaces >= total:
            raise UserError(
                f"AdaMSS freezes subspaces at multiples of mask_interval from step init_warmup to final_warmup, until "
                f"asa_target_subspaces of {total} train: got {interval}, {first}, {last} and "
                f"{config.asa_target_subspaces} in a run of {steps} steps"
            )

    def state_dict(self) -> list[dict[str, Any]]:
        return [{name: getattr(layer, name) for name in SUBSPACE_AVERAGES} for layer in self.layers]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for layer, averages in zip(self.layers, state, strict=True):
            vars(layer).update(averages)


def allocator(model: nn.Module, steps: int) -> Ranks | Subspaces | None:
    """What allocates in a run of one of PEFT's methods. None if its type does not.

    Raises: UserError: If it has no step in which to do so.
    """
    settings = model.tuner.peft_config[DEFAULT]
    if hasattr(settings, "tinit"):
        return Ranks(model, steps)
    return Subspaces(model, steps) if getattr(settings, "use_asa", False) else None
