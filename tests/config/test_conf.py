"""conf/ as a whole: its combinations are valid, all others are refused, and its values are those of the sources."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from lora.config.compose import CONF, compose_config, compose_run, describe_group
from lora.config.run import ModelConfig, RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.models.load import model_of_size
from lora.sweep.request import select_runs

FILES = sorted((CONF / "hparams").glob("*/*.yaml"))


def config_of(protocol: str, model: str, method: str, profile: str = "paper") -> list[str]:
    return [f"profile={profile}", f"protocol={protocol}", f"model={model}", f"method={method}"]


def at_task(overrides: list[str], task: str) -> RunConfig:
    """The configuration of a run on a task, wherever its rows are."""
    source = "embedded" if TASKS[task].family == "embedded" else "hub"
    return compose_run([*overrides, f"task={task}", f"data.source={source}"])


def test_a_combination_without_rows_is_refused():
    message = r"rows for model=minilm \(hparams/long/minilm_bitfit, .*, got protocol=printed method=lora"
    with pytest.raises(UserError, match=message):
        compose_run(config_of("printed", "minilm", "lora"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_row_is_valid_and_other_tasks_are_refused(path):
    protocol, rows = path.parent.name, OmegaConf.load(path)
    model = next(name for name in describe_group("model") if path.stem.startswith(f"{name}_"))
    chosen = config_of(protocol, model, path.stem.removeprefix(f"{model}_"))
    given = compose_config(chosen).hparams
    tasks = [key for key in given if key in TASKS] or (["cola"] if "default" in given else [])
    assert tasks
    for task in tasks:
        config = at_task(chosen, task)
        assert (config.protocol, config.model.name, config.task) == (protocol, model, task)
    if others := [task for task in TASKS if task not in tasks and "default" not in {*rows, *given}]:
        with pytest.raises(UserError, match=f"^task must be one that has a complete row with .*, got '{others[0]}'"):
            at_task(chosen, others[0])


@pytest.mark.parametrize("profile", ["mini", "small", "paper"])
def test_target_sets_are_table_5_s_at_one_budget(profile):
    runs = select_runs(profile, ["experiment=lora_targets", "train.precision=fp32"])
    found = {(run.config.method.targets, run.config.method.rank) for run in runs}
    assert found == {
        (("q",), 8), (("k",), 8), (("v",), 8), (("o",), 8), (("q", "k"), 4), (("q", "v"), 4), (("q", "k", "v", "o"), 2),
    }  # fmt: skip


# The values: typed from the sources, in their order of tasks


def columns(protocol: str, model: str, method: str) -> dict[str, list]:
    composed = config_of(protocol, model, method)
    configs = [at_task(composed, task) for task in ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")]
    found = {key: [getattr(c.train, key) for c in configs] for key in ("batch", "epochs", "lr", "weight_decay")}
    found["length"] = [c.data.max_length for c in configs]
    found["start"] = [c.task for c in configs if c.start == "mnli"]
    found["configs"] = configs
    return found


TABLE_9 = {  # batch | epochs | learning rate in 1e-4 | length, in the order of the tasks; 4*6: six times 4
    "printed roberta_base lora": "16*3 32 32 16 32 16 | 30 60 30 80 25 25 80 40 | 5 5 4 4 4 5 5 4 | 512*8",
    "printed roberta_large lora": "4*6 8 8 | 10 10 20 20 10 20 20 30 | 3 4 3 2 2 3 4 2 | 128 128 512 128 512*4",
    "dagger roberta_large lora": "4*8 | 10 10 20 20 10 20 20 10 | 3 4 3 2 2 3 4 2 | 128*8",
    "dagger roberta_large pfeiffer_m64": "32*8 | 10 20 20 20 10 20 20 20 | 0.3 0.3 3*6 | 128*8",
    "dagger roberta_large pfeiffer_m16": "32*8 | 5 20 20 20 10 20 20 20 | 3*8 | 128*8",
    "dagger roberta_large houlsby_m64": "32*8 | 10 5 10 10 5 20 20 10 | 0.3 3*7 | 128*8",
    "dagger roberta_large houlsby_m8": "32*8 | 10 5 10 10 5 20 20 10 | 3*8 | 128*8",
}


def numbers(text: str) -> list[float]:
    parts = [item.partition("*") for item in text.split()]
    return [float(number) for number, _, times in parts for _ in range(int(times or 1))]


@pytest.mark.parametrize("row", TABLE_9)
def test_table_9(row):
    chosen = row.split()
    found, keys = columns(*chosen), ("batch", "epochs", "lr", "length")
    expected = dict(zip(keys, map(numbers, TABLE_9[row].split("|")), strict=True))
    assert found["lr"] == pytest.approx([value * 1e-4 for value in expected["lr"]])
    for key in ("batch", "epochs", "length"):
        assert found[key] == expected[key]
    assert found["start"] == (["mrpc", "rte", "stsb"] if chosen[0] == "printed" else [])
    for config in found["configs"]:
        assert config.train.warmup_frac == 0.06 and config.train.warmup_steps is None
        if config.method.name == "lora":
            alpha = 8 if config.model.name == "roberta_base" else 16
            assert (config.method.targets, config.method.rank, config.method.alpha) == (("q", "v"), 8, alpha)
            assert (config.method.init_a, config.train.weight_decay) == ("gaussian", 0.1)
        else:
            assert config.method.bottleneck == int(chosen[2].partition("_m")[2])
            assert (config.method.layer_norms, config.train.weight_decay) == ("frozen", 0.0)


def test_table_10():
    found = columns("printed", "deberta_v2_xxl", "lora")
    assert found["batch"] == [8, 8, 32, 4, 6, 8, 4, 4]
    assert found["epochs"] == [5, 16, 30, 10, 8, 11, 11, 10]
    assert found["lr"] == pytest.approx([1e-4, 6e-5, 2e-4, 1e-4, 1e-4, 1e-4, 2e-4, 2e-4])
    assert found["weight_decay"] == [0, 0.01, 0.01, 0, 0.01, 0.01, 0.01, 0.1]
    assert found["length"] == [256, 128, 128, 64, 512, 320, 320, 128]
    assert [c.train.head_dropout for c in found["configs"]] == [0.15, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.2]
    assert found["start"] == ["mrpc", "rte", "stsb"]
    assert {(c.method.rank, c.method.alpha, c.train.warmup_frac) for c in found["configs"]} == {(8, 8, 0.1)}


def test_released_lora():
    base = columns("released", "roberta_base", "lora")
    assert base["batch"] == [16 * 8, 16 * 8, 16 * 8, 32 * 2, 32 * 8, 16 * 8, 32 * 8, 16 * 8]
    large = columns("released", "roberta_large", "lora")
    assert large["batch"] == [4 * 8, 8 * 8, 4 * 8, 4 * 8, 4 * 8, 4 * 8, 8 * 8, 4 * 8]
    for found in (base, large):
        assert found["weight_decay"] == [0.1] * 8
        assert {(c.method.alpha, c.method.init_a, c.train.warmup_frac) for c in found["configs"]} == {
            (16, "kaiming_uniform", 0.06)
        }
    # Where the scripts differ from Table 9, and nowhere else.
    printed_base, printed = (columns("printed", f"roberta_{size}", "lora") for size in ("base", "large"))
    assert (base["lr"], base["epochs"], base["length"]) == tuple(printed_base[k] for k in ("lr", "epochs", "length"))
    tasks = [config.task for config in large["configs"]]
    for key, where in (
        ("lr", {"cola": 3e-4, "stsb": 3e-4}),
        ("epochs", {"stsb": 10}),
        ("length", {"sst2": 512, "stsb": 128}),
    ):
        pairs = zip(tasks, printed[key], large[key], strict=True)
        assert {task: ours for task, theirs, ours in pairs if ours != theirs} == where


def test_released_deberta():
    found, printed = columns("released", "deberta_v2_xxl", "lora"), columns("printed", "deberta_v2_xxl", "lora")
    assert found["batch"] == [8 * batch for batch in printed["batch"]]
    for key in ("epochs", "length", "weight_decay", "start"):
        assert found[key] == printed[key]
    assert found["lr"] == pytest.approx([1e-4, 6e-5, 2e-4, 1.3e-4, 1e-4, 1e-4, 2.6e-4, 2e-4])
    assert [c.train.warmup_steps for c in found["configs"]] == [1000, 1000, None, 100, 500, 10000, 50, 100]
    assert [c.train.warmup_frac for c in found["configs"]] == [0, 0, 0.1, 0, 0, 0, 0, 0]
    assert {(c.method.rank, c.method.alpha, c.method.init_a, c.method.init_std) for c in found["configs"]} == {
        (16, 32, "gaussian", 0.02)
    }


def test_full_fine_tuning_of_roberta():
    for model in ("roberta_base", "roberta_large"):
        found = columns("released", model, "full")
        assert found["lr"] == pytest.approx([1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 2e-5, 2e-5])
        assert found["batch"] == [32, 32, 16, 16, 32, 32, 16, 16]
        assert found["epochs"] == [10] * 8 and found["start"] == []
        warmups = [c.train.warmup_frac for c in found["configs"]]
        assert warmups == [*[0.06] * 5, 28318 / 113272, 0.06, 0.06]
        for config in found["configs"]:
            train = config.train
            assert (train.adam_beta1, train.adam_beta2, train.adam_eps, train.clip_norm) == (0.9, 0.98, 1e-6, None)


def test_full_fine_tuning_of_deberta():
    found = columns("released", "deberta_v2_xxl", "full")
    assert found["lr"] == pytest.approx([3e-6, 3e-6, 2e-6, 2.5e-6, 3e-6, 3e-6, 3e-6, 3e-6])
    assert found["batch"] == [64, 32, 32, 32, 64, 64, 48, 32]
    assert found["epochs"] == [3, 4, 6, 10, 4, 10, 6, 4]
    assert found["length"] == columns("printed", "deberta_v2_xxl", "lora")["length"]
    assert [c.train.head_dropout for c in found["configs"]] == [0.3, *[0.2] * 7]
    adam = {(c.train.adam_beta2, c.train.adam_eps, c.train.weight_decay) for c in found["configs"]}
    assert adam == {(0.999, 1e-6, 0.01)}


@pytest.mark.parametrize(("method", "bottleneck"), [("houlsby_m8", 8), ("pfeiffer_m16", 16)])
def test_released_adapter_scripts(method, bottleneck):
    config = at_task(config_of("released", "roberta_large", method), "mnli")
    train = config.train
    assert (train.lr, train.batch, train.epochs, train.warmup_frac, train.weight_decay) == (3e-4, 256, 5, 0.1, 0.0)
    assert (config.data.max_length, config.method.bottleneck, config.method.init_std) == (128, bottleneck, 0.02)


def test_models_of_the_paper_are_pinned_and_strict():
    for name in ("roberta_base", "roberta_large", "deberta_v2_xxl"):
        content = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
        model = ModelConfig(**content | {"unused_weights": tuple(content["unused_weights"])})
        deberta = name.startswith("deberta")
        assert model.pickle == ("weights_only" if deberta else "never")
        assert model.revision == "main" if deberta else re.fullmatch("[0-9a-f]{40}", model.revision)
        unused = re.compile("|".join(model.unused_weights))
        checkpoint = (
            ["lm_predictions.lm_head.dense.weight", "deberta.embeddings.position_embeddings.weight"]
            if deberta
            else ["lm_head.layer_norm.bias", "roberta.pooler.dense.weight"]
        )
        assert all(unused.search(tensor) for tensor in checkpoint)
        with torch.device("meta"):
            body = [tensor for tensor, _ in model_of_size(name, 2).named_parameters()]
        assert len(body) > 100 and not any(unused.search(tensor) for tensor in body)
