"""The paper's sentences as testable statements, judged on the records.

| module | contents |
| --- | --- |
| `statements` | experiments/<name>/claims.yaml, read strictly |
| `sides` | the cells that a side of a comparison names, and their labels |
| `findings` | one comparison against its bound; counts, times and sizes; Holm's correction within a claim |
| `verdicts` | each claim, judged: supported, not supported, inconclusive |
| `shown` | verdicts as text and as JSON |
"""
