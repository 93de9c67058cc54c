"""LoRA on slices of a fused layer as PEFT has it: on the whole layer, with the slices' B as blocks among zeros.

The product of the joined factors is exactly that of the slices, and its rank is the sum of theirs. One scale then holds
for the whole layer, so only slices of equal scales can be joined.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from lora.adapters.adapter import Adapter, ranks_in
from lora.errors import UserError
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import in_blocks
from lora.models.architectures import ARCHITECTURES, in_order, module_of, named_by, slice_of

ROUNDING = 1e-12  # relative; of a scale or an alpha that was computed from one
AS_A_WHOLE = "as lora.json says: without that file, the adapter is read as one of the whole layer"
PARTS = {target for each in ARCHITECTURES.values() for targets in each.fused.values() for target in targets}


def joined(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Module -> its A, B and scale, with the slices of a module joined.

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


def separated(weights: Mapping[str, Tensor], method: LoraConfig) -> dict[str, Tensor]:
    """Undo `joined`: the tensors of the slices that a method's targets name.

    Raises: UserError: If the factors of a module are not those of such slices.
    """
    modules = [name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a")]
    found = dict(weights)
    for module in modules:
        slices = [f"{module}.{part}" for part in sorted(PARTS) if slice_of(f"{module}.{part}")]
        named = {name for target in method.targets for name in named_by(target, slices)}
        if not named or any(named_by(target, [module]) for target in method.targets):
            continue
        a, b = found.pop(f"{module}.lora_a"), found.pop(f"{module}.lora_b", None)
        ranks = ranks_in(method, in_order(named))
        if b is None or a.dim() != 2 or b.dim() != 2 or not len(a) == sum(ranks.values()) == b.shape[1]:
            raise UserError(f"the factors of {module} are not joined from slices of ranks {ranks}, {AS_A_WHOLE}")
        start, own = 0, {}
        for name, rank in ranks.items():
            columns, rows = slice(start, start + rank), slice_of(name).rows(len(b))
            own[name] = rows, a[columns].clone(), b[rows, columns].clone()
            start += rank
        if not in_blocks(own.values(), len(b))[1].equal(b):
            raise UserError(f"lora_b of {module} has values outside the blocks of {', '.join(ranks)}, {AS_A_WHOLE}")
        for name, (_, own_a, own_b) in own.items():
            found |= {f"{name}.lora_a": own_a, f"{name}.lora_b": own_b}
    return found
