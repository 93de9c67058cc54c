"""Hydra's messages in this project's form: setting, rule, value found."""

import re

from lora.config.options import CONF, describe_group, unknown_key


def explain(error: Exception) -> str:
    """Hydra's message in this project's form. Any other message is put on one line."""
    missing = re.search(r"Could not find '(\w+(?:/\w+)*)/([^'/]+)'", str(error))
    unknown = re.search(r"Could not override '([\w.]+)'|full_key: ([\w.]+)", str(error))
    if missing is None and unknown is not None:
        return unknown_key(unknown[1] or unknown[2])
    if missing is None or missing[1].startswith("hydra/"):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    group, option = missing.groups()
    return f"{group} must be one of {', '.join(describe_group(group))}, got {option!r}"


def no_rows(protocol: str, model: str, method: str) -> str:
    """The message for options of these groups without a file in conf/hparams/<protocol>/."""
    files = [(path.parent.name, path.stem) for path in sorted((CONF / "hparams").glob("*/*.yaml"))]
    option, start = f"{model}_{method}", f"{model}_"
    having = [name for name, stem in files if stem == option]
    if having:
        return (
            f"protocol must be one that has rows for {option}, the model and the method ({', '.join(having)}), got "
            f"{protocol!r}; that one has rows for {', '.join(describe_group(f'hparams/{protocol}'))}"
        )
    methods = dict.fromkeys(stem.removeprefix(start) for _, stem in files if stem.startswith(start))
    return (
        f"method must be one that a protocol has rows for with model={model} ({', '.join(sorted(methods))}), got "
        f"{method!r}"
    )
