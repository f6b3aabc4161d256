"use strict";
// Turns the figures in the JSON beside it into what Plotly draws, in the colours of the page.
const page = JSON.parse(document.getElementById("figures").textContent);
const SUPERSCRIPT = { "-": "\u207b", 0: "\u2070", 1: "\u00b9", 2: "\u00b2", 3: "\u00b3", 4: "\u2074", 5: "\u2075", 6: "\u2076", 7: "\u2077", 8: "\u2078", 9: "\u2079" };
const PREFIXES = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon", "star"];
const LABEL = { width: 72, height: 28 }; // pixels that the text at a tick takes with what parts it from the next
const MANY = 400; // points of one group, from which they are drawn small
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
const groups = new Map(page.groups.map((group) => [group.id, group]));
const hidden = new Set(); // names of the groups that are not shown
let palette = document.documentElement; // the element whose colours are used

function variable(name) {
  return getComputedStyle(palette).getPropertyValue(name).trim();
}

function seriesColor(group) {
  return group ? variable(`--series-${group.series % 8}`) : variable("--muted");
}

function translucent(hex, alpha) {
  const part = (start) => parseInt(hex.slice(start, start + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
}

// Compute: 10\u207b\u2079, 2\u00d710\u207b\u2079, 1.26\u00d710\u207b\u2079; plain between 0.001 and 1000.
function power(value) {
  if (value > 0.99e-3 && value < 1e3) return String(+value.toPrecision(3));
  const [mantissa, exponent] = value.toExponential(2).split("e");
  const ten = "10" + String(+exponent).split("").map((c) => SUPERSCRIPT[c]).join("");
  return +mantissa === 1 ? ten : +mantissa + "\u00d7" + ten;
}

// Parameters and tokens: 12.5k, 3M.
function human(value) {
  const [size, prefix] = PREFIXES.find(([least]) => value >= least * 0.9995) || [1, ""];
  return +(value / size).toPrecision(3) + prefix;
}

function short(value) {
  return String(+value.toPrecision(4)).replace("-", "\u2212");
}

const TEXTS = {
  power, human, number: short,
  loss: (value) => String(+value.toFixed(3)),
  percent: (value) => `${short(+value.toPrecision(3))}%`,
};
const EXTRA_TEXTS = { params: human, tokens: human, compute_pflop_s_days: power, step: String, row: String };

// A name within a hover text, which would read tags.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function frameOfAxis(title, size = 13) {
  return { title: { text: title, font: { size } }, gridcolor: variable("--grid"), linecolor: variable("--rule"), zeroline: false,
    showline: true, ticks: "outside", tickcolor: variable("--rule"), automargin: true };
}

// A log axis over [low, high] with ticks written out: powers of ten, joined by more digits where few decades are shown.
function logAxis(title, low, high, text) {
  const decades = Math.max(Math.log10(high / low), 1e-6);
  const digits = decades < 0.6 ? [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9] : decades < 2.5 ? [1, 2, 5] : [1];
  const step = Math.max(1, Math.ceil(decades / 7));
  const ticks = [];
  for (let exponent = Math.floor(Math.log10(low)) - 2; exponent <= Math.ceil(Math.log10(high)) + 2; exponent++) {
    if (((exponent % step) + step) % step === 0) ticks.push(...digits.map((digit) => digit * 10 ** exponent));
  }
  const tickvals = decades < 0.4 ? evenTicks(low, high) : ticks;
  const pad = Math.max(0.01, 0.04 * decades);
  return { ...frameOfAxis(title), type: "log", range: [Math.log10(low) - pad, Math.log10(high) + pad], tickvals, ticktext: tickvals.map(text) };
}

// The axis with fewer ticks where its labels would meet: they are `apart` from each other, as a share of the axis.
function thinned(axis, text, apart, [low, high] = axis.range) {
  const ticks = [];
  const place = (value) => (Math.log10(value) - low) / (high - low);
  const within = axis.tickvals.filter((value) => place(value) >= 0 && place(value) <= 1);
  const powers = within.filter((value) => Number.isInteger(+Math.log10(value).toFixed(6)));
  for (const value of [...powers, ...within]) { // powers of ten first
    if (ticks.every((other) => Math.abs(place(value) - place(other)) >= apart)) ticks.push(value);
  }
  return { ...axis, tickvals: ticks, ticktext: ticks.map(text), tickangle: 0 };
}

// Round values, evenly apart, over and around a range of less than a third.
function evenTicks(low, high) {
  const raw = (high - low) / 5 || low / 10, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((digit) => digit * unit).find((size) => size >= raw);
  const ticks = [];
  for (let tick = Math.ceil((low - 8 * step) / step) * step; tick <= high + 8 * step && ticks.length < 40; tick += step) {
    if (tick > 0) ticks.push(+tick.toPrecision(8));
  }
  return ticks;
}

// `shown` is the range after a zoom, in the units of Plotly: exponents of ten on a log axis. `apart` is as in `thinned`.
function axisOf(axis, extent, shown, apart) {
  const text = TEXTS[axis.text];
  if (!axis.log) {
    const pad = 0.06 * (extent[1] - extent[0] || Math.abs(extent[0]) || 1);
    return { ...frameOfAxis(axis.title), range: [extent[0] - pad, extent[1] + pad], nticks: 7 };
  }
  const whole = logAxis(axis.title, ...extent, text);
  if (!shown || (shown[0] === whole.range[0] && shown[1] === whole.range[1])) return thinned(whole, text, apart);
  return { ...thinned(logAxis(axis.title, 10 ** shown[0], 10 ** shown[1], text), text, apart, shown), range: whole.range };
}

// What an axis covers, whichever groups are hidden.
function extentOf(figure, name) {
  const axis = figure[name];
  if (axis.range) return axis.range;
  let low = Infinity, high = -Infinity;
  for (const mark of figure.marks) {
    for (const values of name === "x" ? [mark.x] : [mark.y, mark.low, mark.high]) {
      for (const value of values || []) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  }
  return [low, high];
}

// What a pointer is told about each point of a mark.
function toldOf(figure, mark) {
  const group = mark.group === null ? "" : plain(groups.get(mark.group).name);
  const first = [group, mark.label === "run" ? "" : plain(mark.label)].filter(Boolean).join(", ");
  const of = (axis, value) => `${axis.symbol || axis.title} ${TEXTS[axis.text](value)}`;
  const extras = Object.entries(mark.extra);
  return mark.x.map((x, i) => {
    const more = extras.map(([name, value]) => [name, Array.isArray(value) ? value[i] : value]).filter(([, value]) => value !== null)
      .map(([name, value]) => `<br>${name === "compute_pflop_s_days" ? "C" : plain(name)} ${typeof value === "number" ? (EXTRA_TEXTS[name] || short)(value) : plain(value)}`);
    return `${first}<br>${of(figure.x, x)}, ${of(figure.y, mark.y[i])}${more.join("")}`;
  });
}

// The look of a mark in a colour, for Plotly.
const LOOKS = {
  curve: (color) => ({ mode: "lines", opacity: 0.5, line: { color, width: 1.1 } }),
  points: (color, symbol, count) => ({ mode: "markers", opacity: count > MANY ? 0.5 : 0.75, marker: { color, symbol, size: count > MANY ? 4 : 6.5, line: { width: 0 } } }),
  faint: (color, symbol) => ({ mode: "markers", opacity: 0.4, marker: { color, symbol, size: 8, line: { width: 0 } } }),
  minimum: (color) => ({ mode: "markers", marker: { color: variable("--paper"), symbol: "diamond", size: 9, line: { color, width: 2 } } }),
  line: (color) => ({ mode: "lines", line: { color, width: 2 } }),
  dashed: (color) => ({ mode: "lines", line: { color, width: 1.3, dash: "dash" } }),
  dotted: (color) => ({ mode: "lines", line: { color, width: 1.5, dash: "dot" } }),
};

function traceOf(figure, mark) {
  const group = mark.group === null ? null : groups.get(mark.group), color = seriesColor(group);
  const shared = { showlegend: false, type: "scatter", meta: { group: mark.group, label: mark.label } };
  if (mark.kind === "band") {
    return { ...shared, x: mark.x.concat([...mark.x].reverse()), y: mark.high.concat([...mark.low].reverse()), mode: "lines", line: { width: 0 },
      fill: "toself", fillcolor: translucent(color, 0.14), hoverinfo: "skip" };
  }
  const symbol = group ? SYMBOLS[group.series % 8] : "circle";
  return { ...shared, x: mark.x, y: mark.y, text: toldOf(figure, mark), hovertemplate: "%{text}<extra></extra>", ...LOOKS[mark.kind](color, symbol, mark.x.length) };
}

function isShown(mark) {
  return mark.group === null || !hidden.has(groups.get(mark.group).name);
}

function layoutOf(size) {
  const ink = variable("--ink");
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 8, b: 8 }, showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, size, color: ink },
    hoverlabel: { align: "left", bgcolor: variable("--paper"), bordercolor: variable("--rule"), font: { color: ink } },
    hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
  };
}

// The traces and layout of a figure of a size in pixels; `zoomed` has the ranges after a zoom, where there was one.
function specOf(figure, zoomed, { width, height }) {
  const x = extentOf(figure, "x"), y = extentOf(figure, "y");
  return {
    data: figure.marks.filter(isShown).map((mark) => traceOf(figure, mark)),
    layout: { ...layoutOf(13), xaxis: axisOf(figure.x, x, zoomed?.xaxis, LABEL.width / width), yaxis: axisOf(figure.y, y, zoomed?.yaxis, LABEL.height / height) },
  };
}

// The rows of a figure's CSV: of the groups that are shown, every number that is drawn.
function rowsOf(figure) {
  const marks = figure.marks.filter(isShown), extra = [...new Set(marks.flatMap((mark) => Object.keys(mark.extra)))];
  const rows = [["group", "part", figure.x.column, figure.y.column, "low", "high", ...extra]];
  for (const mark of marks) {
    const at = (values, i) => (Array.isArray(values) ? values[i] : values) ?? "";
    mark.x.forEach((x, i) => rows.push([mark.group ?? "", mark.label, x, at(mark.y, i), at(mark.low, i), at(mark.high, i), ...extra.map((name) => at(mark.extra[name], i))]));
  }
  return rows;
}
