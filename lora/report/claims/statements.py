"""The paper's sentences as testable statements: a strict reader of experiments/<name>/claims.yaml that keeps lines."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from lora.config.run import DataConfig, TrainConfig
from lora.errors import UserError, first_line
from lora.files import ROOT
from lora.methods import METHODS
from lora.records.analysis import CHECKS

METRICS = ("best", "last")  # the headline metric of each run's best or last epoch, in points
MEASURES = (  # in results/efficiency/<device>/summary.json; compared as ratios
    *("trainable", "checkpoint_bytes", "optimizer_bytes", "saved_activation_bytes", "step_ms", "latency_ms"),
)
TIMES = ("step_ms", "latency_ms")  # measured; the others are exact counts
MEASURED = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "lora_merged")
BASES = ("full", "base")  # denominators of the summary's ratios: full fine-tuning, and the untouched encoder
COUNTED = ("gpt3", "encoder")  # models: GPT-3 175B by closed form, and the encoders of the records
FIRST = ("glue_table2",)  # experiments whose claims come first: the subject of the paper
SELECTORS = ("method", "slug", "task", "start", "protocol")
SECTIONS: dict[str, list[type]] = {
    "method": [method.config for method in METHODS.values()],
    "data": [DataConfig],
    "train": [TrainConfig],
}
SETTINGS = tuple(  # a side may name these too
    dict.fromkeys(
        f"{name}.{field.name}" for name, kinds in SECTIONS.items() for kind in kinds for field in fields(kind)
    )
)
USUAL = "usual"  # stands for a setting's value in conf/
# the valid slugs, so that a claim can be stated before a profile has its runs
SLUG = re.compile(r"full|bitfit|(houlsby|pfeiffer)-m\d+|adapterdrop-m\d+-d\d+|lora-(?=\w)q?k?v?o?i?f?-r\d+")
KINDS = ("metric", "measure", "count", "check")
CLAIM_KEYS = ("id", "sentence", "source", "margin", "ours", *KINDS, "tasks", "compare", "paper")


@dataclass(frozen=True)
class Bound:
    """The bound of a difference (in points), a ratio or a count: above a value, below it, near it, or exactly it."""

    kind: Literal["above", "below", "within", "exactly"]
    value: float
    of: float = 0.0

    @property
    def text(self) -> str:
        return f"within {self.value:g} of {self.of:g}" if self.kind == "within" else f"{self.kind} {self.value:g}"

    @property
    def edges(self) -> tuple[tuple[float, Literal["less", "greater"]], ...]:
        """The ends of the bound, each with the side on which the bound is broken; none for `exactly`."""
        if self.kind == "exactly":
            return ()
        if self.kind == "within":
            return (self.of - self.value, "less"), (self.of + self.value, "greater")
        return ((self.value, "less" if self.kind == "above" else "greater"),)

    def holds(self, low: float, high: float) -> bool | None:
        """True if all of an interval keeps the bound, False if none of it does, None in between."""
        if self.kind == "exactly":
            return low == high == self.value
        if all(low > edge if side == "less" else high < edge for edge, side in self.edges):
            return True
        broken = any(high <= edge if side == "less" else low >= edge for edge, side in self.edges)
        return False if broken else None


@dataclass(frozen=True)
class Compare:
    """A comparison of two sides with its bound.

    Args:
        one, other: For metrics, conditions on cells: selector or setting -> the permitted values, and `experiment` ->
            the experiments that the cells are taken from, by default the claim's own. With several values of `start`,
            each task uses the first one that it has cells of. For measures, a measured method; for counts, a slug.
    """

    one: Mapping[str, tuple[str, ...]] | str
    other: Mapping[str, tuple[str, ...]] | str
    bound: Bound
    where: str


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper. It holds if every comparison does.

    Args:
        experiment: The experiment whose cells it is about: the folder of its file.
        margin: The reason for the bounds.
        ours: Whether the sentence is this project's, not the paper's.
        metric: One of `METRICS`, for differences of cells; None if `measure`, `count` or `check` is given.
        count: One of `COUNTED`: the models whose trainable parameters are compared, without the head.
        tasks: `average` over the tasks that both sides have, or the tasks to judge one by one.
        paper: The corresponding published cells: rows of the experiment's paper.csv, as texts.
        where: File and line.
    """

    id: str
    experiment: str
    sentence: str
    source: str
    margin: str
    ours: bool
    metric: str | None
    measure: str | None
    count: str | None
    check: str | None
    tasks: str | tuple[str, ...]
    compare: tuple[Compare, ...]
    paper: tuple[Mapping[str, str], ...]
    where: str

    @property
    def headline(self) -> str:
        """The sentence, marked if it is ours."""
        return f"{self.sentence} (ours, not the paper's)" if self.ours else self.sentence


