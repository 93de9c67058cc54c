"""Four small tasks made from the embedded texts. None of them is a GLUE task, and none has a GLUE task's name.

    reviews    one sentence: is the mean of its 20 ratings negative or positive? (|mean| >= 0.5)
    ratings    one sentence: predict that mean, -4 to 4
    scrambled  one sentence: is it as written, or were some neighbouring words swapped?
    clauses    a question and a clause of a privacy policy: does the clause answer the question?

The first three share one split of the sentences, so no sentence is trained on in one task and tested in another.
Only short texts are used, because a run's time grows with their length. Every random draw is named by its purpose and
is the same on every machine.
"""

import functools
import json
import re
from collections.abc import Sequence
from itertools import pairwise

from lora.data.embedded import embedded_file
from lora.errors import UserError
from lora.rng import shuffled

SENTENCE_WORDS = 16  # at most; keeps 4,400 of the 10,600 sentences, with 11 words on average instead of 19
PAIR_WORDS = 40  # at most, for the whole pair; keeps two thirds of the pairs, with 29 words on average instead of 35
DEV_SENTENCES = 450  # leaves at least 359 dev rows in each task; evaluating 900 took a third of a LoRA run of mini
CLEAR_RATING = 0.5  # sentences between -0.5 and 0.5 are neither negative nor positive
DEV_SHARE = 0.32  # dev's share of questions and of clauses: dev gets about 0.1 of all pairs, and train 0.47
SWAPS = 2  # per scrambled sentence


def embedded_rows(task: str, split: str) -> dict[str, list]:
    """The columns of one split, `label` included.

    Raises: UserError: If the texts were not fetched.
    """
    return build(task)[split]


@functools.cache
def build(task: str) -> dict[str, dict[str, list]]:
    """Both splits of a task, built once per process."""
    return {"reviews": reviews, "ratings": ratings, "scrambled": scrambled, "clauses": clauses}[task]()


def reviews() -> dict[str, dict[str, list]]:
    clear = [(text, int(mean > 0), dev) for text, mean, dev in sentences() if abs(mean) >= CLEAR_RATING]
    return by_split(clear)


def ratings() -> dict[str, dict[str, list]]:
    return by_split(sentences())


def scrambled() -> dict[str, dict[str, list]]:
    """Each sentence once, half of them scrambled. A sentence that cannot be scrambled is not used."""
    rows = []
    for wanted in (False, True):
        pairs = [(text, scramble(text)) for text, _, dev in sentences() if dev == wanted]
        pairs = [(text, other) for text, other in pairs if other is not None]
        intact = set(shuffled(len(pairs), "scrambled", "dev" if wanted else "train")[: len(pairs) // 2].tolist())
        rows += [(text if i in intact else other, int(i in intact), wanted) for i, (text, other) in enumerate(pairs)]
    return by_split(rows)


def scramble(text: str) -> str | None:
    """Swap a word with its right neighbour at `SWAPS` places, drawn from a generator named by the text.

    Only bare words move, so that no full stop or comma ends up inside a sentence. The first word stays, because its
    capital letter would give the swap away. Places do not overlap, and two equal neighbours are not a place.

    Returns: The scrambled text; None if it has too few places.
    """
    words = text.split()
    movable = [i for i in range(1, len(words)) if re.fullmatch(r"[A-Za-z]+(['-][A-Za-z]+)*", words[i])]
    pairs = [(i, j) for i, j in pairwise(movable) if j == i + 1 and words[i].lower() != words[j].lower()]
    taken: set[int] = set()
    for draw in shuffled(len(pairs), "scramble", text):
        place = pairs[draw][0]
        if taken.isdisjoint({place, place + 1}):
            taken |= {place, place + 1}
            words[place], words[place + 1] = words[place + 1], words[place]
            if len(taken) == 2 * SWAPS:
                return " ".join(words)
    return None


def clauses() -> dict[str, dict[str, list]]:
    """Pairs whose question and clause both belong to dev, or both to train. Mixed pairs are not used."""
    path = embedded_file("clauses.jsonl")
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]
    pairs = [pair for pair in pairs if len(f"{pair['question']} {pair['context']}".split()) <= PAIR_WORDS]
    dev_questions = dev_group([pair["question"] for pair in pairs], "questions")
    dev_clauses = dev_group([pair["context"] for pair in pairs], "clauses")
    columns = {split: {"question": [], "clause": [], "label": []} for split in ("train", "validation")}
    for pair in pairs:
        sides = plain(pair["question"]) in dev_questions, plain(pair["context"]) in dev_clauses
        if sides[0] == sides[1]:
            rows = columns["validation" if sides[0] else "train"]
            rows["question"].append(" ".join(pair["question"].split()))
            rows["clause"].append(" ".join(pair["context"].split()))
            rows["label"].append({"False": 0, "True": 1}[pair["answer"]])
    return columns


def dev_group(texts: Sequence[str], name: str) -> set[str]:
    """The plain texts that belong to dev: a fixed share of the distinct ones."""
    different = list(dict.fromkeys(map(plain, texts)))
    order = shuffled(len(different), "clauses", name)
    return {different[i] for i in order[: round(DEV_SHARE * len(different))]}


@functools.cache
def sentences() -> tuple[tuple[str, float, bool], ...]:
    """Every short review sentence once: text, mean rating, and whether it belongs to dev.

    Of sentences with equal plain texts, only the first is kept.
    """
    path = embedded_file("reviews.txt")
    kept: dict[str, tuple[str, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").strip().split("\n"), start=1):
        cells = line.split("\t")
        if len(cells) != 3:
            raise UserError(f"{path}:{number}: {len(cells)} columns, expected 3 (number, mean rating, sentence)")
        if len(cells[2].split()) <= SENTENCE_WORDS:
            kept.setdefault(plain(cells[2]), (cells[2].strip(), float(cells[1])))
    dev = set(shuffled(len(kept), "sentences")[:DEV_SENTENCES].tolist())
    return tuple((text, mean, index in dev) for index, (text, mean) in enumerate(kept.values()))


def plain(text: str) -> str:
    """The text in lower case, letters and digits only. Texts with equal plain texts count as the same."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def by_split(rows: Sequence[tuple[str, float, bool]]) -> dict[str, dict[str, list]]:
    """Split -> columns, from rows of (sentence, label, whether it belongs to dev)."""
    columns = {"train": {"sentence": [], "label": []}, "validation": {"sentence": [], "label": []}}
    for text, label, for_dev in rows:
        part = columns["validation" if for_dev else "train"]
        part["sentence"].append(text)
        part["label"].append(label)
    return columns
