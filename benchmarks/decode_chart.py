"""Draw what decode.py found by length: ms a token and bytes of the state, over the position in the text.

python benchmarks/decode_chart.py benchmarks/results/DATE-DEVICE-decode.json [--out docs/results/decode.svg]
"""

from __future__ import annotations

import argparse
import json
import math
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 48, 46
COLOURS = {"tnl": "#1b6ca8", "hgrn2": "#c8553d", "cosformer2": "#4f8a4b", "llama": "#7a5ba6"}
NAMES = {"tnl": "TNL", "hgrn2": "HGRN2", "cosformer2": "cosFormer2", "llama": "LLaMA"}
OUT = Path(__file__).parent.parent / "docs" / "results" / "decode.svg"
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
Points = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what decode.py wrote, with its section `length`")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(chart(json.loads(options.json.read_text())))
    print(f"written to {options.out}")


def chart(record: dict[str, Any]) -> str:
    """An SVG of two panels."""
    rows = [row for row in record["length"] if "ms" in row]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    panels = [
        panel(title, {arch: [(row["tokens"], row[key]) for row in rows if row["arch"] == arch] for arch in archs}, unit)
        for title, key, unit in (("Time of a token", "ms", " ms"), ("State of a text", "state_bytes", "B"))
    ]
    shape = record["shape"]
    caption = (
        f"{record['device']}, {record['date']}: {shape['n_layers']} layers of {shape['d_model']}, one text, greedy;"
        f" linscale {record['code']}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 28}" font-family="sans-serif"'
        f' font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{panels[0]}\n'
        f'<g transform="translate({WIDTH} 0)">{panels[1]}</g>\n'
        f'<text x="{LEFT}" y="{HEIGHT + 18}" fill="#666" font-size="11">{escape(caption)}</text>\n</svg>\n'
    )


def panel(title: str, series: dict[str, Points], unit: str) -> str:
    """A line an architecture, both axes logarithmic and to whole powers of ten."""
    xs, ys = zip(*(point for points in series.values() for point in points), strict=True)
    x_range, y_range = whole(xs), whole(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (
            (math.log10(value) - low) / (high - low)
            for value, (low, high) in ((x, x_range), (y, y_range))
        )  # fmt: skip
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{title}</text>']
    for power in range(x_range[0], x_range[1] + 1):
        x, bottom = place(10.0**power, 10.0 ** y_range[0])
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{short(10.0**power)}</text>')
    for power in range(y_range[0], y_range[1] + 1):
        x, y = place(10.0 ** x_range[0], 10.0**power)
        parts.append(f'<line x1="{x}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        label = short(10.0**power) + unit
        parts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end" fill="#666">tokens before it</text>')
    for number, (arch, points) in enumerate(series.items()):
        places = [place(*point) for point in points]
        colour, line = COLOURS[arch], " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{LEFT + 84 * number}" y="38" fill="{colour}">{NAMES[arch]}</text>')
    return "\n".join(parts)


def whole(values: tuple[float, ...]) -> tuple[int, int]:
    """The powers of ten around values."""
    low, high = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    return low, max(high, low + 1)


def short(value: float) -> str:
    """1 M for a million."""
    for size, letter in UNITS:
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}" + (" " if value >= 1 else "")


if __name__ == "__main__":
    main()
