"""Names of the methods and their targets in tables. It does not import torch."""

METHOD_TITLES = {  # in table order
    "full": "Full fine-tuning",
    "bitfit": "BitFit",
    "adapterdrop": "AdapterDrop",
    "houlsby": "Houlsby adapters",
    "pfeiffer": "Pfeiffer adapters",
    "lora": "LoRA",
    "peft": "PEFT",
}
TARGET_TITLES = {"q": "Wq", "k": "Wk", "v": "Wv", "o": "Wo", "i": "Wi", "f": "Wf"}  # i, f: the FFN
