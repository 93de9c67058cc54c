"""The runs of a report's tables, and the labels of their rows. Uses neither torch nor conf/."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora.config.labels import columns, labels, shared
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.methods.titles import METHOD_TITLES, TARGET_TITLES
from lora.report.titles import LORA_SLUG, START_TITLES, method_label

OWN_TASK, ADHOC, OWN = "own_task", "adhoc", "own"  # a user's task, a user's grid, records that no experiment expects
MAIN = ("glue_table2", OWN_TASK, ADHOC)  # experiments that compare the methods
OF_MACHINES = ("train.precision", "train.kernels", "model.attention")  # settings that may depend on the machine


@dataclass(frozen=True)
class Planned:
    """A run of a table, trained or not.

    Args:
        columns: Its settings (`lora.config.labels.columns`).
        label: The name of its row; "" derives it from the method and the slug.
        varied: The settings in which it differs from the main table's run of its method and task.
    """

    run_id: str
    model: str
    protocol: str
    start: str
    slug: str
    method: str
    task: str
    seed: int
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    label: str = ""
    varied: str = ""

    def __post_init__(self):
        if not self.label:
            object.__setattr__(self, "label", method_label(self.slug, self.method))

    @property
    def place(self) -> tuple:
        """Where the run stands in the tables of any encoder."""
        return self.protocol, self.start, self.slug, self.task, self.seed

    @property
    def cell(self) -> tuple:
        """The run on any machine."""
        settings = tuple((key, value) for key, value in self.columns.items() if key not in OF_MACHINES)
        return self.model, *self.place, settings


def labelled(
    planned: Iterable[Planned],
    main: Sequence[Planned] = (),
    start: bool = True,
    rank: bool = True,
    without: Collection[str] = (),
) -> list[Planned]:
    """The same runs, with labels that distinguish the rows of one method.

    Args:
        main: The runs of the main table, whose settings are not told.
        start: Whether rows can differ in the start; False for a table with a column per start.
        rank: The same for the rank of LoRA.
        without: Settings that tell no rows apart, because the table has a column for them.
    """
    planned = [
        dataclasses.replace(p, columns={k: v for k, v in p.columns.items() if k not in without}) for p in planned
    ]

    def alike(p: Any) -> tuple:
        return p.slug if rank else p.slug.rpartition("-r")[0], p.method, p.start

    words, told = labels(planned, main, alike), []
    usual = shared(main, lambda p: (p.model, p.protocol, p.method, p.task))
    for p in planned:
        label = ", ".join(filter(None, (method_label(p.slug, p.method), words[p.run_id])))
        there = usual.get((p.model, p.protocol, p.method, p.task), {})
        told.append(dataclasses.replace(p, label=label, varied=varied(p, there)))
    return with_starts(told) if start else told


def varied(p: Planned, usual: Mapping[str, str]) -> str:
    """`start=mnli; start_seed=6`. `usual`: the settings of the main table's runs of the method and task."""
    own = {key: value for key, value in p.columns.items() if usual.get(key, value) != value}
    if p.start != "pretrained":
        seed = p.columns.get("start_seed", "null")
        own = {"start": p.start} | ({} if seed == "null" else {"start_seed": seed}) | own
    return "; ".join(f"{key}={value}" for key, value in own.items())


def with_starts(planned: Sequence[Planned]) -> list[Planned]:
    """The same runs; where a task has several starts in a row, the label of each run names its own."""
    starts: dict[tuple, set[str]] = {}
    for p in planned:
        starts.setdefault((p.model, p.protocol, p.label, p.task), set()).add(p.start)
    several = {key[:3] for key, found in starts.items() if len(found) > 1}
    return [
        dataclasses.replace(p, label=f"{p.label}, from {START_TITLES[p.start]}")
        if (p.model, p.protocol, p.label) in several
        else p
        for p in planned
    ]


def planned_of(config: RunConfig, dropped: Collection[str] = ()) -> Planned:
    """The run of a configuration. `dropped`: settings that do not count."""
    settings = {key: value for key, value in columns(config).items() if key not in dropped}
    method, name = config.method, config.model.name
    place = (config.run_id, name, config.protocol, config.start, method.slug, method.name, config.task, config.seed)
    return Planned(*place, settings)


def in_table_order(planned: Iterable[Planned]) -> list[Planned]:
    """Sort runs by method and task as the tables list them, independently of the order of training."""
    methods, tasks = list(METHOD_TITLES), list(TASKS)

    def place(p: Planned) -> tuple:
        lora = LORA_SLUG.fullmatch(p.slug)
        size = (len(lora[1]), [*TARGET_TITLES].index(lora[1][0]), lora[1], int(lora[2])) if lora else ()
        return p.model, methods.index(p.method), p.protocol, size, p.slug, p.label, tasks.index(p.task), p.seed

    return sorted(planned, key=place)
