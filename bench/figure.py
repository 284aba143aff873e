"""Quality and decode speed over size, as a PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_edge.bench.advice import Candidate
from qwen_edge.errors import MissingExtraError
from qwen_edge.files import atomic_path

_INK, _QUIET, _GRID = "#1f2430", "#6b7280", "#e5e7eb"
_POINT, _CHOSEN = "#4f6bed", "#e4572e"


def save_figure(
    target: Path, title: str, reference: str, candidates: Sequence[Candidate], chosen: Candidate
) -> None:
    """Draw two panels: KLD over size, decode speed over size.

    Args:
        target: The PNG to write.
        title: Model and machine.
        reference: What KLD is measured against: "BF16".
        candidates: One point each.
        chosen: The one to set off.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # Its font cache and settings go to the user's folders, and it wants no screen.
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "bench", "drawing the figure") from error
    figure = Figure(figsize=(10, 4.6), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    quality, speed = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
    _panel(quality, f"Mean KLD against {reference}, nats", "lower is better")
    _panel(speed, "Decode, tokens/s", "higher is better")
    sizes_mb = [candidate.cost.size_bytes / 1e6 for candidate in candidates]
    labels = [candidate.label for candidate in candidates]
    colours = [_CHOSEN if candidate is chosen else _POINT for candidate in candidates]
    speeds = [candidate.decode for candidate in candidates]
    for x, samples, colour in zip(sizes_mb, speeds, colours, strict=True):
        ends = [min(samples.values), max(samples.values)]
        speed.plot([x, x], ends, color=colour, alpha=0.3, linewidth=3, solid_capstyle="round", zorder=2)
    _points(quality, sizes_mb, [candidate.mean_kld for candidate in candidates], labels, colours)
    _points(speed, sizes_mb, [samples.median for samples in speeds], labels, colours)
    _limits(quality, sizes_mb, max(candidate.mean_kld for candidate in candidates))
    _limits(speed, sizes_mb, max(max(samples.values) for samples in speeds))
    figure.supxlabel(
        "File size, MB        orange: the one to take here        bars: slowest to fastest repetition",
        fontsize=9,
        color=_QUIET,
    )
    with atomic_path(target) as part:
        figure.savefig(part, format="png")


def _panel(axes: Any, title: str, direction: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK)
    axes.set_title(direction, loc="right", fontsize=9, color=_QUIET)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, labelsize=9, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)


def _points(
    axes: Any, xs: Sequence[float], ys: Sequence[float], labels: Sequence[str], colours: Sequence[str]
) -> None:
    near_x, near_y = 0.2 * (max(xs) - min(xs)), 0.08 * max(ys)
    for x, y, label, colour in zip(xs, ys, labels, colours, strict=True):
        axes.plot(
            x, y, "o", markersize=10, color=colour, markeredgecolor="white", markeredgewidth=1.5, zorder=3
        )
        # Of two points side by side, the lower one has its name below.
        crowded = any(
            abs(x - other_x) < near_x and 0 < other_y - y < near_y
            for other_x, other_y in zip(xs, ys, strict=True)
        )
        offset = (9, -13) if crowded else (9, 5)
        axes.annotate(
            label, (x, y), xytext=offset, textcoords="offset points", fontsize=10, color=_INK, zorder=4
        )


def _limits(axes: Any, xs: Sequence[float], top: float) -> None:
    """Begin at zero, with room for a whole point there and for names at the right."""
    width = max(xs) - min(xs) or max(xs)
    axes.set_xlim(min(xs) - 0.08 * width, max(xs) + 0.2 * width)
    top = top or 1.0
    axes.set_ylim(-0.04 * top, 1.12 * top)
