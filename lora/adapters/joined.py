"""LoRA on slices of a fused layer, joined into LoRA on the whole layer, as PEFT has it."""

import math

import torch
from torch import Tensor

from lora.adapters.adapter import Adapter
from lora.errors import UserError
from lora.methods.lowrank import in_blocks
from lora.models.architectures import in_order, module_of, slice_of

ROUNDING = 1e-12  # relative; of a scale or an alpha that was computed from one


def joined(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Module -> its A, B and scale. Slices of a fused layer become one update of the whole, with their B as blocks.

    The product of the joined factors is exactly that of the slices, and its rank is the sum of theirs. One scale then
    holds for the whole layer.

    Raises: UserError: If slices of one module have different scales.
    """
    modules: dict[str, list[str]] = {}
    pairs = adapter.pairs()
    for name in in_order(pairs):
        modules.setdefault(module_of(name), []).append(name)
    found = {}
    for module, names in modules.items():
        scales = {name: adapter.scale(name) for name in names}
        scale = scales[names[0]]
        if not all(math.isclose(own, scale, rel_tol=ROUNDING) for own in scales.values()):
            listed = ", ".join(f"{own:g} on {name}" for name, own in scales.items())
            raise UserError(
                f"PEFT has one factor of B A for the whole of {module}, and the adapter's slices of it have several "
                f"({listed}): train with equal ranks, or with method.alpha_at_rank, which gives every rank one factor"
            )
        if names == [module]:
            found[module] = (*pairs[module], scale)
        else:
            outputs = len(pairs[names[0]][1]) * slice_of(names[0]).count
            parts = [(slice_of(name).rows(outputs), *pairs[name]) for name in names]
            found[module] = (*in_blocks(parts, outputs), scale)
    return found


def norms_of(adapter: Adapter, module: str, outputs: int) -> Tensor:
    """DoRA's norms of a whole layer. Raises: UserError: If a slice of it has none."""
    names = [name for name in in_order(adapter.pairs()) if module_of(name) == module]
    norms = torch.cat([adapter.weights[f"{name}.lora_m"] for name in names])
    if len(norms) != outputs:
        raise UserError(
            f"PEFT has DoRA on the whole of {module} or not at all, and the adapter has it on {', '.join(names)}: "
            f"train all slices of the layer"
        )
    return norms
