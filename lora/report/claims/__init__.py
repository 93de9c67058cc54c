"""The paper's sentences as testable statements, judged on the records.

| module | contents |
| --- | --- |
| `statements` | experiments/<name>/claims.yaml, read strictly |
| `findings` | one comparison against its bound: of cells, times, sizes and counts |
| `verdicts` | each claim, judged: supported, contradicted, undecided |
| `shown` | verdicts as text and as JSON |
| `headlines` | the README's table of findings |
"""
