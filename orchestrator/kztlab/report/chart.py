# SPDX-License-Identifier: GPL-2.0-or-later
"""Charts over time, as the plain data that plotly.js draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kztlab.report.series import Series, Window

PALETTE = (
    *("#2563a8", "#c4600c", "#23815a", "#8a46b8", "#b3342f", "#0e7f8c"),
    *("#7a5c1e", "#5a6acf", "#a83279", "#4d7c0f"),
)
"""Guests' colours, in the order of the file: dark enough for lines and text on white."""

INK = "#1c2430"
QUIET = "#6b7685"
_GRID = "#e7ebf0"
_GAP = "#f7e9e7"


@dataclass
class Chart:
    """One chart: what it shows, in words and in data. Its times are monotonic ones; it draws
    `seconds` from `origin` on."""

    title: str
    explanation: str
    unit: str
    origin: float
    seconds: float
    traces: list[dict[str, Any]] = field(default_factory=list)
    _shapes: list[dict[str, Any]] = field(default_factory=list)
    _labels: list[dict[str, Any]] = field(default_factory=list)

    def line(
        self,
        name: str,
        series: Series,
        color: str,
        *,
        dash: str = "solid",
        filled: bool = False,
        hover: str = "%{y:,.1f}",
    ) -> None:
        """Adds a line, with its area if `filled`. Gaps of the series stay open."""
        trace = self._trace(name, series, color, hover)
        trace["line"] |= {"dash": dash}
        if filled:
            trace |= {"fill": "tozeroy", "fillcolor": tint(color)}
        self.traces.append(trace)

    def level(self, name: str, value: float, series: Series) -> None:
        """Adds a horizontal line, such as a limit, over the time of a series."""
        if not series.times:
            return
        ends = [series.times[0] - self.origin, series.times[-1] - self.origin]
        self.traces.append(
            {
                "name": name,
                "x": [round(end, 2) for end in ends],
                "y": [value, value],
                "mode": "lines",
                "line": {"color": INK, "width": 1.2, "dash": "dot"},
                "hovertemplate": "%{y:,.1f}",
            }
        )

    def stack(self, parts: Sequence[tuple[str, Series, str]]) -> None:
        """Adds areas on top of each other. All parts have the same times.

        Drawn as full areas from the largest sum down, each over the one before: unlike plotly's own
        stacks, which take a gap for a zero.
        """
        sums: list[float | None] = [0.0] * len(parts[0][1].times) if parts else []
        layers: list[dict[str, Any]] = []
        for name, series, color in parts:
            sums = [
                None if below is None or value is None else below + value
                for below, value in zip(sums, series.values, strict=True)
            ]
            trace = self._trace(name, series, color, "%{customdata:,.1f}")
            trace |= {
                "y": _rounded(sums),
                "customdata": _rounded(series.values),
                "fill": "tozeroy",
                "fillcolor": tint(color),
                "legendrank": len(layers) + 1,
            }
            layers.append(trace)
        self.traces.extend(reversed(layers))

    def shade(self, windows: Sequence[tuple[Window, str]], color: str) -> None:
        """Marks stretches of time, such as a workload's, with a label each."""
        for (start, end), label in windows:
            self._shapes.append(self._band(start, end, color, 0.07))
            self._labels.append(
                {
                    "x": round(start - self.origin, 2),
                    "y": 1,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "xanchor": "left",
                    "text": label,
                    "showarrow": False,
                    "font": {"size": 10, "color": QUIET},
                }
            )

    def mark_gaps(self, gaps: Sequence[Window]) -> None:
        """Covers stretches of time without samples, which plotly fills areas across."""
        for start, end in gaps:
            self._shapes.append(self._band(start, end, _GAP, 1) | {"layer": "above"})

    def figure(self) -> dict[str, Any]:
        """What ``Plotly.newPlot`` takes."""
        axis: dict[str, Any] = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": "#c4ccd6"}
        axis |= {"tickfont": {"size": 11, "color": QUIET}}
        title: dict[str, Any] = {"font": {"size": 11, "color": QUIET}, "standoff": 6}
        return {
            "data": self.traces,
            "layout": {
                "height": 270,
                "margin": {"l": 58, "r": 14, "t": 46, "b": 42},
                "font": {"family": "inherit", "size": 12, "color": INK},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "#ffffff",
                "hovermode": "x unified",
                "showlegend": True,
                "legend": {"orientation": "h", "x": 0, "y": 1.09, "yanchor": "bottom"}
                | {"font": {"size": 11}, "traceorder": "normal"},
                "xaxis": axis
                | {"title": title | {"text": "time since start [s]"}, "hoverformat": ".1f"}
                | {"ticksuffix": " ", "range": [0, self.seconds], "showline": True},
                "yaxis": axis
                | {"title": title | {"text": self.unit}, "rangemode": "tozero"}
                | {"tickformat": ",~r", "automargin": True},
                "shapes": self._shapes,
                "annotations": self._labels,
            },
            "config": {"displayModeBar": False, "responsive": True},
        }

    def _trace(self, name: str, series: Series, color: str, hover: str) -> dict[str, Any]:
        return {
            "name": name,
            "x": [round(time - self.origin, 2) for time in series.times],
            "y": _rounded(series.values),
            "mode": "lines",
            "connectgaps": False,
            "line": {"color": color, "width": 1.7},
            "hovertemplate": hover,
        }

    def _band(self, start: float, end: float, color: str, opacity: float) -> dict[str, Any]:
        return {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": round(start - self.origin, 2),
            "x1": round(end - self.origin, 2),
            "y0": 0,
            "y1": 1,
            "fillcolor": color,
            "opacity": opacity,
            "line": {"width": 0},
            "layer": "below",
        }


def tint(color: str) -> str:
    """A colour as the pale, opaque filling of its area."""
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{255 - (255 - part) * 30 // 100:02x}" for part in parts)


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 3) for value in values]
