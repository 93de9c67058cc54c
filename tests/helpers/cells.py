"""Records of a cell by hand, and the runs that were planned for it."""

import dataclasses

from lora.records.record import RunRecord

RUN_ID = "minilm.lora-qv-r8.reviews.s1-0123abcd"


def record(run_id=RUN_ID, value=0.8, **changes) -> RunRecord:
    config = {"model": {"name": "minilm"}, "method": {"name": "lora"}, "task": "reviews", "protocol": "ours"}
    config |= {"start": "pretrained", "seed": 1, "data": {}, "train": {"epochs": 1, "lr": 1e-3}}
    config |= {"runtime": {"threads": 1, "device": "cpu"}}
    data = {"is_part": False, "rows": {"train": 10, "validation": 5}, "fingerprint": "f" * 64}
    chosen = {"epoch": 1, "value": value}
    fields = {
        "run_id": run_id,
        "status": "ok",
        "error": None,
        "started_at": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "config": config,
        "params": {"trainable_method": 3, "trainable_head": 2, "total": 10},
        "epochs": [{"epoch": 1, "step": 1, "train_loss": 0.7, "metrics": {"validation": {"accuracy": value}}}],
        "selected": {"metric": "accuracy", "split": "validation", "best": chosen, "last": chosen},
        "cost": {"step_ms": 1.0},
        "provenance": {"device": "x86_64 AVX2", "data": data},
    }
    return RunRecord(**{**fields, **changes})


def runs(values: dict[int, float | None], method="lora", slug="lora-qv-r8", task="reviews", **config):
    """Records of one cell: seed -> the best epoch's metric."""
    made = []
    for seed, value in values.items():
        one = record(f"minilm.{slug}.{task}.s{seed}-0000000{seed}", value)
        given = {**one.config, "method": {"name": method}, "task": task, "seed": seed, **config}
        made.append(dataclasses.replace(one, config=given))
    return made


def plan(seeds, method="lora", slug="lora-qv-r8", task="reviews", **more):
    """Runs of one cell, as `runs_of` takes them."""
    name, targets, rank = [*slug.split("-"), "", "r0"][:3]
    more |= {"targets": targets, "rank": int(rank[1:])} if name == "lora" else {}
    return [
        {"run_id": f"minilm.{slug}.{task}.s{seed}-0000000{seed}", "slug": slug, "method": method}
        | {"task": task, "seed": seed, **more}
        for seed in seeds
    ]
