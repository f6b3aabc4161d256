"""Draw what was found of linearized models by length: perplexity of novels by position, and the easy needle.

python experiments/linearize/chart.py experiments/results/supra.json [--out docs/results/supra.svg]
"""

from __future__ import annotations

import argparse
import json
import math
from html import escape
from pathlib import Path

from page import NEEDLES, Row, by_length, curve

WIDTH, HEIGHT = 440, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 74, 46
COLOURS = ("#333333", "#c8553d", "#d9a441", "#1b6ca8", "#4f8a4b", "#7a5ba6", "#4fa3a5")
OUT = Path(__file__).parent.parent.parent / "docs" / "results" / "supra.svg"
WORST = 200.0  # perplexities above are drawn there
Points = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.write_text(chart(json.loads(options.json.read_text())["rows"]))
    print(f"written to {options.out}")


def chart(rows: list[Row]) -> str:
    """An SVG of two panels, a line an arm in each."""
    losses = {row["arm"]: [(place, min(each, WORST)) for place, each in curve(row)] for row in rows}
    found = {row["arm"]: [(length, 100 * each) for length, each in by_length(row, NEEDLES[0]).items()] for row in rows}
    most = max((math.log10(y) for points in losses.values() for _, y in points), default=2)
    least = min((math.log10(y) for points in losses.values() for _, y in points), default=1)
    left = panel(
        "Perplexity of novels by position", losses, (math.floor(5 * least) / 5, math.ceil(5 * most) / 5), log=True
    )
    right = panel("Easy needle found, percent", found, (0, 100), log=False)
    named = sorted({f"{row['device']}, linscale {row['code']}" for row in rows})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 28}" font-family="sans-serif"'
        f' font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{left}\n'
        f'<g transform="translate({WIDTH} 0)">{right}</g>\n'
        f'<text x="{LEFT}" y="{HEIGHT + 18}" fill="#666" font-size="11">{escape("; ".join(named))}</text>\n</svg>\n'
    )


def panel(title: str, series: dict[str, Points], bounds: tuple[float, float], *, log: bool) -> str:
    """Lines over tokens, in octaves; `bounds` are those of y, or of its logarithm."""
    xs = [math.log2(x) for points in series.values() for x, _ in points] or [0.0, 1.0]
    first, last = min(xs), max(max(xs), min(xs) + 1)
    low, high = bounds

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log2(x) - first) / (last - first), ((math.log10(y) if log else y) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{title}</text>']
    for power in range(math.ceil(first), math.floor(last) + 1):
        x, bottom = place(2.0**power, 10**low if log else low)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{short(2**power)}</text>')
    for step in range(6):
        level = low + step / 5 * (high - low)
        x, y = place(2.0**first, 10**level if log else level)
        shown = 10**level if log else level
        parts.append(f'<line x1="{x}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{shown:.3g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end" fill="#666">tokens</text>')
    for number, (arm, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = LEFT + 120 * (number % 3), 40 + 16 * (number // 3)
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{escape(arm)}</text>')
    return "\n".join(parts)


def short(count: int) -> str:
    """2k for 2048."""
    return str(count) if count < 1024 else f"{count // 1024}k"


if __name__ == "__main__":
    main()
