"""The paper's sentences, stated as what can be tested, and judged on the records. `python -m lora claims PROFILE`.

| module | what it holds |
| --- | --- |
| `statements` | experiments/<name>/claims.yaml, read strictly |
| `known` | the methods, tasks and other values that a claim may name |
| `findings` | one comparison against its bound; Holm's correction within a claim |
| `sides` | the cells that a side names, and what they are called |
| `counts` | comparisons of trainable parameters, GPT-3's among them |
| `costs` | comparisons of time, memory and storage, from results/efficiency/ |
| `verdicts` | each claim on what was measured: supported, not supported, cannot tell |
| `history` | the commit in which a claim last changed, and whether runs are older |
| `judging` | all of these in one call, on a profile's records |
| `shown` | verdicts as text and as JSON |
"""
