"""`python -m lora analyse subspaces PROFILE`: Figures 3 and 4 and Table 7 (sections 7.2, 7.3) from saved adapters.

The adapters are LoRA on Wq and Wv: a small rank with one seed, and a large rank with two. The ranks are compared across
seeds. Within one seed, A of the small rank is drawn as the first rows of A of the large one, which pairs the ranks in
Table 6, so one subspace would contain the other before any training. A sweep saves adapters with
`runtime.save_adapter=true`. The results are stored in results/<profile>/analysis/subspaces.json, from which the figures
and the table are made without adapters.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from lora.adapters.folder import recorded_adapter
from lora.config.run import PlannedRun
from lora.errors import UserError
from lora.files import rounded, write_atomically
from lora.records.analysis import SUBSPACES, analysis_json
from lora.records.record import RunRecord
from lora.report.gather import gather, saved_runs
from lora.report.gather import options as options
from lora.rng import gaussian

SMALL, LARGE = 8, 64  # Figure 3's ranks; Figure 4's is the large one
TARGETS = ("q", "v")
AXIS = (*range(1, 17), *range(20, 65, 4))  # the i and j that are kept at the large rank


def similarity(one: Float[np.ndarray, "r1 d_in"], other: Float[np.ndarray, "r2 d_in"]) -> Float[np.ndarray, "r1 r2"]:
    """phi(i, j) = ||U1_i^T U2_j||_F^2 / min(i, j) for all i and j; 1: one contains the other, 0: orthogonal subspaces.

    U_i: the top i right singular vectors of an A. Source: section 7.2, equation 4; appendix G prints 1 - d^2 / p as
    (1 - d^2) / p and takes left singular vectors, contrary to its own definitions.
    """
    directions = [np.linalg.svd(a, full_matrices=False)[2] for a in (one, other)]
    overlap = (directions[0] @ directions[1].T) ** 2
    summed = overlap.cumsum(axis=0).cumsum(axis=1)
    i, j = (np.arange(1, size + 1) for size in overlap.shape)
    return summed / np.minimum(i[:, None], j[None, :])


def amplification(
    weight: Float[np.ndarray, "d_out d_in"], update: Float[np.ndarray, "d_out d_in"], rank: int, name: str
) -> dict[str, float]:
    """The norms in Table 7: of W, of the update, and of W in three pairs of r directions. Source: section 7.3.

    Returns: `weight`, `update` (Frobenius norms); `in_update`, `in_weight`, `in_random`: ||U^T W V||_F with U and V the
        top r singular vectors of the update, of W, and of a random Gaussian matrix.
    """

    def within(matrix: np.ndarray) -> float:
        u, _, vt = np.linalg.svd(matrix, full_matrices=False)
        return float(np.linalg.norm(u[:, :rank].T @ weight @ vt[:rank].T))

    return {
        "weight": float(np.linalg.norm(weight)),
        "update": float(np.linalg.norm(update)),
        "in_update": within(update),
        "in_weight": within(weight),
        "in_random": within(gaussian(weight.shape, "table7", name)),
    }


@dataclass(frozen=True)
class Saved:
    """One trained LoRA: module name -> A (rank x inputs) and B (outputs x rank), in float64."""

    record: RunRecord
    run: PlannedRun
    a: dict[str, np.ndarray]
    b: dict[str, np.ndarray]

    def update(self, name: str) -> Float[np.ndarray, "d_out d_in"]:
        """The update of a module: alpha / r * B A, or as the method scales it."""
        return self.run.config.method.scale_at(self.a[name].shape[0]) * self.b[name] @ self.a[name]


def read_saved(record: RunRecord, run: PlannedRun) -> Saved:
    """Read a run's adapter. Raises: UserError: If it is absent, broken, or not the one that the record names."""
    pairs = recorded_adapter(record, run.config.runtime.outputs).pairs()
    a, b = ({name: pair[side].double().numpy() for name, pair in pairs.items()} for side in (0, 1))
    return Saved(record, run, a, b)


