"""The paper's sentences as testable statements, judged on the records.

| module | contents |
| --- | --- |
| `statements` | experiments/<name>/claims.yaml, read strictly |
| `findings` | one comparison against its bound; Holm's correction within a claim |
| `sides` | the cells that a side names, and their labels |
| `counts` | comparisons of trainable parameters, GPT-3's among them |
| `costs` | comparisons of time, memory and storage, from results/efficiency/ |
| `verdicts` | each claim, judged: supported, not supported, cannot tell |
| `judging` | all of the above in one call, on a profile's records; which claims were stated after their runs |
| `shown` | verdicts as text and as JSON |
"""
