"""A picture of comparisons: one bar each, the peer is 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import Report, machine

MET, NOT_MET, NO_TARGET = "#2e7d5b", "#c2562d", "#5a7896"


def draw(reports: Sequence[Report], path: Path) -> None:
    """Write a PNG: bars are medians, lines the spread over the pairs, ticks the targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for report in reports for rows in report.tables.values() for row in rows]
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.42 * len(rows)))
    for y, row in enumerate(rows):
        met = row.target is None or row.ratio <= row.target
        colour = NO_TARGET if row.target is None else MET if met else NOT_MET
        axes.barh(y, row.ratio, color=colour, height=0.62)
        axes.plot([min(row.ratios), max(row.ratios)], [y, y], color="black", linewidth=1)
        if row.target is not None:
            axes.plot([row.target] * 2, [y - 0.42, y + 0.42], color="black", linewidth=2)
        axes.text(
            max(*row.ratios, row.ratio) * 1.05, y, f"{row.ratio:.2f}", va="center", fontsize=8
        )
    axes.axvline(1, color="#888888", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    names = [f"{row.name}\nbeside {row.peer}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time (or CPU) of WaveFlow / that of its peer; less is better, log scale")
    axes.set_title(f"WaveFlow beside its peers\n{machine()}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(
        0.99,
        0.005,
        "bar: median · thin line: spread · thick mark: target · dotted: as fast",
        ha="right",
        fontsize=7,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
