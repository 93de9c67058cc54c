"""The paper's sentences as testable statements: experiments/<name>/claims.yaml, read strictly, each with its line."""

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
MEASURES = (  # of results/efficiency/<device>/summary.json; a comparison is of a ratio
    *("trainable", "checkpoint_bytes", "optimizer_bytes", "saved_activation_bytes", "step_ms", "latency_ms"),
)
TIMES = ("step_ms", "latency_ms")  # measured; the others are counted, and exact
MEASURED = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "lora_merged")
BASES = ("full", "base")  # what the summary gives ratios to: full fine-tuning, and the untouched encoder
COUNTED = ("gpt3", "encoder")  # models: GPT-3 175B by closed form, and those that the records are of
FIRST = ("glue_table2",)  # of the experiments: what the paper is about
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
USUAL = "usual"  # of a setting: what conf/ makes it
# what a slug may be: so that a claim can be stated before a profile has its runs
SLUG = re.compile(r"full|bitfit|(houlsby|pfeiffer)-m\d+|adapterdrop-m\d+-d\d+|lora-(?=\w)q?k?v?o?i?f?-r\d+")
KINDS = ("metric", "measure", "count", "check")
CLAIM_KEYS = ("id", "sentence", "source", "margin", "ours", *KINDS, "tasks", "compare", "paper")


@dataclass(frozen=True)
class Bound:
    """What a difference (in points), a ratio or a count must be: above or below a value, near it, or exactly it."""

    kind: Literal["above", "below", "within", "exactly"]
    value: float
    of: float = 0.0

    @property
    def text(self) -> str:
        return f"within {self.value:g} of {self.of:g}" if self.kind == "within" else f"{self.kind} {self.value:g}"

    @property
    def edges(self) -> tuple[tuple[float, Literal["less", "greater"]], ...]:
        """Where the bound ends, and on which side of that it is broken; nothing for a count that must be exact."""
        if self.kind == "exactly":
            return ()
        if self.kind == "within":
            return (self.of - self.value, "less"), (self.of + self.value, "greater")
        return ((self.value, "less" if self.kind == "above" else "greater"),)

    def holds(self, low: float, high: float) -> bool | None:
        """Whether all of an interval keeps the bound; False where none of it does; None in between."""
        if self.kind == "exactly":
            return low == high == self.value
        if all(low > edge if side == "less" else high < edge for edge, side in self.edges):
            return True
        broken = any(high <= edge if side == "less" else low >= edge for edge, side in self.edges)
        return False if broken else None


@dataclass(frozen=True)
class Compare:
    """One side against another.

    Args:
        one, other: Conditions on cells: selector or setting -> the values that it may have, and `experiment` -> where
            the cells are taken from, if not from the claim's own. Of several values of `start`, each task is taken from
            the first that it has cells of. Of measures, the name of a measured method; of counts, a slug.
    """

    one: Mapping[str, tuple[str, ...]] | str
    other: Mapping[str, tuple[str, ...]] | str
    bound: Bound
    where: str


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper; it holds if every comparison does.

    Args:
        experiment: Whose cells it is about: the folder of its file.
        margin: Why the bounds are what they are.
        ours: It is this project's sentence, not the paper's.
        metric: Of `METRICS`, for differences of cells; else one of `measure`, `count` and `check` is given.
        count: Of `COUNTED`: whose trainable parameters are compared, without the head.
        tasks: `average` over the tasks that both sides have, or each of those named by itself.
        paper: The published cells beside it: rows of the experiment's paper.csv, as texts.
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
        """The sentence, and whose it is where it is not the paper's."""
        return f"{self.sentence} (ours, not the paper's)" if self.ours else self.sentence


def read_claims(folder: Path = ROOT / "experiments") -> list[Claim]:
    """All claims, those of Table 2 first, else by experiment and place in their file.

    Raises: UserError: With file and line, at the first thing that is not as it must be.
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
    """Reads the nodes of one file; every refusal says where."""

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
        """
        Args:
            more: Further keys that are taken, too many to list in a message.
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
