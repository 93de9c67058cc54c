"""The pages: their generated tables hold for the committed records, and everything that they refer to exists.

The intervals are computed from the frame with SciPy, independently of lora.report.
"""

import re

import pandas as pd
import pytest
from scipy import stats

from lora.cli import COMMANDS
from lora.config.compose import describe_group
from lora.files import ROOT
from lora.records.record import load_frame, load_records

REFERENCE = ROOT / "results" / "reference"
ROWS = {"Full fine-tuning": "full", "BitFit": "bitfit", "Houlsby adapters (m8)": "houlsby-m8"}
ROWS |= {"Pfeiffer adapters (m16)": "pfeiffer-m16", "LoRA (qv, r8)": "lora-qv-r8", "LoRA (qkvo, r4)": "lora-qkvo-r4"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "THIRD_PARTY.md", ROOT / "conf" / "README.md"]
PAGES += [ROOT / "lora" / "adapters" / "README.md", *sorted((ROOT / "experiments").rglob("*.md"))]
TASKS = {"SST-2": "sst2", "MRPC": "mrpc", "CoLA": "cola", "RTE": "rte", "STS-B": "stsb"}


@pytest.mark.parametrize(
    ("profile", "table", "most", "tasks"),
    [
        ("small", "pairs_part", 0, [*TASKS.values()]),
        ("long", "pairs", 5, ["mrpc", "cola", "stsb"]),
        ("base", "pairs", 0, ["cola"]),
    ],
)
def test_every_pair_of_methods_has_scipys_interval_of_its_seeds(profile, table, most, tasks):
    """Of every row and task of Table 2, and of the average over tasks within each seed.

    Args:
        most: The highest of the seeds that chose the learning rates.
    """
    runs = load_frame(load_records(REFERENCE / profile)[0])
    runs = runs[(runs["seed"] > most) & (runs["start"] == "pretrained")]
    runs = runs[runs["epochs"] == runs["epochs"].mode().item()]

    def scores(row: str) -> pd.DataFrame:
        of_row = runs[(runs["slug"] == ROWS[row]) & runs["task"].isin(tasks)]
        return 100 * of_row.drop_duplicates(["seed", "task"]).pivot(index="seed", columns="task", values="best")

    shown = pd.read_csv(REFERENCE / profile / "tables" / f"{table}.csv", dtype=str, keep_default_na=False)
    assert len(shown) >= 1
    for row in shown.to_dict("records"):
        change = scores(row["Method"]) - scores(row["Minus"])
        title = row["Task"].partition(" (")[0]
        values = (change[tasks].dropna().mean(axis=1) if title == "Avg." else change[TASKS[title]].dropna()).round(9)
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row["Difference"] == f"{values.mean():+.1f}", row
        assert row["95% over seeds"] == f"{low:+.1f} to {high:+.1f}", row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_exists(page):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    links += re.findall(r'<(?:img|source) [^>]*?(?:src|srcset)="([^"]+)"', text)
    places = re.findall(r"`((?:lora|conf|experiments|tests|notebooks)/[\w./-]+)`", text)
    broken = [link for link in links if link and not (page.parent / link).exists()]
    broken += [place for place in places if not (ROOT / place).exists()]
    assert not broken
    anchored = [link.split("#") for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", text) if "://" not in link]
    targets = [((page.parent / path if path else page).read_text(), anchor) for path, anchor in anchored]
    assert not [anchor for target, anchor in targets if anchor not in anchors(target)]


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_commands_targets_and_options_on_the_pages_exist():
    code = "\n".join("\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)) for page in PAGES)
    commands = re.findall(r"-m lora ([a-z]+(?: [a-z]+)?)(?![=a-z])", code)
    assert len(commands) > 15
    assert not [words for words in commands if not {words, words.split()[0]} & set(COMMANDS)]
    targets = set(re.findall(r"(?<!git )\bmake ([a-z][a-z-]+)", code))
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 8 and targets <= set(rules)
    for group in ("experiment", "profile", "launcher", "protocol"):
        named = re.findall(rf"\b{group}=([\w,]+)", code, re.IGNORECASE)  # PROFILE= for make, profile= for python
        options = {option for options in named for option in options.split(",")}
        assert options and options - {"NAME", "null"} <= set(describe_group(group))


def test_the_page_of_settings_lists_every_option():
    page = (ROOT / "conf" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", page, re.MULTILINE))
    for group in ("profile", "experiment", "protocol", "model", "launcher"):
        assert set(re.findall(r"`(\w+)`", rows[group])) == set(describe_group(group))
    assert set(re.findall(r"`(\w+)`", rows["method"])) <= set(describe_group("method"))
    assert set(describe_group("experiment")) <= set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
