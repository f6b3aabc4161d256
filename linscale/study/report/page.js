"use strict";
// Draws the three figures from the JSON beside it, in the colours of the page; redrawn when the colour scheme changes.
const figures = JSON.parse(document.getElementById("figures").textContent);
const SUPERSCRIPT = { "-": "\u207b", 0: "\u2070", 1: "\u00b9", 2: "\u00b2", 3: "\u00b3", 4: "\u2074", 5: "\u2075", 6: "\u2076", 7: "\u2077", 8: "\u2078", 9: "\u2079" };
const PREFIXES = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
const hidden = new Set();
const drawings = [() => figures.forEach(draw)]; // all that shows the choice of architectures and the colours

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function seriesColor(group) {
  return variable(`--series-${group.series % 8}`);
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

function loss(value) {
  return String(+value.toFixed(3));
}

// A log axis over [low, high] with ticks written out: powers of ten, joined by more digits where few decades are shown.
function logAxis(title, low, high, text, colors) {
  const decades = Math.log10(high / low);
  const digits = decades < 0.6 ? [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9] : decades < 2.5 ? [1, 2, 5] : [1];
  const step = Math.max(1, Math.ceil(decades / 7));
  const ticks = [];
  for (let exponent = Math.floor(Math.log10(low)) - 2; exponent <= Math.ceil(Math.log10(high)) + 2; exponent++) {
    if (((exponent % step) + step) % step === 0) ticks.push(...digits.map((digit) => digit * 10 ** exponent));
  }
  const pad = Math.max(0.01, 0.04 * decades);
  return {
    type: "log", title: { text: title, font: { size: 13 } }, range: [Math.log10(low) - pad, Math.log10(high) + pad],
    tickvals: ticks, ticktext: ticks.map(text), gridcolor: colors.grid, linecolor: colors.rule, zeroline: false,
    showline: true, ticks: "outside", tickcolor: colors.rule, automargin: true,
  };
}

function tracesOf(figure, text) {
  const traces = [];
  for (const group of figure.groups.filter(({ name }) => !hidden.has(name))) {
    const color = seriesColor(group);
    const shared = { showlegend: false, type: "scatter", hovertemplate: "%{text}<extra></extra>" };
    const told = (what, { x, y }) => x.map((c, i) => `${group.name}${what}<br>C ${power(c)}, ${figure.symbol} ${text(y[i])}`);
    for (const curve of group.curves) {
      const run = curve.tokens.map((tokens) => ` ${curve.run}<br>${human(curve.params)} parameters, ${human(tokens)} tokens`);
      traces.push({ ...shared, x: curve.x, y: curve.y, text: told("", curve).map((line, i) => line.replace("<br>", `${run[i]}<br>`)),
        mode: "lines", opacity: 0.5, line: { color, width: 1.1 } });
    }
    if (group.band) {
      traces.push({ ...shared, x: group.band.x.concat([...group.band.x].reverse()), y: group.band.high.concat([...group.band.low].reverse()),
        mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: translucent(color, 0.14), hoverinfo: "skip", hovertemplate: null });
    }
    if (group.points) {
      traces.push({ ...shared, ...group.points, text: told(", envelope", group.points), mode: "markers", opacity: 0.4,
        marker: { color, size: 8, line: { width: 0 } } });
    }
    if (group.published) {
      traces.push({ ...shared, ...group.published, text: told(", published", group.published), mode: "lines", line: { color, width: 1.5, dash: "dot" } });
    }
    if (group.line) {
      traces.push({ ...shared, ...group.line, text: told(", law", group.line), mode: "lines", line: { color, width: 2 } });
    }
  }
  return traces;
}

// What the axes cover whichever architectures are hidden. The loss figure starts at the laws: early loss is far above.
function rangesOf(figure) {
  const parts = figure.groups.flatMap((group) => [...group.curves, group.points, group.line, group.published].filter(Boolean));
  const fitted = figure.groups.flatMap((group) => [group.points, group.line].filter(Boolean));
  const bands = figure.groups.flatMap((group) => (group.band ? [...group.band.low, ...group.band.high] : []));
  const x = parts.flatMap((part) => part.x), y = parts.flatMap((part) => part.y).concat(bands);
  const range = { x: [Math.min(...x), Math.max(...x)], y: [Math.min(...y), Math.max(...y)] };
  if (figure.id === "loss" && fitted.length) {
    const laws = fitted.flatMap((part) => part.y), top = Math.max(...laws);
    range.y[1] = Math.min(range.y[1], top * (top / Math.min(...laws)) ** 0.7);
  }
  return range;
}

function draw(figure) {
  const colors = { grid: variable("--grid"), rule: variable("--rule"), ink: variable("--ink") };
  const text = figure.id === "loss" ? loss : human;
  const { x, y } = rangesOf(figure);
  if (!Number.isFinite(x[0])) return;
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 8, b: 8 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colors.ink },
    xaxis: logAxis("Compute C (PFLOP/s-days)", ...x, power, colors),
    yaxis: logAxis(figure.title, ...y, text, colors),
    hoverlabel: { align: "left", bgcolor: variable("--paper"), bordercolor: colors.rule, font: { color: colors.ink } },
    hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    uirevision: "zoom", // showing and hiding keeps the zoom
  };
  Plotly.react(figure.id, tracesOf(figure, text), layout, { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false });
}

function drawAll() {
  for (const each of drawings) each();
}

// One box an architecture above the laws and, where there are any, above the evaluations: they say the same.
function addCheckboxes() {
  for (const group of figures[0].groups) {
    const boxes = [];
    for (const fieldset of document.querySelectorAll("fieldset.architectures")) {
      const label = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        for (const other of boxes) other.checked = box.checked;
        hidden[box.checked ? "delete" : "add"](group.name);
        drawAll();
      });
      label.style.color = box.style.accentColor = `var(--series-${group.series % 8})`;
      label.append(box, group.name);
      fieldset.append(label);
      boxes.push(box);
    }
  }
}

addCheckboxes();
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
