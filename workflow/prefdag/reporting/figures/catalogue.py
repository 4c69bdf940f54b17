"""Collect the figures of a report: a figure is one function of its results, registered by `Catalogue.add`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.figure import Figure

Draw = TypeVar("Draw", bound=Callable[[Any], Figure | None])


@dataclass(frozen=True)
class Entry:
    """One figure: written as figures/<name>.png and .svg, and shown with its caption in a section of the page."""

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[Any], Figure | None]


class Catalogue(dict[str, Entry]):
    """Figures by name, in the order of the page."""

    def add(self, title: str, caption: str, section: str = "more") -> Callable[[Draw], Draw]:
        """Register a function as a figure, by the function's name.

        Args:
            title: the figure in one line, for readers who cannot see it.
            caption: what it shows, in HTML.
            section: id of a section of the page, such as `training`; `more` is the page's last.
        """

        def register(draw: Draw) -> Draw:
            name = getattr(draw, "__name__", "")
            assert name and name not in self, f"two figures are called {name!r}"
            self[name] = Entry(name, section, title, caption, draw)
            return draw

        return register

    def draw(self, results: Any) -> dict[str, Figure]:
        """Draw every figure; a function that returns None has nothing to show of these results."""
        figures = {name: entry.draw(results) for name, entry in self.items()}
        return {name: figure for name, figure in figures.items() if figure is not None}
