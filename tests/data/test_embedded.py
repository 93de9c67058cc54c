import csv
import json

import pytest

from lora.data import embedded
from lora.data.read import read
from lora.data.tasks import TASKS

EMBEDDED = [name for name, task in TASKS.items() if task.family == "embedded"]
# A change here makes earlier records of the embedded tasks incomparable: it needs a reason and new reference runs.
FINGERPRINTS = {
    "reviews": "0a4a02637f996895ea447c2bed0543b80ed35c8fff3eccbc2fcbe3ab2b083ef9",
    "ratings": "259329071ac8309d03a6a66f089d2880611ade50b99f99e3e60b0ae76c5db100",
    "clauses": "7636ec9d9dd37ccc00c2628351cab1a3d846599c9337240828b5f882276f01f2",
    "scrambled": "aebda0319910663cc852b6ae956ef56c3df46d4a402ffd2e7c744a9452106d58",
}


@pytest.fixture(scope="module")
def data():
    return {name: read(TASKS[name], "embedded") for name in EMBEDDED}


def plain(text: str) -> str:
    """An independent reading of "the same text": letters and digits, lower case."""
    return "".join(character for character in text.lower() if character.isalnum())


def ratings_by_text() -> dict[str, float]:
    with open(embedded.embedded_file("reviews.txt"), newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 10605
    return {text.strip(): float(mean) for _, mean, text in reversed(rows)}


@pytest.mark.parametrize("name", EMBEDDED)
def test_sizes_and_rows_stay_as_they_are(name, data):
    task, read_data = TASKS[name], data[name]
    assert read_data.rows == task.official_rows and not read_data.is_part and read_data.skipped == {}
    assert read_data.fingerprint == FINGERPRINTS[name]


def test_no_sentence_is_trained_on_in_one_task_and_tested_in_another(data):
    sides = {"train": set(), "validation": set()}
    # Keyed by sorted words, so that a scrambled sentence is found too.
    written = {" ".join(sorted(text.split())): plain(text) for text in ratings_by_text()}
    assert len(written) > 10600
    for name in ("reviews", "ratings", "scrambled"):
        for split, rows in data[name].splits.items():
            texts = rows["sentence"]
            assert len(texts) == len(set(map(plain, texts)))
            sides[split] |= {written[" ".join(sorted(text.split()))] for text in texts}
    assert len(sides["train"]) == 3989 and len(sides["validation"]) == 450
    assert not sides["train"] & sides["validation"]


def test_reviews_and_ratings_say_what_the_raters_said(data):
    means, seen = ratings_by_text(), 0
    for rows in data["ratings"].splits.values():
        for text, label in zip(rows["sentence"], rows["label"], strict=True):
            assert label == pytest.approx(means[text], abs=1e-6)
            seen += 1
    assert seen == 4439
    short = {text: mean for text, mean in means.items() if len(text.split()) <= 16}
    for rows in data["reviews"].splits.values():
        for text, label in zip(rows["sentence"], rows["label"], strict=True):
            assert abs(means[text]) >= 0.5 and label == (means[text] > 0)
            seen += 1
    assert seen == 4439 + sum(abs(mean) >= 0.5 for mean in short.values())


def test_no_question_and_no_clause_is_on_both_sides(data):
    with open(embedded.embedded_file("clauses.jsonl"), encoding="utf-8") as file:
        rows = map(json.loads, file)
        source = {(plain(row["question"]), plain(row["context"]), row["answer"] == "True") for row in rows}
    train, dev = data["clauses"].splits["train"], data["clauses"].splits["validation"]
    pairs = [pair for rows in (train, dev) for pair in zip(rows["question"], rows["clause"], strict=True)]
    assert all(len(" ".join(pair).split()) <= 40 for pair in pairs)
    for column in ("question", "clause"):
        sides = [set(map(plain, rows[column][:])) for rows in (train, dev)]
        assert min(map(len, sides)) > 100
        assert not sides[0] & sides[1]
    for rows in (train, dev):
        made = zip(rows["question"], rows["clause"], rows["label"], strict=True)
        assert {(plain(q), plain(c), bool(label)) for q, c, label in made} <= source
