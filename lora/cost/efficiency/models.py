"""The encoder with a method on it: in training, by the training loop's own step, or as deployed."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora.adapters.merge import merge
from lora.cost.efficiency.plan import Plan, method_run, model_config
from lora.cost.shapes import rows_and_tokens
from lora.cost.subjects import Batch, Subject, changed, load, ours
from lora.errors import UserError
from lora.methods import apply
from lora.methods.lowrank import LoraLinear, LoraSlice
from lora.models.load import max_positions
from lora.rng import generator
from lora.training.fused.encoder import fuse

STD_B = 0.02  # ours: of random values that stand in for a trained B, since B is zero before training


def resolve_device(wanted: str, kernels: str | None) -> torch.device:
    """The device to measure on. `auto` is a GPU if torch sees one, unless the kernels are `fused`, those for CPUs.

    Raises: UserError: If `cuda` is requested but not available.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no CUDA device here; use --device auto or cpu")
    if wanted == "auto" and torch.cuda.is_available() and kernels != "fused":
        return torch.device("cuda")
    return torch.device("cpu" if wanted == "auto" else wanted)


def build_encoder(plan: Plan) -> tuple[nn.Module, str]:
    """The encoder in float32 on the CPU, and the name of its weights.

    Raises: UserError: If the encoder is absent, or a shape of the plan has more tokens than it reads.
    """
    model, weights = load(changed(method_run(plan, "full"), model=model_config(plan)))
    longest = max(rows_and_tokens(shape)[1] for shape in (*plan.step_shapes, *plan.latency_shapes))
    if longest > max_positions(model):
        raise UserError(f"a shape has {longest} tokens, but {plan.model} reads at most {max_positions(model)}")
    return model, weights


def make_trainee(plan: Plan, name: str) -> Subject:
    """A method in training.

    Raises: UserError: If the kernels do not cover the encoder.
    """
    runtime = {"device": plan.device, "threads": plan.threads}
    return ours(changed(method_run(plan, name), runtime=runtime), build_encoder(plan)[0])


def make_server(plan: Plan, name: str) -> nn.Module:
    """The model as deployed: frozen, with its weights in the plan's precision.

    B gets values of the size that training gives it. `lora_merged` is merged in float32, before any cast.
    """
    run, (model, _) = method_run(plan, name), build_encoder(plan)
    apply(model, run.method, plan.seed)
    fill_b(model, plan.seed)
    if name == "lora_merged":
        merge(model)
    model.requires_grad_(False)
    if plan.kernels == "fused":
        fuse(model, plan.precision, plan.seed)
    elif plan.precision == "bf16":
        model.to(torch.bfloat16)
    return model.to(torch.device(plan.device)).eval()


@torch.no_grad()
def fill_b(model: nn.Module, seed: int) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | LoraSlice):
            draw = torch.empty(module.lora_b.shape).normal_(0.0, STD_B, generator=generator(seed, "lora_b", name))
            module.lora_b.copy_(draw)


@torch.inference_mode()
def serve(model: nn.Module, batch: Batch) -> Float[Tensor, "batch classes"]:
    return model(**{key: value for key, value in batch.items() if key != "labels"}).logits
