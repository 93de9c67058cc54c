"""The device, precision, threads and processes of a run."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lora.config.kernel_choice import BF16_CAPABILITY
from lora.config.run import RunConfig
from lora.errors import UserError
from lora.training.allocator import keep_freed_memory
from lora.training.processes import check_batch, processes


def make_accelerator(config: RunConfig) -> Accelerator:
    """Set up device, precision, threads and processes.

    Raises: UserError: If the device or the precision is not available, or the batch cannot be divided evenly into the
        processes' micro-batches.
    """
    check_batch(config.train, processes())
    device, precision = config.runtime.device, config.train.precision
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device is cuda, but torch sees no CUDA device here; use auto or cpu")
    on_cpu = config.train.kernels == "fused" or device == "cpu"
    gpu = torch.cuda.is_available() and not on_cpu
    check_precision(precision, gpu)
    torch.set_num_threads(config.runtime.threads)
    keep_freed_memory()
    AcceleratorState._reset_state()  # one process trains runs of several precisions, one after another
    autocast = precision == "bf16" and config.train.kernels != "fused"  # the fused kernels cast by themselves
    # By default, accelerate does not connect processes without a GPU: each would train the whole run.
    on_cpu = on_cpu or (processes() > 1 and not torch.cuda.is_available())
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if autocast else "no")


def check_precision(precision: str, gpu: bool, setting: str = "train.precision") -> None:
    """
    Raises: UserError: If the precision is bf16 and the device lacks it.
    """
    if precision == "bf16" and not has_bf16(gpu):
        raise UserError(f"{setting} is bf16, but this {'GPU' if gpu else 'CPU'} has none; use fp32")


def has_bf16(gpu: bool) -> bool:
    """Whether the device multiplies in bfloat16 natively, instead of emulating it."""
    if gpu:  # torch.cuda.is_bf16_supported also returns True for emulation
        return torch.cuda.get_device_capability()[0] >= BF16_CAPABILITY
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
