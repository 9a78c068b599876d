"""Plots as SVG text. No plotting library: the page must carry light and dark in one picture, by CSS variables, in a few kB each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 46
COLORS = 8  # --c0 ... --c7 of page.css
SHAPES = 7


def style(index: int) -> str:
    return f"var(--c{index % COLORS})"


def fixed(x: float) -> str:
    return f"{x:.1f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Scale:
    """Numbers low..high to pixels start..stop."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, x: float) -> float:
        low, high, x = (math.log10(v) for v in (self.low, self.high, max(x, self.low))) if self.log else (self.low, self.high, x)
        return self.start + (x - low) / (high - low) * (self.stop - self.start)

    def inside(self, x: float) -> float:
        return self(min(self.high, max(self.low, x)))

    @property
    def ticks(self) -> list[float]:
        if self.log:
            return log_ticks(self.low, self.high)
        step = nice((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice(x: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(x))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= x * 0.999)


def log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), range(1, 10)):
        found = [m * 10.0**p for p in powers for m in steps if low * 0.999 <= m * 10.0**p <= high * 1.001]
        if len(found) >= 3:
            return found
    return [low, high]


def scale(values: Iterable[float], start: float, stop: float, log: bool = False, zero: bool = False) -> Scale:
    """Over all finite values, with room around them. zero: 0 is on it."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(known), max(known)
    if log:
        pad = max((high / low) ** 0.06, 1.06)
        return Scale(low / pad, high * pad, start, stop, True)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    pad = (high - low) * 0.07 or abs(high) * 0.1 or 1.0
    return Scale(low if zero and low == 0 else low - pad, high + pad, start, stop)


def tick_text(x: float) -> str:
    if x == 0 or abs(x) < 1e-12:
        return "0"
    if 1e-3 <= abs(x) < 1e5:
        return f"{x:.4g}"
    digits, exponent = f"{x:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "", fill: str = "", rotate: bool = False) -> str:
    where = f' transform="rotate(-90 {fixed(x)} {fixed(y)})"' if rotate else ""
    color = f' style="fill:{fill}"' if fill else ""
    return f'<text x="{fixed(x)}" y="{fixed(y)}" text-anchor="{anchor}" class="{kind}"{color}{where}>{escape(content)}</text>'


def line(points: Sequence[tuple[float, float]], color: str, width: float = 1.8, dash: str = "", opacity: float = 1.0,
         title: str = "") -> str:
    if len(points) < 2:
        return ""
    path = "M" + "L".join(f"{fixed(x)} {fixed(y)}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<path d="{path}" fill="none" style="stroke:{color}" stroke-width="{width}" stroke-opacity="{opacity}" '
            f'stroke-linejoin="round"{dashed}>{titled(title)}</path>')


def titled(title: str) -> str:
    return f"<title>{escape(title)}</title>" if title else ""


def marker(x: float, y: float, index: int, title: str = "", r: float = 4.5) -> str:
    """One of seven shapes, in the colour of the same index: no two of the first 56 are alike."""
    corners = {1: (4, 45), 2: (3, -90), 3: (4, 0), 4: (3, 90), 5: (5, -90), 6: (6, 0)}
    shape = index % SHAPES
    if shape == 0:
        body = f'<circle cx="{fixed(x)}" cy="{fixed(y)}" r="{r}"'
        end = "</circle>"
    else:
        n, turn = corners[shape]
        angles = [math.radians(turn + 360 * k / n) for k in range(n)]
        reach = r * 1.25
        body = '<polygon points="' + " ".join(f"{fixed(x + reach * math.cos(a))},{fixed(y + reach * math.sin(a))}" for a in angles) + '"'
        end = "</polygon>"
    return f'{body} style="fill:{style(index)}" class="mark">{titled(title)}{end}'


def bar(x0: float, y0: float, x1: float, y1: float, color: str) -> str:
    return (f'<path d="M{fixed(x0)} {fixed(y0)}L{fixed(x1)} {fixed(y1)}" style="stroke:{color}" stroke-width="1.3" '
            'stroke-opacity="0.65" fill="none"/>')


def frame(x: Scale, y: Scale, x_label: str, y_label: str, ticks: Sequence[tuple[float, str]] = ()) -> list[str]:
    """Grid, ticks and labels of the axes. ticks: of x, in place of its own."""
    left, right, bottom, top = x.start, x.stop, y.start, y.stop
    parts = []
    for v in y.ticks:
        parts.append(f'<path d="M{fixed(left)} {fixed(y(v))}H{fixed(right)}" class="grid"/>')
        parts.append(text(left - 6, y(v) + 4, tick_text(v), "end", "tick"))
    for v, name in ticks or [(v, tick_text(v)) for v in x.ticks]:
        parts.append(f'<path d="M{fixed(x(v))} {fixed(bottom)}v4" class="axis"/>')
        parts.append(text(x(v), bottom + 17, name, "middle", "tick"))
    parts.append(f'<path d="M{fixed(left)} {fixed(top)}V{fixed(bottom)}H{fixed(right)}" class="axis"/>')
    parts.append(text((left + right) / 2, bottom + 37, x_label, "middle", "label"))
    parts.append(text(14, (top + bottom) / 2, y_label, "middle", "label", rotate=True))
    return parts


def picture(parts: Iterable[str], title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    return (f'<svg viewBox="0 0 {fixed(width)} {fixed(height)}" role="img" '
            f'aria-label="{escape(title)}">' + "".join(filter(None, parts)) + "</svg>")


# labels that do not collide

def text_width(content: str, size: float = 11.5) -> float:
    return 0.56 * size * len(content)


def place(points: Sequence[tuple[float, float]], names: Sequence[str], x: Scale, y: Scale,
          crossed: Sequence[tuple[float, float, float, float]] = ()) -> list[tuple[float, float]]:
    """Where the label of each point begins: beside it, where it covers least of the points, of other labels and of what is crossed."""
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in points]
    chosen = []
    for (px, py), name in zip(points, names, strict=True):
        width = text_width(name)
        around = [(px + dx if dx > 0 else px + dx - width, py + dy) for dy in (-7, 16, 4, -20, 29, -33, 42) for dx in (8, -8)]
        around += [(px - width / 2, py + dy) for dy in (-10, 19)]

        def cost(at, width=width):
            box = label_box(*at, width)
            outside = (max(0, x.start - box[0]) + max(0, box[2] - x.stop - RIGHT + 2) + max(0, y.stop - box[1]) + max(0, box[3] - y.start))
            return 60 * outside + sum(overlap(box, other) for other in taken) + 0.5 * sum(overlap(box, other) for other in crossed)

        best = min(around, key=cost)  # the first of equals is the nearest
        taken.append(label_box(*best, width))
        chosen.append(best)
    return chosen


def label_box(left: float, base: float, width: float) -> tuple[float, float, float, float]:
    return left, base - 10, left + width, base + 3


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The same heights moved apart by gap at least, within low..high, in the same order."""
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    gap = min(gap, (high - low) / max(1, len(heights) - 1)) if len(heights) > 1 else gap
    moved = [0.0] * len(heights)
    below = low - gap
    for k in order:
        below = moved[k] = max(heights[k], below + gap)
    above = high + gap
    for k in reversed(order):
        above = moved[k] = min(moved[k], above - gap)
    return moved
