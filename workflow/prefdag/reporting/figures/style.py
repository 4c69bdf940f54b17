"""What every figure shares: the look, the palette, and a way to the disk that gives equal bytes for equal numbers."""

import io
from collections.abc import Iterable
from contextlib import AbstractContextManager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

# Okabe and Ito 2008: distinct with any common colour blindness. Yellow is left out: unreadable as a line on white.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, INK = "#767676", "#222222"
# Further methods take colours of Tol 2021 (muted) and ColorBrewer (dark), each far from the six and from grey.
WINE, INDIGO, OLIVE, BROWN, ROSE, LIME = "#882255", "#332288", "#999933", "#8C564B", "#E7298A", "#7FBC41"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, WINE, INDIGO, OLIVE, BROWN, ROSE, LIME)
DPI = 170
MARKERS = "osD^vP<"  # seven, with twelve colours: 84 methods differ in one of the two
BEFORE_STYLES = {"base": (GREY, "X"), "sft": (INK, "*")}

LOOK = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8.5,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "prefdag",  # else every file gets random ids
    "text.color": INK,
    "xtick.color": "#555555",
    "xtick.labelsize": 8,
    "ytick.color": "#555555",
    "ytick.labelsize": 8,
}


def use_style() -> AbstractContextManager:
    """The style, without touching the caller's."""
    return matplotlib.rc_context(LOOK)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches that belongs to no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG. Layout and each drawing take as long as one another: `savefig` would draw twice."""
    png, svg = io.BytesIO(), io.BytesIO()
    with use_style():
        figure.set(dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # solves the layout
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each method, in the order in which the suite names them."""
    styles = dict(BEFORE_STYLES)
    others = [method for method in dict.fromkeys(methods) if method not in styles]
    styles |= {method: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, method in enumerate(others)}
    return styles


def shades(number: int) -> list:
    """`number` colours from dark to light, distinct also in grey; for settings of one method."""
    ramp = matplotlib.colormaps["viridis"]
    return [BLUE] if number == 1 else [ramp(0.85 * i / (number - 1)) for i in range(number)]


def place_labels(axes: Axes, points: np.ndarray, texts: list[str], colours: list[str], obstacles: np.ndarray) -> None:
    """Write `texts` next to `points` [N, 2] (data units), each where it hides least.

    obstacles: [M, 2] in data units, what labels should stay clear of (markers, points along bars and lines).
    Greedy, so equal inputs give equal places.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # fixes the axes' place, which pixels depend on
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    taken: list[np.ndarray] = []
    pixels, clear_of = axes.transData.transform(points), axes.transData.transform(obstacles)
    for point, text, colour in zip(pixels, texts, colours, strict=True):
        artist = axes.annotate(
            text, (0, 0), xycoords="figure pixels", fontsize=7.5, color=colour, va="bottom", zorder=6
        )
        extent = artist.get_window_extent(renderer)
        boxes = [_box(point, extent.width, extent.height, *way) for way in _ways()]
        costs = [_cost(box, clear_of, taken, frame.extents) + 0.01 * i for i, box in enumerate(boxes)]
        best = boxes[int(np.argmin(costs))]
        taken.append(best)
        artist.remove()
        shift = (best[:2] - point) * 72 / figure.dpi
        x, y = axes.transData.inverted().transform(point)
        halo = [withStroke(linewidth=2, foreground="white")]
        style = {"fontsize": 7.5, "color": colour, "va": "bottom", "zorder": 6, "path_effects": halo}
        axes.annotate(text, (x, y), shift, textcoords="offset points", **style)


def _ways() -> list[tuple[float, float, float]]:
    """(dx, dy, distance in pixels): near before far, right and above before left and below."""
    around = [(1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0)]
    return [(dx, dy, distance) for distance in (7, 12, 18, 26) for dx, dy in around]


def _box(point: np.ndarray, width: float, height: float, dx: float, dy: float, distance: float) -> np.ndarray:
    """x0, y0, x1, y1 of a label at a `distance` from `point` in the direction (dx, dy)."""
    reach = distance / np.hypot(dx, dy)
    x = point[0] + dx * reach - (1 - dx) / 2 * width
    y = point[1] + dy * reach - (1 - dy) / 2 * height
    return np.array([x, y, x + width, y + height])


def _cost(box: np.ndarray, points: np.ndarray, taken: list[np.ndarray], frame: tuple) -> float:
    """Points under the box or within 3 pixels, forty for each label it would cross, a hundred for leaving the axes."""
    inside = (points > box[:2] - 3).all(axis=1) & (points < box[2:] + 3).all(axis=1)
    crossed = sum((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in taken)
    outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
    return float(inside.sum() + 40 * crossed + 100 * outside)