def read_claims(folder: Path = ROOT / "experiments") -> list[Claim]:
    """All claims: those of Table 2 first, the others by experiment and position in their file.

    Raises: UserError: With file and line, at the first error.
    """
    paths = sorted(folder.glob("*/claims.yaml"), key=lambda path: (path.parent.name not in FIRST, path))
    claims = [claim for path in paths for claim in read_file(path)]
    seen: dict[str, Claim] = {}
    for claim in claims:
        if claim.id in seen:
            raise UserError(f"{claim.where}: id {claim.id!r} is taken by {seen[claim.id].where}")
        seen[claim.id] = claim
    return claims


def read_file(path: Path) -> list[Claim]:
    name = f"{path.parent.name}/{path.name}"
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{name}{line}: not readable as YAML: {reason}") from error
    reader = Reader(name, path.parent)
    return [reader.claim(node) for node in reader.items(root, "the file")]


@dataclass(frozen=True)
class Reader:
    """Reads the nodes of one file. Every error states file and line."""

    name: str
    folder: Path

    def claim(self, node: yaml.Node) -> Claim:
        fields = self.fields(node, "a claim", CLAIM_KEYS, ("id", "sentence", "source", "margin"))
        ours = "ours" in fields and self.choice(fields["ours"], "ours", ("true", "false")) == "true"
        if not ours and "paper" not in fields:
            self.refuse(node, "a claim lacks paper, which only ours: true does without")
        given = [key for key in KINDS if key in fields]
        if len(given) != 1:
            self.refuse(node, f"a claim has one of {', '.join(KINDS)}, found {', '.join(given) or 'none'}")
        known = {"metric": METRICS, "measure": MEASURES, "count": COUNTED, "check": tuple(CHECKS)}[given[0]]
        tested = self.choice(fields[given[0]], given[0], known)
        if (given[0] == "check") == ("compare" in fields):
            self.refuse(node, "a claim with a metric, a measure or a count has compare, one with a check has none")
        compare = self.items(fields["compare"], "compare") if "compare" in fields else ()
        paper = self.items(fields["paper"], "paper") if "paper" in fields else ()
        return Claim(
            id=self.text(fields["id"]),
            experiment=self.folder.name,
            sentence=self.text(fields["sentence"]),
            source=self.text(fields["source"]),
            margin=self.text(fields["margin"]),
            ours=ours,
            **{key: tested if key == given[0] else None for key in KINDS},
            tasks=self.tasks(fields.get("tasks")),
            compare=tuple(self.comparison(entry, given[0], tested) for entry in compare),
            paper=tuple(self.published(entry) for entry in paper),
            where=self.where(node),
        )

    def comparison(self, node: yaml.Node, kind: str, tested: str) -> Compare:
        fields = self.fields(node, "a comparison", ("one", "other", "above", "below", "within", "of"), ("one", "other"))
        bounds = [key for key in ("above", "below", "within") if key in fields]
        if len(bounds) != 1:
            self.refuse(node, f"a comparison has one of above, below and within, found {', '.join(bounds) or 'none'}")
        bound = Bound(bounds[0], self.number(fields[bounds[0]]), self.number(fields["of"]) if "of" in fields else 0.0)
        sides = [fields["one"], fields["other"]]
        if kind == "measure":
            bases = tuple(dict.fromkeys((*BASES, *MEASURED))) if tested in TIMES else BASES
            one, other = self.choice(sides[0], "method", MEASURED), self.choice(sides[1], "method", bases)
            return Compare(one, other, bound, self.where(node))
        if kind == "count":
            return Compare(*(self.slug(side, tested) for side in sides), bound, self.where(node))
        return Compare(*map(self.selection, sides), bound, self.where(node))

    def selection(self, node: yaml.Node) -> dict[str, tuple[str, ...]]:
        fields = self.fields(node, "a side", (*SELECTORS, "experiment"), (), SETTINGS)
        if not set(fields) - {"experiment"}:
            self.refuse(node, "a side names its cells, by method or slug")
        return {
            key: tuple(map(self.text, value.value)) if isinstance(value, yaml.SequenceNode) else (self.text(value),)
            for key, value in fields.items()
        }

    def slug(self, node: yaml.Node, model: str) -> str:
        text = self.text(node)
        if not SLUG.fullmatch(text) or (model == "gpt3" and not re.fullmatch(r"full|lora-[qkvo]+-r\d+", text)):
            rule = "full or LoRA on q, k, v, o, such as lora-qv-r4" if model == "gpt3" else "such as lora-qv-r8 or full"
            self.refuse(node, f"a count is of a method, {rule}; found {text!r}")
        return text

    def tasks(self, node: yaml.Node | None) -> str | tuple[str, ...]:
        if node is None:
            return "average"
        if isinstance(node, yaml.SequenceNode):
            return tuple(map(self.text, node.value))
        return self.choice(node, "tasks", ("average",))

    def published(self, node: yaml.Node) -> dict[str, str]:
        """The row of the experiment's paper.csv that the node names."""
        try:
            found = pd.read_csv(self.folder / "paper.csv", dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.where(node)}: paper.csv beside it is not readable: {first_line(error)}") from error
        fields = self.fields(node, "a published cell", list(found.columns), ())
        wanted = {key: self.text(value) for key, value in fields.items()}
        for key, value in wanted.items():
            found = found[found[key] == value]
        if len(found) != 1:
            named = ", ".join(wanted.values())
            self.refuse(node, f"the published cell {named} must be one row of paper.csv beside it, found {len(found)}")
        return found.iloc[0].to_dict()

    def fields(
        self, node: yaml.Node, what: str, known: Sequence[str], needed: Sequence[str], more: Sequence[str] = ()
    ) -> dict[str, yaml.Node]:
        """The values of a mapping by key.

        Args:
            more: Further accepted keys, too many to list in a message.
        """
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, f"{what} is a mapping with the keys {', '.join(known)}")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value not in (*known, *more) or key.value in found:
                rule = "is there twice" if key.value in found else f"is none of {', '.join(known)}"
                self.refuse(key, f"key {key.value!r} of {what} {rule}")
            found[key.value] = value
        missing = [key for key in needed if key not in found]
        if missing:
            self.refuse(node, f"{what} lacks {', '.join(missing)}")
        return found

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.refuse(node, f"{what} must be a list that is not empty")
        return node.value

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            self.refuse(node, "expected a text")
        return " ".join(node.value.split())

    def number(self, node: yaml.Node) -> float:
        try:
            return float(self.text(node))
        except ValueError:
            return self.refuse(node, f"expected a number, found {node.value!r}")

    def choice(self, node: yaml.Node, what: str, known: Sequence[str]) -> str:
        text = self.text(node)
        if text not in known:
            self.refuse(node, f"unknown {what} {text!r}; it is one of {', '.join(known)}")
        return text

    def where(self, node: yaml.Node | None) -> str:
        return self.name if node is None else f"{self.name}:{node.start_mark.line + 1}"

    def refuse(self, node: yaml.Node | None, rule: str) -> Any:
        raise UserError(f"{self.where(node)}: {rule}")
