"""Line charts as inline SVG. Colours are CSS variables of the page, so that one drawing serves light and dark."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import floor, log10
from typing import Final

import msgspec

WIDTH: Final = 720
HEIGHT: Final = 240
LEFT: Final = 56
RIGHT: Final = 12
TOP: Final = 10
BOTTOM: Final = 28
COLOURS: Final = 6
"""`--line-0` … of the page; lines beyond take them again, dashed."""
TICKS: Final = 5

Values = Sequence[float | None]
_Scale = Callable[[float], float]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    values: Values
    colour: int
    dashed: bool = False


def lines_of(named: Mapping[str, Values]) -> list[Line]:
    return [
        Line(name=name, values=values, colour=index % COLOURS, dashed=index >= COLOURS)
        for index, (name, values) in enumerate(named.items())
    ]


def chart(title: str, unit: str, at_s: Sequence[float], lines: Sequence[Line], *, top: float | None = None) -> str:
    """A figure with a legend. `top` fixes the upper end of the vertical axis."""
    present = [value for line in lines for value in line.values if value is not None]
    high = top or _round_up(max(present, default=0.0))
    end_s = at_s[-1] if at_s else 1.0

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / end_s

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, value / high)

    body = [_grid(high, end_s, x, y)]
    for line in lines:
        path = _path(
            [(x(at), y(value)) if value is not None else None for at, value in zip(at_s, line.values, strict=True)]
        )
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        body.append(
            f'<path d="{path}" fill="none" stroke="var(--line-{line.colour})" stroke-width="1.8"{dash}>'
            f"<title>{escape(line.name)}</title></path>"
        )
    legend = "".join(
        f'<li><i style="border-top:3px {"dashed" if line.dashed else "solid"} var(--line-{line.colour})"></i>'
        f"{escape(line.name)}</li>"
        for line in lines
    )
    return (
        f"<figure><figcaption>{escape(title)} <small>{escape(unit)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
        f"<ul>{legend}</ul></figure>"
    )


def _grid(high: float, end_s: float, x: _Scale, y: _Scale) -> str:
    parts = []
    for number in range(TICKS + 1):
        value = high * number / TICKS
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
        at_s = end_s * number / TICKS
        anchor = "end" if number == TICKS else "middle"
        parts.append(f'<text x="{x(at_s):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_time(at_s)}</text>')
    return "".join(parts)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Gaps where there is no value; a lone point is drawn as a short dash."""
    parts: list[str] = []
    drawing = False
    for point in points:
        if point is None:
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{point[0]:.1f} {point[1]:.1f}" + ("" if drawing else "h.5"))
        drawing = True
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10 … times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _time(seconds: float) -> str:
    if seconds >= 3 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 180 else f"{seconds:.0f} s"
