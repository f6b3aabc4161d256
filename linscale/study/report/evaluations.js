// Draws the evaluations from the JSON beside it, as page.js draws the laws: small panels that share its colours,
// axes, choice of groups and downloads.
const evaluations = JSON.parse(document.getElementById("evaluations").textContent);
const HEAT = [[0, "#440154"], [0.25, "#3b528b"], [0.5, "#21918c"], [0.75, "#5ec962"], [1, "#fde725"]]; // viridis
const PANELS = 12; // of one figure; the others are folded away
const LATER = 16; // place in a window from which the loss is shown at first: before it, it is far above
let everyCheckpoint = false;
for (const { means, metrics } of evaluations.suites) {
  const curves = [...means, ...metrics.flatMap((choice) => choice.panels)].flatMap((panel) => panel.groups.flatMap((group) => group.curves));
  for (const curve of curves) curve.x = evaluations.axes[curve.x]; // written once for all tasks of the same checkpoints
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function architecture(arch) {
  const found = evaluations.architectures[arch];
  return { ...found, color: seriesColor(found), symbol: SYMBOLS[found.series % 8], shown: !hidden.has(found.name) };
}

// Figures of many panels: the first ones in `holder`, the others in a <details> below them.
function fill(holder, items, drawing, rows, told) {
  removePlots(holder);
  holder.replaceChildren();
  const grid = element("div", { className: "panels" });
  const rest = element("div", { className: "panels" });
  items.forEach((item, i) => {
    const plot = element("div", { className: "plot small" });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${item.title}: ${told(item)}`);
    const metric = item.metric ? ` ${item.metric}${item.lower ? " \u2193" : ""}` : "";
    const heading = element("p", {}, item.title, element("small", { textContent: metric }));
    const panel = element("div", { className: "panel" }, heading, plot);
    if (item.size && item.size !== items[i - 1]?.size) panel.style.gridColumnStart = 1; // sizes below each other
    (i < PANELS ? grid : rest).append(panel);
    addPlot(plot, `${item.title}${metric}`, () => drawing(item, plot), () => rows(item));
  });
  holder.append(grid);
  if (rest.childElementCount) {
    holder.append(element("details", {}, element("summary", { textContent: `${rest.childElementCount} more` }), rest));
  }
}

function panelOf(data, layout) {
  return { data, layout: { ...layoutOf(11), margin: { l: 4, r: 8, t: 4, b: 4 }, ...layout } };
}

function linearAxis(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return { ...frameOfAxis("", 11), nticks: 6, ...(low === high ? { range: [low - 0.1, high + 0.1] } : {}) };
}

// A log axis for little room: few ticks, `apart` from each other as a share of the axis.
function smallLogAxis(title, values, text, apart) {
  const axis = thinned(logAxis(title, Math.min(...values), Math.max(...values), text), text, apart);
  const ticks = axis.tickvals.length ? {} : { tickvals: [values[0]], ticktext: [text(values[0])] };
  return { ...axis, ...ticks, title: { text: title, font: { size: 11 } } };
}

function errorBars(errors, color) {
  return { type: "data", array: errors.map((error) => error ?? 0), color, thickness: 1.2, width: 3 };
}

function plusMinus(value, error) {
  return short(value) + (error === null ? ", no standard error" : ` \u00b1 ${short(+error.toPrecision(2))}`);
}

// A metric against compute: the last checkpoint of every run with its error, a line through the sizes.
function drawMetric(panel) {
  const points = panel.groups.flatMap((group) => group.last), x = points.map((point) => point.x);
  const y = points.flatMap((point) => [point.y, point.y + (point.error ?? 0)]), traces = [];
  for (const group of panel.groups) {
    const { name, color, symbol, shown } = architecture(group.arch);
    if (everyCheckpoint) {
      x.push(...group.curves.flatMap((curve) => curve.x));
      y.push(...group.curves.flatMap((curve) => curve.y));
    }
    if (!shown) continue;
    for (const curve of everyCheckpoint ? group.curves : []) {
      traces.push({ meta: { group: group.arch }, x: curve.x, y: curve.y, mode: "lines", opacity: 0.4, line: { color, width: 1 }, hovertemplate: "%{text}<extra></extra>",
        text: curve.x.map((c, i) => `${name} ${plain(curve.run)}<br>C ${power(c)}, ${plain(panel.metric)} ${short(curve.y[i])}`) });
    }
    traces.push({ ...group.line, meta: { group: group.arch }, mode: "lines", line: { color, width: 1.5 }, hoverinfo: "skip" });
    traces.push({ x: group.last.map((point) => point.x), y: group.last.map((point) => point.y), mode: "markers", marker: { color, symbol, size: 7 },
      error_y: errorBars(group.last.map((point) => point.error), color), hovertemplate: "%{text}<extra></extra>",
      text: group.last.map((p) => `${name} ${plain(p.run)}, step ${p.step}<br>${human(p.params)} parameters, ${human(p.tokens)} tokens<br>C ${power(p.x)}, `
        + `${plain(panel.metric)} ${plusMinus(p.y, p.error)}${p.count === null ? "" : `<br>${p.count} scored`}`) });
  }
  return panelOf(traces, { xaxis: smallLogAxis("Compute C (PFLOP/s-days)", x, power, 0.3), yaxis: linearAxis(y) });
}

// The loss by place in a window, and the length of training sequences as an upright line.
function drawPosition(panel) {
  const traces = [], x = [...panel.lengths];
  for (const curve of panel.curves) {
    const { name, color, symbol, shown } = architecture(curve.arch);
    const middle = curve.first.map((first, i) => Math.sqrt(first * curve.last[i]));
    x.push(...middle);
    if (!shown) continue;
    traces.push({ meta: { group: curve.arch }, x: middle, y: curve.y, mode: "lines+markers", line: { color, width: 1.5 }, marker: { color, symbol, size: 6 },
      error_y: errorBars(curve.error, color), hovertemplate: "%{text}<extra></extra>",
      text: curve.first.map((first, i) => `${name} ${plain(curve.run)}, step ${curve.step}<br>places ${first} to ${curve.last[i]}<br>`
        + `${plusMinus(curve.y[i], curve.error[i])} nats per token`) });
  }
  const marks = panel.lengths.map((length) => ({ type: "line", x0: length, x1: length, y0: 0, y1: 1, yref: "paper",
    line: { color: variable("--muted"), width: 1, dash: "dash" } }));
  const later = panel.curves.flatMap((curve) => curve.y.filter((_, i) => curve.first[i] >= LATER));
  const low = Math.min(...later), high = Math.max(...later), pad = 0.08 * (high - low || 1);
  const range = later.length > 2 * panel.curves.length ? { range: [low - pad, high + pad] } : {};
  return panelOf(traces, { shapes: marks, xaxis: smallLogAxis("Place in the window", x, human, 0.2), yaxis: { ...linearAxis(later), ...range } });
}

// The tables behind the panels, of the architectures that are shown.
function metricRows(panel) {
  const rows = [["architecture", "run", "metric", "compute_pflop_s_days", "value", "error_95", "params", "tokens", "step", "scored"]];
  for (const group of panel.groups.filter(({ arch }) => architecture(arch).shown)) {
    for (const p of group.last) rows.push([group.arch, p.run, panel.metric, p.x, p.y, p.error ?? "", p.params, p.tokens, p.step, p.count ?? ""]);
    for (const curve of everyCheckpoint ? group.curves : []) {
      curve.x.forEach((x, i) => rows.push([group.arch, curve.run, panel.metric, x, curve.y[i], "", "", "", "", ""]));
    }
  }
  return rows;
}

function positionRows(panel) {
  const rows = [["architecture", "run", "step", "first_place", "last_place", "loss_nats", "error_95"]];
  for (const curve of panel.curves.filter(({ arch }) => architecture(arch).shown)) {
    curve.first.forEach((first, i) => rows.push([curve.arch, curve.run, curve.step, first, curve.last[i], curve.y[i], curve.error[i] ?? ""]));
  }
  return rows;
}

function needleRows(map) {
  const rows = [["architecture", "run", "step", "length_tokens", "depth_percent", "accuracy"]];
  map.z.forEach((row, i) => row.forEach((value, j) => rows.push([map.arch, map.run, map.step, map.lengths[j], map.depths[i], value])));
  return rows;
}

// Accuracy by length, to the right, and depth, downwards; behind the upright line are lengths beyond those of training.
function drawNeedle(map, plot) {
  const { name, shown } = architecture(map.arch);
  plot.closest(".panel").classList.toggle("off", !shown);
  const text = map.z.map((row, i) => row.map((value, j) => `${name} ${plain(map.run)}, step ${map.step}<br>${map.lengths[j]} tokens, depth ${short(map.depths[i])}%<br>accuracy ${short(value)}`));
  const ticks = (values, most, told) => {
    const every = Math.ceil(values.length / most), chosen = [...values.keys()].filter((i) => i % every === 0);
    return { tickvals: chosen, ticktext: chosen.map((i) => told(values[i])), tickmode: "array" };
  };
  const within = map.lengths.filter((length) => length <= map.trained).length - 0.5;
  const mark = (color, width, dash) => ({ type: "line", x0: within, x1: within, y0: 0, y1: 1, yref: "paper", line: { color, width, dash } });
  const axis = { showgrid: false, zeroline: false, ticks: "outside", tickcolor: variable("--rule"), automargin: true, fixedrange: true };
  return panelOf([{ type: "heatmap", z: map.z, text, zmin: 0, zmax: 1, colorscale: HEAT, showscale: false, hovertemplate: "%{text}<extra></extra>" }], {
    shapes: map.trained === null ? [] : [mark("#000000", 3, "solid"), mark("#ffffff", 1.5, "dash")],
    xaxis: { ...axis, ...ticks(map.lengths, 4, (length) => human(+length.toPrecision(2))), tickangle: 0, title: { text: "Length (tokens)", font: { size: 11 } } },
    yaxis: { ...axis, ...ticks(map.depths, 5, (depth) => `${Math.round(depth)}%`), autorange: "reversed", title: { text: "Depth", font: { size: 11 } } },
  });
}

function fillSuite(suite) {
  const section = document.getElementById(`suite-${suite.id}`);
  const select = section.querySelector("select"), holder = section.querySelector(".holder");
  const chosen = suite.metrics[select ? select.selectedIndex : 0];
  const told = (panel) => panel.metric + " against compute; the numbers are in the tables below";
  fill(holder, [...suite.means, ...(chosen ? chosen.panels : [])], drawMetric, metricRows, told);
  if (select) select.onchange = () => fillSuite(suite);
}

function addEveryCheckpoint() {
  const box = document.getElementById("every-checkpoint");
  if (!box) return;
  box.addEventListener("change", () => {
    everyCheckpoint = box.checked;
    drawAll();
  });
}

evaluations.suites.forEach(fillSuite);
for (const [id, drawing, rows, told] of [
  ["positions", drawPosition, positionRows, () => "loss by position in the window; the numbers are in the table below"],
  ["needles", drawNeedle, needleRows, (map) => `mean accuracy ${short(map.mean)}; accuracies by length are in the table below`],
]) {
  const holders = document.querySelectorAll(`#${id} .holder`);
  evaluations[id].forEach(({ panels: items }, i) => fill(holders[i], items, drawing, rows, told));
}
for (const scale of document.querySelectorAll(".scale i")) {
  scale.style.background = `linear-gradient(to right, ${HEAT.map(([, color]) => color).join(", ")})`;
}
addEveryCheckpoint();
