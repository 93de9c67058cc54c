"""The page of the adapters' benchmark, from what was measured. No torch here."""

from typing import Any


def document(content: dict[str, Any]) -> str:
    """The Markdown page of `adapters.json`, every time and ratio with its interval."""
    batch, size, settings = content["batch"], content["bytes"], content["settings"]
    average = content["load"]["average"]
    average = "-" if average is None else f"{average:.1f}"
    lines = [
        "# Adapters: swap, drift, mixed batches, size",
        "",
        f"{settings['model']}, LoRA {settings['lora']}; {content['threads']} threads of "
        f"{content['device']}, load average {average} at the start. Medians of interleaved "
        f"repetitions, in parentheses their 95% intervals.",
        "",
        "| Swap of all adapted matrices | ours, head included | PEFT, unmerge + merge | ours / PEFT |",
        "| --- | ---: | ---: | ---: |",
    ]
    for dtype, swaps in content["swap"].items():
        lines.append(
            f"| {dtype} | {shown(swaps['ours_ms'], 1)} ms | {shown(swaps['peft_ms'], 1)} ms | "
            f"{shown(swaps['ours_to_peft'], 2)} |"
        )
    lines += [
        "",
        f"| After swaps among {settings['swapped']} | cycles | changed, ours | changed, PEFT | largest, PEFT |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for dtype, by_cycle in content["drift"].items():
        for cycles, sides in by_cycle.items():
            ours, pefts = sides["ours"], sides["peft"]
            lines.append(
                f"| {dtype} | {int(cycles):,} | {ours['changed_share']:.2%} | {pefts['changed_share']:.2%} | "
                f"{pefts['max_abs']:.1e} |"
            )
    lines += ["", f"| One pass, {settings['rows']} rows x {settings['tokens']} tokens, fp32 | ms |", "| --- | ---: |"]
    lines += [f"| {name} | {shown(values, 0)} |" for name, values in batch["ms"].items()]
    lines += [
        "",
        "| Ratio | |",
        "| --- | ---: |",
        f"| merged / base | {shown(batch['merged_to_base'], 3)} |",
        f"| unmerged / base | {shown(batch['unmerged_to_base'], 3)} |",
        f"| {settings['adapters']} adapters in one batch / one unmerged | {shown(batch['mixed_to_unmerged'], 3)} |",
        f"| the same in PEFT, without a head | {shown(batch['peft_mixed_to_one'], 3)} |",
        "",
        f"Largest difference of a mixed batch's logits from each adapter's own: {batch['mixed_difference']:.1e}. "
        f"PEFT's mixed batch with heads: {batch['peft_with_head']}",
        "",
        f"An adapter's tensors: {size['without_head'] / 1e6:.3f} MB without the head, {size['with_head'] / 1e6:.3f} MB "
        f"with it.",
        "",
    ]
    return "\n".join(lines)


def shown(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}-{value['high']:.{digits}f})"
