"""The paper's analyses against their definitions written out, and on trained adapters of a tiny encoder."""

import dataclasses
import hashlib

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from scipy.linalg import subspace_angles
from trained import ensure_record, planned

from lora.errors import UserError
from lora.methods import apply
from lora.records.analysis import SUBSPACES, analysis_json, read_analyses
from lora.records.record import adapter_path
from lora.report.adapter_tables import table7
from lora.report.analyses import subspaces
from lora.report.analyses.subspaces import amplification, read_saved, similarity, subspace_cases
from lora.rng import gaussian

RANDOM = np.random.default_rng(0)


def test_similarity_is_its_definition_for_every_i_and_j():
    one, other = RANDOM.normal(size=(3, 10)), RANDOM.normal(size=(5, 10))
    phi = similarity(one, other)
    u1, u2 = (np.linalg.svd(a.T, full_matrices=False)[0] for a in (one, other))  # right singular vectors, as columns
    for i in range(1, 4):
        for j in range(1, 6):
            defined = np.linalg.norm(u1[:, :i].T @ u2[:, :j]) ** 2 / min(i, j)
            assert phi[i - 1, j - 1] == pytest.approx(defined)


def test_similarity_by_the_principal_angles():
    """Similarity is the mean squared cosine of the principal angles, which SciPy computes in another way."""
    one, other = RANDOM.normal(size=(4, 12)), RANDOM.normal(size=(4, 12))
    assert similarity(one, other)[-1, -1] == pytest.approx(np.mean(np.cos(subspace_angles(one.T, other.T)) ** 2))


def test_random_subspaces_are_as_similar_as_chance():
    phi = similarity(gaussian((64, 384), "a"), gaussian((64, 384), "b"))
    assert phi[-1, -1] == pytest.approx(64 / 384, abs=0.01)


def test_an_update_along_w_is_not_amplified_and_one_across_it_is():
    u, s, vt = np.linalg.svd(RANDOM.normal(size=(6, 6)))
    weight = u * s @ vt
    along = amplification(weight, 0.5 * s[0] * np.outer(u[:, 0], vt[0]), 1, "x")
    assert along["in_update"] == pytest.approx(s[0]) == along["in_weight"]
    across = amplification(weight, 3 * np.outer(u[:, -1], vt[-1]), 1, "x")
    assert across["update"] / across["in_update"] == pytest.approx(3 / s[-1])
    assert across["weight"] == pytest.approx(np.sqrt((s**2).sum()))


@pytest.fixture
def trained(tiny_config, monkeypatch):
    """Three adapters that the training loop saved, with their records, by (model, task, rank, seed).

    Their ranks are those that a tiny encoder has room for.
    """
    for name, value in (("SMALL", 2), ("LARGE", 6), ("AXIS", (1, 2, 4, 6))):
        monkeypatch.setattr(subspaces, name, value)
    found = {}
    for rank, seed in ((2, 1), (6, 1), (6, 2)):
        config = tiny_config("method=lora", f"method.rank={rank}", f"seed={seed}", "runtime.save_adapter=true")
        record = ensure_record(config, mistakes_fail=False)
        found["bert", "cola", rank, seed] = read_saved(record, planned(config))
    return found


def lora_a_at_start(model, config, name):
    """The untrained A that `apply` draws."""
    apply(model, config.method, config.seed)
    return model.get_submodule(name).lora_a.detach().double().numpy()


def test_trained_adapters_give_table_7_and_figures_3_and_4(trained, tmp_path):
    cases, used = subspace_cases(trained)
    assert used == {saved.record.run_id for saved in trained.values()}
    assert sorted(case["kind"] for case in cases) == ["amplification"] * 4 + ["ranks of two seeds"] * 4 + ["seeds"] * 3
    small, large = trained["bert", "cola", 2, 1], trained["bert", "cola", 6, 1]
    query = "bert.encoder.layer.1.attention.self.query"
    ranks, before = [case for case in cases if case["kind"] == "ranks of two seeds" and case["target"] == "q"]
    second = trained["bert", "cola", 6, 2]
    expected = similarity(small.a[query], second.a[query])[:, [0, 1, 3, 5]]
    assert np.array(ranks["phi"]) == pytest.approx(expected, abs=1e-4)
    untrained = [lora_a_at_start(tiny.model("bert"), saved.run.config, query) for saved in (small, second)]
    assert np.array(before["phi"]) == pytest.approx(similarity(*untrained)[:, [0, 1, 3, 5]], abs=1e-4)
    same_seed = lora_a_at_start(tiny.model("bert"), large.run.config, query)
    assert similarity(untrained[0], same_seed)[1, 5] == pytest.approx(1)  # comparing one seed would show this
    (table,) = [c for c in cases if c["kind"] == "amplification" and (c["target"], c["rank"]) == ("q", 2)]
    a, b = small.a[query], small.b[query]
    assert table["layers"][1]["update"] == pytest.approx(np.linalg.norm(16 / 2 * b @ a), rel=1e-4)
    records = {saved.record.run_id: saved.record for saved in trained.values()}
    path = tmp_path / SUBSPACES
    path.write_bytes(analysis_json({run_id: records[run_id].adapter for run_id in used}, cases))
    kept = read_analyses(tmp_path, records, "python -m lora {}".format)
    assert list(kept.subspaces) == cases and not kept.problems
    shown = table7("small", kept.subspaces)
    assert shown.title.startswith("Table 7:") and len(shown.cells) == 4 + 2  # the paper's
    assert {name: len(figure["panels"]) for name, figure in shown.figures.items()} == {"figure3": 4, "figure4": 3}
    other = {run_id: dataclasses.replace(record, adapter="0" * 64) for run_id, record in records.items()}
    assert "python -m lora analyse subspaces" in read_analyses(tmp_path, other, "python -m lora {}".format).problems[0]


def test_the_base_is_the_pretrained_one(trained):
    """W of Table 7 is the frozen weight under the adapters, and no part of any of them."""
    saved = trained["bert", "cola", 2, 1]
    weights, modules = subspaces.base_weights(saved)
    file = load_file(f"{saved.run.config.model.path}/model.safetensors")
    assert [name.split(".")[3] for name in modules["v"]] == ["0", "1"]
    for name, weight in weights.items():
        assert (torch.from_numpy(weight) == file[f"{name.removeprefix('bert.')}.weight"].double()).all()


def test_an_adapter_that_is_not_the_records_is_refused(trained):
    saved = trained["bert", "cola", 2, 1]
    path = adapter_path(saved.run.config.runtime.outputs, saved.record.run_id)
    other = dataclasses.replace(saved.record, adapter="0" * 64)
    with pytest.raises(UserError, match=r"not the adapter that the record"):
        read_saved(other, saved.run)
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"not a whole safetensors file"):
        read_saved(dataclasses.replace(saved.record, adapter=hashlib.sha256(b"junk").hexdigest()), saved.run)
    weights = {"weights": "sha256:other"}
    moved = dataclasses.replace(saved, record=dataclasses.replace(saved.record, provenance=weights))
    with pytest.raises(UserError, match=r"other weights than"):
        subspaces.base_weights(moved)
