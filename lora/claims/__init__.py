"""The paper's sentences, stated as what can be tested, and judged on the records. `python -m lora.claims PROFILE`.

| module | what it holds |
| --- | --- |
| `statements` | experiments/<name>/claims.yaml, read strictly |
| `verdicts` | each claim on what was measured: supported, not supported, cannot tell |
| `shown` | verdicts as text and as JSON |
"""
