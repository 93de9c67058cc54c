"""The page of the adapters' benchmark, from its measurements. No torch."""

from typing import Any

import pandas as pd

from lora.cost.timing import name_of, shown
from lora.table import markdown


def document(content: dict[str, Any]) -> str:
    """The Markdown page of `adapters.json`, with an interval for every time and ratio."""
    batch, size, settings = content["batch"], content["bytes"], content["settings"]
    average = content["load"]["average"]
    average = "-" if average is None else f"{average:.1f}"
    swaps = [
        {
            "Swap of all adapted matrices": dtype,
            "ours, head included": f"{shown(found['ours_ms'], 1)} ms",
            "PEFT, unmerge + merge": f"{shown(found['peft_ms'], 1)} ms",
            "ours / PEFT": shown(found["ours_to_peft"], 2),
        }
        for dtype, found in content["swap"].items()
    ]
    drift = [
        {
            f"After swaps among {settings['swapped']}": dtype,
            "cycles": f"{int(cycles):,}",
            "changed, ours": f"{found['ours']['changed_share']:.2%}",
            "changed, PEFT": f"{found['peft']['changed_share']:.2%}",
            "largest, PEFT": f"{found['peft']['max_abs']:.1e}",
        }
        for dtype, by_cycle in content["drift"].items()
        for cycles, found in by_cycle.items()
    ]
    one_pass = f"One pass, {settings['rows']} rows x {settings['tokens']} tokens, fp32"
    passes = [{one_pass: name, "ms": shown(values, 0)} for name, values in batch["ms"].items()]
    ratios = {
        "merged / base": "merged_to_base",
        "unmerged / base": "unmerged_to_base",
        f"{settings['adapters']} adapters in one batch / one unmerged": "mixed_to_unmerged",
        "the same in PEFT, without a head": "peft_mixed_to_one",
    }
    compared = [{"Ratio": title, "": shown(batch[key], 3)} for title, key in ratios.items()]
    of_swaps = name_of(next(iter(content["swap"].values()))["ours_ms"])
    of_passes = name_of(batch["merged_to_base"])
    spread = of_swaps if of_swaps == of_passes else f"{of_swaps} of a swap and the {of_passes} of a pass"
    return "\n".join(
        [
            "# Adapters: swap, drift, mixed batches, size",
            "",
            f"{settings['model']}, LoRA {settings['lora']}; {content['threads']} threads of {content['device']}, load "
            f"average {average} at the start. Medians of interleaved repetitions, in parentheses the {spread}.",
            "",
            *(markdown(pd.DataFrame(rows)) for rows in (swaps, drift, passes, compared)),
            f"Largest difference of a mixed batch's logits from each adapter's own: {batch['mixed_difference']:.1e}. "
            f"PEFT's mixed batch with heads: {batch['peft_with_head']}",
            "",
            f"An adapter's tensors: {size['without_head'] / 1e6:.3f} MB without the head, "
            f"{size['with_head'] / 1e6:.3f} MB with it.",
            "",
        ]
    )
