"""Compiled kernels for the encoder on a CPU: dropout, softmax, GELU, LayerNorm, LoRA.

| module | contents |
| --- | --- |
| `kernels` | the compiled loops (numba), for float32 and bfloat16 |
| `functions` | dropout masks from seed, step, site, example and place; autograd functions around the kernels |
| `encoder` | an encoder of the BERT architecture that computes with them, and its linear layers |
| `optimizer` | AdamW and gradient clipping, in one pass over memory |
"""
