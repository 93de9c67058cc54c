"""Trained adapters: saving, loading, merging, exchanging, and predicting with them.

| module | contents |
| --- | --- |
| `adapter` | `Adapter`: the trained tensors, their method, their base and their origin |
| `folder` | an adapter as a self-describing folder |
| `fit` | every check of an adapter against a model |
| `merge` | `load_adapter`, and `merge`, `unmerge`, `swap`, `remove`: LoRA folded into the weights and taken out again |
| `batched` | `AdapterSet`: several adapters in one batch |
| `head` | a model's head, replaced as a whole |
| `base` | the pretrained weights under an adapter, and how a model is checked against them |
| `peft`, `loralib` | files of other libraries |
| `predict` | `python -m lora predict` |
| `export` | `python -m lora export`: folders that `peft` or `transformers` loads alone |
"""
