"""Small GLUE folders in the official TSV layout, with random sentences of the tiny tokenizers' words."""

from pathlib import Path

import tiny

HEADERS = {
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
}


def write(folder: Path, rows: int = 40, dev_rows: int = 20) -> Path:
    """Write CoLA, MRPC, STS-B, RTE and MNLI. The label depends on the first word, so there is something to learn."""
    for name, line in (("CoLA", cola), ("MRPC", mrpc), ("STS-B", stsb), ("RTE", rte)):
        write_split(folder / name / "train.tsv", HEADERS.get(name), line, rows, seed=1)
        write_split(folder / name / "dev.tsv", HEADERS.get(name), line, dev_rows, seed=2)
    write_split(folder / "MNLI" / "train.tsv", HEADERS["MNLI"], mnli, rows, seed=1)
    for seed, split in ((2, "matched"), (3, "mismatched")):
        write_split(folder / "MNLI" / f"dev_{split}.tsv", HEADERS["MNLI"], mnli, dev_rows, seed)
    return folder


def write_split(path: Path, header: str | None, line, rows: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    firsts, seconds = tiny.sentences(rows, seed), tiny.sentences(rows, seed + 100)
    lines = [line(i, first, second) for i, (first, second) in enumerate(zip(firsts, seconds, strict=True))]
    path.write_text("\n".join([*([header] if header else []), *lines]) + "\n")


def first_word(sentence: str) -> int:
    return tiny.WORDS.index(sentence.split()[0])


def cola(i: int, first: str, second: str) -> str:
    return f"src\t{first_word(first) % 2}\t\t{first}"


def mrpc(i: int, first: str, second: str) -> str:
    return f"{first_word(first) % 2}\t{i}\t{i}\t{first}\t{second}"


def stsb(i: int, first: str, second: str) -> str:
    return f"{i}\tg\tf\ty\t{i}\ta\tb\t{first}\t{second}\t{first_word(first) / 4:.3f}"


def rte(i: int, first: str, second: str) -> str:
    return f"{i}\t{first}\t{second}\t{('entailment', 'not_entailment')[first_word(first) % 2]}"


def mnli(i: int, first: str, second: str) -> str:
    label = ("entailment", "neutral", "contradiction")[first_word(first) % 3]
    return "\t".join([str(i), "p", "q", "g", "b", "b", "s", "s", first, second, label, label])
