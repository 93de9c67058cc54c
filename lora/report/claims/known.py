"""The cells that a claim may name. A claim with a mistyped name would never be judged."""

from collections.abc import Mapping, Sequence

import yaml

from lora.config.options import CONF, describe_group
from lora.errors import UserError
from lora.methods import METHODS
from lora.report.aggregate import START_TITLES
from lora.report.claims.statements import SELECTORS, SLUG, Claim

Known = Mapping[str, Mapping[str, set[str]]]  # experiment -> selector -> the values that a claim may name
SLUGS = "full, bitfit, houlsby-m8, pfeiffer-m16, adapterdrop-m8-d4, lora-qv-r8, of any targets and sizes"


def known_cells() -> Known:
    """Read the cells from the grids of conf/experiment/, without composing a run.

    Methods and tasks are those of the experiment's grids, over all profiles. Any start and any protocol may be named,
    since hyperparameter files set them too.
    """
    known = {}
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        blocks = [block for grid in yaml.safe_load(path.read_bytes())["grid"].values() for block in grid]
        options = {option for block in blocks for option in listed(block["method"])}
        known[path.stem] = {
            "method": {name for name in METHODS if any(o == name or o.startswith(f"{name}_") for o in options)},
            "task": {task for block in blocks if "task" in block for task in listed(block["task"])},
            "start": set(START_TITLES),
            "protocol": set(describe_group("protocol")),
        }
    return known


def listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def check_cells(claims: Sequence[Claim], known: Known) -> None:
    """Raises: UserError: With file and line, if a claim names an experiment, a method, a task, a start or a protocol
    that no grid plans, or a slug that no run can have. A slug without runs is valid: claims are stated before runs.
    """
    for claim in claims:
        if claim.metric is None:
            continue
        sides = [(side, compare.where) for compare in claim.compare for side in (compare.one, compare.other)]
        if claim.tasks != "average":
            sides.append(({"task": claim.tasks}, claim.where))
        for side, where in sides:
            experiments = side.get("experiment", (claim.experiment,))
            for name in experiments:
                if name not in known:
                    raise UserError(f"{where}: there is no experiment {name!r} with cells")
            for slug in side.get("slug", ()):
                if not SLUG.fullmatch(slug):
                    raise UserError(f"{where}: no cell can have slug {slug}; slugs are {SLUGS}")
            for key in set(side) & set(SELECTORS) - {"slug"}:
                values = {value for name in experiments for value in known[name][key]}
                if unknown := [value for value in side[key] if value not in values]:
                    raise UserError(
                        f"{where}: {', '.join(experiments)} plans no cell with {key} {', '.join(unknown)}; it has "
                        f"{', '.join(sorted(values))}"
                    )
