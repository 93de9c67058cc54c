"""The paper's sentences as testable statements, judged on the records.

| module | contents |
| --- | --- |
| `statements` | experiments/<name>/claims.yaml, read strictly |
| `findings` | one comparison against its bound, of times, sizes and counts |
| `cells` | differences of cells against their bounds, in pairs of one seed |
| `verdicts` | each claim, judged: supported, not supported, inconclusive |
| `shown` | verdicts as text and as JSON |
"""
