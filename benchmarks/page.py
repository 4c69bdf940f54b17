"""The benchmark's table as Markdown, and its figure."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.cells import OURS
from benchmarks.config import Benchmark
from prefdag.reporting.figures.style import COLOURS, MARKERS, new_figure, use_style

TITLES = {
    "trl-defaults": "TRL, defaults",
    "trl-tuned": "TRL, tuned",
    "trl-patched": "TRL, tuned, response-only head",
    "trl-liger": "TRL, tuned, Liger's kernels",
    "naive": "padded, all logits",
    "sorted": "sorted, no mask",
    "completion": "head on responses only",
    "packed": "packed rows",
    "shared": "prompt shared",
}
PRECISION = {"cpu": "float32 on CPU", "cuda": "bf16 autocast over float32 weights on CUDA"}
PRODUCT = {"cpu": "a float32 product of 1024 x 1024", "cuda": "a bf16 product of 8192 x 8192"}


def as_markdown(ratio_table: pd.DataFrame, runs: pd.DataFrame, settings: Benchmark, versions: Mapping[str, str]) -> str:
    """Every cell, every arm: prefdag's speed over it, lowest to highest round, memory, and whether the losses agree.

    runs: as `with_work` gives them, so that it says how near prefdag is to the machine's own speed, and of DPO how much
    arithmetic TRL, tuned and with the patched head, does for what prefdag could not do with less.
    """
    versions_text = ", ".join(f"{name} {version}" for name, version in versions.items())
    device = runs["device"].iloc[0]
    in_half = device == "cpu" and settings.precision == "bfloat16"
    precision = "bf16 autocast over float32 weights on CPU" if in_half else PRECISION[device]
    lines = [
        f"{settings.rounds} rounds of {settings.steps} steps of {settings.pairs_per_step} pairs, "
        f"{settings.threads} threads, {precision}; {versions_text}; {PRODUCT[device]} at "
        f"{_range(runs['gemm_gflops'], 0)} GFLOP/s, {_range(100 * runs['stolen'], 0)} % of processor time stolen.",
        "",
        "| shape | lengths | task | against | speed-up (rounds) | memory | losses apart: most, mean | norms apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ratio_table.to_dict("records"):
        agreement = ["no losses", ""]
        if not np.isnan(row.get("largest_difference", np.nan)):
            void = "" if row["agrees"] else " **void**"
            agreement = [f"{row['largest_difference']:.1e}, {row['signed_difference']:+.1e}{void}"]
            agreement += [f"{row['norm_difference']:.1e}"]
        speed = f"{row['speedup']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f})"
        cells = [row["shape"], row["profile"], row["task"], TITLES.get(row["arm"], row["arm"]), speed]
        lines.append("| " + " | ".join([*cells, f"{row['memory']:.2f}", *agreement]) + " |")
    lines += ["", f"| cell | {OURS}: pairs/s | tokens/s | of the product's speed | arithmetic of TRL's arms |"]
    lines.append("|---|---|---|---|---|")
    for names, part in runs.groupby(["shape", "profile", "task"], sort=False):
        ours, work = part[part["arm"] == OURS], part.groupby("arm", sort=False)["arithmetic"].first().dropna()
        rates = f"{ours['pairs_per_s'].median():.2f} | {ours['useful_tokens_per_s'].median():,.0f}"
        padded = ", ".join(f"{value:.1f}" for value in work)
        share = f"{ours['of_product_speed'].median():.0%}"
        if device == "cuda":
            share += f", MFU {ours['mfu'].median():.0%} of an H100"
        lines.append(f"| {', '.join(names)} | {rates} | {share} | {padded} |")
    lines += ["", "| task | against | cells | speed-up, geometric mean | lowest | memory, geometric mean | highest |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (task, arm), part in ratio_table.groupby(["task", "arm"], sort=False):
        faster, smaller = (float(np.exp(np.log(part[name]).mean())) for name in ("speedup", "memory"))
        figures = f"{len(part)} | {faster:.1f} | {part['speedup'].min():.1f}"
        figures += f" | {smaller:.2f} | {part['memory'].max():.2f}"
        lines.append(f"| {task} | {TITLES.get(str(arm), arm)} | {figures} |")
    return "\n".join(lines) + "\n"


def _range(values: pd.Series, digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def speedups(ratio_table: pd.DataFrame) -> Figure:
    """prefdag's pairs per second over each arm's, a row a cell; bars are lowest to highest round.

    What is void, as the losses differ, is hollow.
    """
    cells = list(dict.fromkeys(zip(ratio_table["shape"], ratio_table["profile"], ratio_table["task"], strict=True)))
    arms = list(dict.fromkeys(ratio_table["arm"]))
    with use_style():
        figure = new_figure(7.2, 1.2 + (0.5 if len(cells) <= 12 else 0.25) * len(cells))
        axes = figure.add_subplot()
        for number, arm in enumerate(arms):
            part = ratio_table[ratio_table["arm"] == arm]
            keys = zip(part["shape"], part["profile"], part["task"], strict=True)
            height = np.array([cells.index(key) for key in keys]) + 0.6 * ((number + 0.5) / len(arms) - 0.5)
            low, high = part["speedup"] - part["lowest"], part["highest"] - part["speedup"]
            axes.errorbar(
                part["speedup"],
                height,
                xerr=np.array([low, high]),
                linestyle="none",
                markersize=5,
                elinewidth=1,
                label=TITLES.get(arm, arm),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
            )
            void = ~part["agrees"].to_numpy(bool)
            axes.plot(part["speedup"][void], height[void], "o", color="white", markersize=2.5, zorder=5)
        axes.set_xscale("log")
        axes.axvline(1, color="#999999", linewidth=0.8)
        axes.set_yticks(range(len(cells)), [", ".join(cell) for cell in cells])
        axes.set_ylim(len(cells) - 0.3, -0.7)
        axes.set_xlabel("speed-up in pairs per second (logarithmic)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(value)[0] in "25" else "")
        if arms:
            figure.legend(loc="outside right upper")
    return figure
