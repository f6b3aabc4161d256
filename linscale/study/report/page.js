"use strict";
// Draws the three figures from the JSON beside it, in the colours of the page; redrawn when the colour scheme changes.
const figures = JSON.parse(document.getElementById("figures").textContent);
const SUPERSCRIPT = { "-": "\u207b", 0: "\u2070", 1: "\u00b9", 2: "\u00b2", 3: "\u00b3", 4: "\u2074", 5: "\u2075", 6: "\u2076", 7: "\u2077", 8: "\u2078", 9: "\u2079" };

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function translucent(hex, alpha) {
  const part = (start) => parseInt(hex.slice(start, start + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
}

function tick(value) {
  const power = Math.floor(Math.log10(value) + 1e-9);
  const digit = Math.round(value / 10 ** power);
  const ten = "10" + String(power).split("").map((c) => SUPERSCRIPT[c]).join("");
  return digit === 1 ? ten : digit + "\u00d7" + ten;
}

// A log axis with ticks written out: powers of ten, joined by 2 and 5 where less than two decades are shown.
function logAxis(title, values, plain, colors) {
  const low = Math.min(...values), high = Math.max(...values);
  const decades = Math.log10(high / low);
  const digits = decades < 0.6 ? [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9] : decades < 2.5 ? [1, 2, 5] : [1];
  const step = Math.max(1, Math.ceil(decades / 7));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)) + 1; power++) {
    if (((power % step) + step) % step === 0) ticks.push(...digits.map((digit) => digit * 10 ** power));
  }
  const pad = Math.max(0.02, 0.04 * decades);
  return {
    type: "log", title: { text: title, font: { size: 13 } }, range: [Math.log10(low) - pad, Math.log10(high) + pad],
    tickvals: ticks, ticktext: ticks.map((value) => (plain ? String(+value.toPrecision(3)) : tick(value))),
    gridcolor: colors.grid, linecolor: colors.rule, zeroline: false, showline: true, ticks: "outside", tickcolor: colors.rule,
    automargin: true,
  };
}

function tracesOf(figure) {
  const traces = [];
  for (const group of figure.groups) {
    const color = variable(`--series-${group.series % 8}`);
    const shared = { legendgroup: group.name, showlegend: false, type: "scatter" };
    const hover = `${group.name}<br>C %{x:.3g}<br>${figure.symbol} %{y:.4g}<extra></extra>`;
    for (const curve of group.curves) {
      const text = curve.tokens.map((t) => `${group.name} ${curve.run}<br>N ${curve.params.toPrecision(3)}, D ${t.toPrecision(3)}`);
      traces.push({ ...shared, x: curve.x, y: curve.y, text, mode: "lines", opacity: 0.45, line: { color, width: 1 },
        hovertemplate: "%{text}<br>C %{x:.3g}<br>L %{y:.4f}<extra></extra>" });
    }
    if (group.band) {
      traces.push({ ...shared, x: group.band.x.concat([...group.band.x].reverse()), y: group.band.high.concat([...group.band.low].reverse()),
        mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: translucent(color, 0.18), hoverinfo: "skip" });
    }
    if (group.points) {
      traces.push({ ...shared, ...group.points, mode: "markers", marker: { color, size: 4, opacity: 0.75 }, hovertemplate: hover });
    }
    if (group.published) {
      traces.push({ ...shared, ...group.published, mode: "lines", line: { color, width: 1.5, dash: "dot" },
        hovertemplate: `${group.name}, published<br>C %{x:.3g}<br>${figure.symbol} %{y:.4g}<extra></extra>` });
    }
    const line = group.line || { x: [null], y: [null] };
    traces.push({ ...shared, ...line, name: group.name, showlegend: true, mode: "lines", line: { color, width: 2.5 }, hovertemplate: hover });
  }
  return traces;
}

function draw(figure) {
  const colors = { grid: variable("--grid"), rule: variable("--rule"), ink: variable("--ink") };
  const traces = tracesOf(figure);
  const finite = (axis) => traces.flatMap((trace) => trace[axis]).filter((value) => value > 0);
  if (!finite("x").length) return;
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 8, b: 8 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colors.ink },
    xaxis: logAxis("Compute C (PFLOP/s-days)", finite("x"), false, colors),
    yaxis: logAxis(figure.title, finite("y"), figure.symbol === "L", colors),
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", groupclick: "togglegroup" },
    hoverlabel: { bgcolor: variable("--paper"), bordercolor: colors.rule, font: { color: colors.ink } },
    hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
  };
  Plotly.react(figure.id, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false });
}

function drawAll() {
  figures.forEach(draw);
}

drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
