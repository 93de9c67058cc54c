"""AdamW for the CPU with gradient clipping, in one pass over parameters, gradients and moments."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from lora.training.fused import kernels


class FusedAdamW(torch.optim.Optimizer):
    """torch's AdamW after `clip_grad_norm_`, for float32 parameters on the CPU.

    Embeddings may have sparse gradients (`nn.Embedding.sparse`). The update equals that of the dense gradient:
    rows that no batch has touched, whose moments are zero, only decay.

    Args:
        clip_norm: Maximum norm of all gradients together; None disables clipping.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        clip_norm: float | None,
    ):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.clip_norm = clip_norm
        self.moving: dict[nn.Parameter, np.ndarray] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        del closure  # losses are computed outside
        gradients = {
            p: p.grad.coalesce() if p.grad.is_sparse else p.grad
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        }
        scale = np.float32(1)
        if self.clip_norm is not None:  # as `clip_grad_norm_` scales the gradients
            values = (grad.values() if grad.is_sparse else grad for grad in gradients.values())
            squares = sum(kernels.sum_of_squares(flat(value.contiguous())) for value in values)
            scale = np.float32(min(1.0, self.clip_norm / (math.sqrt(squares) + 1e-6)))
        for group in self.param_groups:
            for p in group["params"]:
                if p in gradients:
                    self._update(p, gradients[p], scale, group)

    def _update(self, p: nn.Parameter, grad: torch.Tensor, scale: np.float32, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        beta1, beta2 = group["betas"]
        corrections = (1 - beta1 ** state["step"], math.sqrt(1 - beta2 ** state["step"]))
        rates = (group["lr"], group["weight_decay"], beta1, beta2, group["eps"], *corrections)
        rates = tuple(map(np.float32, rates))
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if not grad.is_sparse:
            kernels.adamw(flat(p), flat(grad.contiguous()), scale, flat(m), flat(v), rates)
            return
        if p not in self.moving:
            self.moving[p] = (m.any(dim=1) | v.any(dim=1)).numpy()  # in a resumed run: rows touched before
        places = np.full(len(p), -1)
        places[grad.indices()[0].numpy()] = np.arange(grad.values().shape[0])
        arrays = (grad.values().numpy(), scale, m.numpy(), v.numpy(), self.moving[p])
        kernels.adamw_rows(p.detach().numpy(), places, *arrays, rates)


def flat(tensor: torch.Tensor) -> np.ndarray:
    """A flat view of the same memory. Raises: RuntimeError: If the tensor is not contiguous."""
    return tensor.detach().view(-1).numpy()
