"""Compiled kernels for the encoder on a CPU: dropout, softmax, GELU, LayerNorm, LoRA.

| module | what it holds |
| --- | --- |
| `masks` | dropout masks computed from seed, step, site, example and place |
| `kernels` | the compiled loops (numba), for float32 and bfloat16 |
| `plain` | the same computations in torch operations; the tests compare with it |
| `functions` | autograd functions around the kernels |
| `linear` | frozen linear layers, alone and with LoRA |
| `encoder` | an encoder of BERT's shape that computes with them |
| `optimizer` | AdamW and the clipping of gradients, one pass over memory |
"""
