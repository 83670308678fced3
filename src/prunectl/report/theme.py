"""Colours and lettering, in light and in dark.

Series take the colours of Okabe and Ito, which people with any colour vision tell apart ("Color
Universal Design", 2008), made a little darker on white and lighter on black; ramps are viridis
without the end that would sink into the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours as CSS writes them.

    Attributes:
        text, muted: of letters. line, grid: of axes and of rules behind the data.
        page, card: backgrounds of the page and of what lies on it.
        accent: of controls. good, bad: of areas within and beyond what is tolerated.
        series: one for each curve. ramp: from low to high.
    """

    text: str
    muted: str
    line: str
    grid: str
    page: str
    card: str
    accent: str
    good: str
    bad: str
    series: tuple[str, ...]
    ramp: tuple[str, ...]


LIGHT = Theme(
    text="#1b1f24",
    muted="#57606a",
    line="#8c959f",
    grid="#e6e9ed",
    page="#f6f7f9",
    card="#ffffff",
    accent="#0b6bcb",
    good="#1a7f5a",
    bad="#b3261e",
    series=(
        "#0072b2", "#d55e00", "#009e73", "#b0588f", "#c88700", "#5c5c5c", "#3d9bd6", "#8a6d00",
    ),
    ramp=("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30"),
)  # fmt: skip

DARK = Theme(
    text="#e6e9ee",
    muted="#9aa4b0",
    line="#6b7684",
    grid="#2a313b",
    page="#0f1318",
    card="#171c23",
    accent="#5aa9f0",
    good="#3fbf8f",
    bad="#ff7b6b",
    series=(
        "#56b4e9", "#ff8a3d", "#2bc79a", "#e59ac6", "#f0b429", "#bfc6d0", "#7aa2ff", "#f0e442",
    ),
    ramp=("#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26",
          "#fde725"),
)  # fmt: skip

DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))
"""Dashes of a line after each round of the colours."""


def vega_config(theme: Theme, *, font: str = FONT) -> dict[str, Any]:
    """What a chart needs to know of a theme, as Vega-Lite's ``config``."""
    axis = {
        "domainColor": theme.line, "tickColor": theme.line, "gridColor": theme.grid,
        "labelColor": theme.muted, "titleColor": theme.text, "titleFontWeight": 500,
        "labelFontSize": 12, "titleFontSize": 12, "titlePadding": 10, "labelFlush": False,
        "labelLimit": 185,
    }  # fmt: skip
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {
            "labelColor": theme.text, "titleColor": theme.muted, "labelFontSize": 12,
            "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 320, "symbolSize": 90,
            "orient": "top", "direction": "vertical", "rowPadding": 4,
        },
        "title": {"color": theme.text, "fontSize": 15, "fontWeight": 600, "anchor": "start",
                  "subtitleColor": theme.muted, "subtitleFontSize": 12, "offset": 12},
        "text": {"color": theme.text, "fontSize": 12},
        "rule": {"color": theme.line},
        "range": {"category": list(theme.series), "ramp": list(theme.ramp),
                  "heatmap": list(theme.ramp), "ordinal": list(theme.ramp)},
        "style": {
            "tolerated": {"fill": theme.good, "fillOpacity": 0.13, "color": theme.good},
            "bound": {"color": theme.good, "stroke": theme.good},
            "dense": {"color": theme.muted, "stroke": theme.muted},
            "note": {"color": theme.muted, "fill": theme.muted, "fontSize": 11},
            "failed": {"color": theme.bad, "stroke": theme.bad},
            "halo": {"stroke": theme.card},
            "first": {"color": theme.series[0]},
        },
    }  # fmt: skip


def css_variables(theme: Theme) -> str:
    """The same for the page around the charts, as CSS custom properties."""
    names = ("text", "muted", "line", "grid", "page", "card", "accent", "good", "bad")
    series = "".join(f"--series-{i}:{colour};" for i, colour in enumerate(theme.series))
    return "".join(f"--{name}:{getattr(theme, name)};" for name in names) + series
