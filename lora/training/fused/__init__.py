"""The encoder's elementwise work in compiled kernels, for the CPU: dropout, softmax, GELU, LayerNorm, LoRA.

| module | what it holds |
| --- | --- |
| `masks` | dropout masks that are a function of seed, step, site, example and place |
| `kernels` | the compiled loops (numba), for float32 and bfloat16 |
| `plain` | the same mathematics in torch, the tests' truth |
| `functions` | autograd functions around the kernels |
| `encoder` | an encoder of BERT's shape that computes with them |
| `optimizer` | AdamW and the clipping of gradients, one pass over memory |
"""
