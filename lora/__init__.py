"""LoRA (Hu et al. 2021) compared with full fine-tuning and adapters on GLUE.

Names are loaded on first use, so that planning a sweep or building a table never loads torch.
"""

from importlib import import_module

_HOMES = {
    "METHODS": "lora.methods",
    "LoraConfig": "lora.methods.configs",
    "FullConfig": "lora.methods.configs",
    "BitFitConfig": "lora.methods.configs",
    "HoulsbyConfig": "lora.methods.configs",
    "PfeifferConfig": "lora.methods.configs",
    "AdapterDropConfig": "lora.methods.configs",
    "PeftConfig": "lora.methods.configs",
    "RunConfig": "lora.config.run",
    "TASKS": "lora.data.tasks",
    "apply": "lora.methods",
    "merge": "lora.adapters.merge",
    "unmerge": "lora.adapters.merge",
    "swap": "lora.adapters.merge",
    "AdapterSet": "lora.adapters.batched",
    "save_adapter": "lora.adapters.folder",
    "load_adapter": "lora.adapters.merge",
    "to_peft": "lora.adapters.peft",
    "from_peft": "lora.adapters.peft",
    "from_loralib": "lora.adapters.loralib",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'lora' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