def subspace_cases(adapters: Mapping[tuple[str, str, int, int], Saved]) -> tuple[list[dict[str, Any]], set[str]]:
    """The entries of the analysis, and the runs that they were made from, of (model, task, rank, seed) -> adapter."""
    cases = []
    used = set()
    for model, task in dict.fromkeys(key[:2] for key in adapters):
        of_task = {key[2:]: saved for key, saved in adapters.items() if key[:2] == (model, task)}
        seeds = sorted(seed for rank, seed in of_task if rank == LARGE)[:2]
        if len(seeds) < 2 or (SMALL, seeds[0]) not in of_task:
            continue
        small, large, second = of_task[SMALL, seeds[0]], of_task[LARGE, seeds[0]], of_task[LARGE, seeds[1]]
        used |= {saved.record.run_id for saved in (small, large, second)}
        weights, modules = base_weights(large)
        about = {"model": model, "task": task}
        of_ranks = [f"r = {SMALL}, seed {seeds[0]}", f"r = {LARGE}, seed {seeds[1]}"]
        of_seeds = [f"seed {seed}" for seed in seeds]
        for target in TARGETS:
            middle = modules[target][len(modules[target]) // 2]
            trained, two_seeds = ([saved.a[middle], second.a[middle]] for saved in (small, large))
            before = [initial_a(saved, middle) for saved in (small, second)]
            for kind, when, names, pair in (
                ("ranks of two seeds", "trained", of_ranks, trained),
                ("ranks of two seeds", "before training", of_ranks, before),
                ("seeds", "two seeds", of_seeds, two_seeds),
            ):
                cases.append({"kind": kind, **about, "target": target, **phis(pair, f"W{target}, {when}", names)})
            for rank, saved in ((SMALL, small), (LARGE, large)):
                layers = [
                    {"layer": i, **amplification(weights[name], saved.update(name), rank, name)}
                    for i, name in enumerate(modules[target])
                ]
                case = {"kind": "amplification", **about, "target": target}
                cases.append({**case, "rank": rank, "layers": rounded(layers)})
        random = [gaussian(large.a[modules["q"][0]].shape, "figure4", number) for number in (1, 2)]
        cases.append({"kind": "seeds", **about, "target": None, **phis(random, "random Gaussian", ["one", "other"])})
    return cases, used


def phis(pair: Sequence[np.ndarray], label: str, names: Sequence[str]) -> dict[str, Any]:
    """The similarity of two A's at the i and j that are kept. `names`: of the two."""
    rows, columns = (list(range(1, SMALL + 1)) if len(a) == SMALL else list(AXIS) for a in pair)
    kept = similarity(*pair)[np.ix_([i - 1 for i in rows], [j - 1 for j in columns])]
    about = {"label": label, "y": names[0], "x": names[1], "rows": [*map(str, rows)], "columns": [*map(str, columns)]}
    return about | {"phi": [[round(float(value), 4) for value in row] for row in kept]}


def base_weights(saved: Saved) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The pretrained W of every adapted module, and each target's modules in the order of the layers.

    Raises: UserError: If the encoder is not available, or has other weights than the run started from.
    """
    from lora.models.load import load_encoder
    from lora.models.modules import find_target, weight_of

    encoder = load_encoder(saved.run.config.model, saved.run.task, saved.run.seed)
    if encoder.weights != saved.record.provenance["weights"]:
        raise UserError(f"the encoder at hand has other weights than {saved.record.run_id} started from")
    modules = {target: [name for name in find_target(encoder.model, target) if name in saved.a] for target in TARGETS}
    names = [name for of_target in modules.values() for name in of_target]
    return {name: weight_of(encoder.model, name).detach().double().numpy() for name in names}, modules


def initial_a(saved: Saved, name: str) -> Float[np.ndarray, "rank d_in"]:
    """The initial A of a module, as its run drew it before training."""
    import torch

    from lora.methods.lowrank import init_a

    lora_a = torch.empty(saved.a[name].shape)
    init_a(lora_a, saved.run.config.method, saved.run.seed, name)
    return lora_a.double().numpy()


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 no adapter to analyse exists, or one is not its record's."""
    gathered = gather(given.profile, given.overrides)
    shown, adapters = set(gathered.runs["run_id"]), {}
    for record, run in saved_runs(gathered):  # LoRA on Wq and Wv, trained from the pretrained encoder
        rank = {f"lora-qv-r{rank}": rank for rank in (SMALL, LARGE)}.get(run.config.method.slug)
        if rank is not None and run.start == "pretrained" and record.run_id in shown:
            adapters[run.model, run.task.name, rank, run.seed] = read_saved(record, run)
    cases, used = subspace_cases(adapters)
    if not cases:
        raise UserError(
            f"no runs of {given.profile} with LoRA on q and v, one at rank {SMALL} and two seeds of rank {LARGE}, left "
            f"their adapters here: train them with method=lora method.rank={SMALL},{LARGE} runtime.save_adapter=true"
        )
    path = gathered.folder / "analysis" / SUBSPACES
    made_from = {run_id: gathered.state.ok[run_id].adapter for run_id in used}
    write_atomically(path, analysis_json(made_from, cases))
    print(f"{len(cases)} analyses of {len(used)} adapters: {path}")
