"""The experiments of a report, in reading order. A new one has its entry here, and its function in `catalogue`."""

from dataclasses import dataclass

from lora.config.plan import ADHOC, COMPARING, LEARNING_RATE, OWN_TASK, ROWS
from lora.config.run import DRAW, EPOCHS, SIZE
from lora.files import ROOT

FOLDERS = ROOT / "experiments"  # their pages, claims and the paper's cells
OWN = "own"  # in place of an experiment: records that none expects
LAYERS = "layers"
MAIN = (*COMPARING, ADHOC)  # those that compare the methods
REPEATED = "repeated"  # the folder of runs trained again, below that of the records


@dataclass(frozen=True)
class Experiment:
    """What a report knows of an experiment, besides the function that makes its tables.

    Args:
        name: Of its file in conf/experiment/, if it has runs of its own, and of its folder in experiments/.
        title: Of its table.
        tables: The tables on its page, experiments/<name>/README.md; its own is the first.
        unnamed: Settings that name none of its rows where all seeds of a cell agree: each cell has its own value, or
            the table a column for each.
        columns: Settings that tell its cells apart, and name none of its rows: its table has a line for each value.
        rate_score: The score that chose a rate for each of its methods on each task (`lora.report.rates`); None: a
            method has one rate for all tasks.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    unnamed: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rate_score: str | None = None


EXPERIMENTS = {
    one.name: one
    for one in (
        Experiment("glue_table2", "Table 2: methods by tasks", ("table2",)),
        Experiment(OWN_TASK, "Methods by tasks", ("table2",)),
        Experiment(ADHOC, "Methods by tasks", ("table2",)),
        Experiment(
            LAYERS,
            "Which layers to adapt, each arm at its own rate on each task",
            (LAYERS, "head_rate", LEARNING_RATE),
            unnamed=("train.lr", "train.head_lr"),
            rate_score="split_half",
        ),
        Experiment("head_rate", "The head's learning rate apart from the body's", ("head_rate",)),
        Experiment("lora_targets", "Table 5: which projections to adapt, at one number of parameters", ("table5",)),
        Experiment("lora_ranks", "Table 6: how large the rank must be", ("table6", REPEATED)),
        Experiment(
            "successors",
            "LoRA's successors, each at a learning rate of its own",
            ("successors",),
            unnamed=("train.lr",),
        ),
        Experiment("mnli_start", "What an MNLI start gives (section 5.2)", ("mnli_start",), ("start",)),
        Experiment("length", "How long to train: one length and twice that", ("length",)),
        Experiment(
            ROWS,
            "How many labels: scores by the number of train rows",
            (ROWS,),
            unnamed=(EPOCHS, "train.lr", DRAW),
            columns=(SIZE,),
            rate_score="best",
        ),
        Experiment(LEARNING_RATE, "Learning rates tried, on seeds outside the tables of results", (LEARNING_RATE,)),
        Experiment(OWN, "Other runs in this folder", (OWN,)),
        # without a grid: from adapters of other runs, or all of a profile
        Experiment("subspaces", "Table 7: amplification by the update", ("table7",)),
        Experiment("efficiency", "Swaps by subtracting BA and adding B'A', without a copy of W0", ("subtraction",)),
        Experiment("base_size", "Encoders of base size", (LEARNING_RATE, "table2", "pairs")),
    )
}
