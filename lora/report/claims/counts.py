"""Ratios of trainable parameters against their bounds: for GPT-3 by closed form, for our encoders from records."""

from collections.abc import Mapping, Sequence

import pandas as pd

from lora.models.sizes import gpt3_count
from lora.report.claims.findings import Finding, exact
from lora.report.claims.statements import Claim, Compare
from lora.report.titles import encoder_title, slug_label

GPT3 = "GPT-3 175B"
Counts = Mapping[str, tuple[int, tuple[str, ...]]]  # slug -> trainable parameters without the head, and their sources


def count_ratios(claim: Claim, frame: pd.DataFrame) -> dict[str, list[Finding]]:
    """Model -> the claim's comparisons. Models that lack a method of the claim are excluded.

    Args:
        frame: `load_frame` of a profile's records.
    """
    wanted = slugs_of(claim)
    if claim.count == "gpt3":
        counts = {slug: (gpt3_count(slug), ("computed",)) for slug in wanted}
        return {GPT3: [counted(compare, GPT3, counts) for compare in claim.compare]}
    found = {}
    for model, runs in frame[frame["slug"].isin(wanted)].sort_values("run_id").groupby("model", sort=False):
        counts = {r.slug: (r.trainable_method, (r.run_id,)) for r in runs.drop_duplicates("slug").itertuples()}
        if set(wanted) <= set(counts):
            found[model] = [counted(compare, model, counts) for compare in claim.compare]
    return found


def slugs_of(claim: Claim) -> Sequence[str]:
    return list(dict.fromkeys(slug for compare in claim.compare for slug in (compare.one, compare.other)))


def counted(compare: Compare, model: str, counts: Counts) -> Finding:
    (one, of_one), (other, of_other) = counts[compare.one], counts[compare.other]
    names = " / ".join(slug_label(slug).replace("Full", "full") for slug in (compare.one, compare.other))
    label = f"trainable parameters, {names}, {encoder_title(model)}: {one:,} / {other:,}"
    runs = tuple(dict.fromkeys((*of_one, *of_other)))
    return exact(label, one / other, None, compare.bound, runs, "ratio")
