// What people do with the figures: show and hide groups, zoom, print, download. Figures are drawn when they come near
// the window, and again when the choice of groups, the colours or the zoom change.
const plots = new Map(); // element -> { title, spec, rows, zoomed, shown, stale }
const MARGIN = "400px"; // around the window: what is drawn ahead of scrolling
const PRINT_WIDTH = { small: 216, whole: 660 }; // pixels of a figure on paper
const EXPORT = { width: 900, height: 600, scale: 2 };
const ZOOM = 0.6, MOVE = 0.2; // of what is shown

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const plot = plots.get(target);
    if (!plot) continue;
    plot.shown = isIntersecting;
    if (isIntersecting && plot.stale) draw(target);
  }
}, { rootMargin: MARGIN });

// `spec` gives { data, layout } of what is now shown there, of the ranges zoomed to and a size in pixels; `rows` the
// table behind it.
function addPlot(element, title, spec, rows) {
  plots.set(element, { title, spec, rows, zoomed: null, shown: false, stale: true });
  element.parentElement.insertBefore(toolsOf(element, title), element.nextSibling);
  element.addEventListener("keydown", (event) => onKey(element, event));
  watcher.observe(element);
}

function removePlots(within) {
  for (const element of [...plots.keys()].filter((each) => within.contains(each))) {
    watcher.unobserve(element);
    if (element.data) Plotly.purge(element);
    plots.delete(element);
  }
}

// What is shown: the whole range, or the ranges zoomed to.
function specOfPlot({ spec, zoomed }, size) {
  const { data, layout } = spec(zoomed, size);
  for (const [name, range] of Object.entries(zoomed || {})) layout[name] = { ...layout[name], range, autorange: false };
  return { data, layout };
}

function draw(element) {
  const plot = plots.get(element), first = !element.data;
  const { data, layout } = specOfPlot(plot, { width: element.clientWidth || EXPORT.width, height: element.clientHeight || EXPORT.height });
  if (matchMedia("print").matches) layout.width = Math.min(element.clientWidth || Infinity, PRINT_WIDTH[element.classList.contains("small") ? "small" : "whole"]);
  Plotly.react(element, data, layout, CONFIG);
  plot.stale = false;
  if (!first) return;
  element.on("plotly_relayout", (change) => { // other ticks for another range
    if (!Object.keys(change).some((key) => key.startsWith("xaxis") || key.startsWith("yaxis"))) return;
    plot.zoomed = { xaxis: [...element.layout.xaxis.range], yaxis: [...element.layout.yaxis.range] };
    draw(element);
  });
}

function drawAll() {
  const printing = matchMedia("print").matches;
  for (const [element, plot] of plots) {
    plot.stale = true;
    if (plot.shown || (printing && element.clientWidth)) draw(element);
  }
}

// New ranges from the old ones: `change` gets the lower end and the width.
function changeRanges(element, change) {
  const ranges = {};
  for (const name of ["xaxis", "yaxis"]) {
    const { range, fixedrange } = element.layout[name];
    if (!fixedrange) ranges[`${name}.range`] = change(name, range[0], range[1] - range[0]);
  }
  return Plotly.relayout(element, ranges);
}

function zoom(element, factor) {
  return changeRanges(element, (name, low, width) => [low + (1 - factor) / 2 * width, low + (1 + factor) / 2 * width]);
}

function move(element, axis, sign) {
  return changeRanges(element, (name, low, width) => [low + (name === axis ? sign * MOVE * width : 0), low + width + (name === axis ? sign * MOVE * width : 0)]);
}

function wholeRange(element) {
  plots.get(element).zoomed = null;
  draw(element);
}

function onKey(element, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !element.data) return; // the browser's own
  const actions = { "+": () => zoom(element, ZOOM), "=": () => zoom(element, ZOOM), "-": () => zoom(element, 1 / ZOOM), 0: () => wholeRange(element),
    ArrowLeft: () => move(element, "xaxis", -1), ArrowRight: () => move(element, "xaxis", 1), ArrowDown: () => move(element, "yaxis", -1), ArrowUp: () => move(element, "yaxis", 1) };
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
}

function button(text, label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

// Buttons under a figure. Small panels are too small to zoom into with buttons.
function toolsOf(element, title) {
  const tools = document.createElement("div");
  tools.className = "tools";
  if (!element.classList.contains("small")) {
    tools.append(button("+", `Zoom in: ${title}`, () => zoom(element, ZOOM)), button("\u2212", `Zoom out: ${title}`, () => zoom(element, 1 / ZOOM)),
      button("All", `All, the whole range: ${title}`, () => wholeRange(element)));
  }
  for (const format of ["PNG", "SVG"]) tools.append(button(format, `${format} of: ${title}`, () => downloadImage(element, format.toLowerCase())));
  tools.append(button("CSV", `CSV of: ${title}`, () => save(element, "csv", new Blob([csvOf(plots.get(element).rows())], { type: "text/csv" }))));
  return tools;
}

function csvOf(rows) {
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  return rows.map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function save(element, suffix, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${plots.get(element).title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60)}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// For a paper: light colours on white, with a legend of the groups that are shown, over the range that is shown.
async function downloadImage(element, format) {
  palette = document.querySelector(".light");
  const { data, layout } = specOfPlot(plots.get(element), EXPORT);
  const legend = legendOf(data);
  palette = document.documentElement;
  const white = { paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", showlegend: legend.length > 0, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 12, r: 16, t: 24, b: 12 } };
  const url = await Plotly.toImage({ data: [...data, ...legend], layout: { ...layout, ...white }, config: CONFIG }, { format, ...EXPORT });
  const blob = format === "svg"
    ? new Blob([decodeURIComponent(url.slice(url.indexOf(",") + 1))], { type: "image/svg+xml" })
    : new Blob([Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (c) => c.charCodeAt(0))], { type: "image/png" });
  save(element, format, blob);
}

// An entry a group, in its line and symbol, and no entry for a figure of none.
function legendOf(data) {
  const named = new Set(data.map((trace) => trace.meta?.group).filter((group) => groups.has(group)));
  return [...named].map((id) => groups.get(id)).map((group) => ({ x: [null], y: [null], name: plain(group.name), showlegend: true, mode: "lines+markers",
    line: { color: seriesColor(group), width: 2 }, marker: { color: seriesColor(group), symbol: SYMBOLS[group.series % 8], size: 7 } }));
}

// One box a group above the figures and, where there are any, above the evaluations: they say the same.
function addCheckboxes() {
  const fieldsets = [...document.querySelectorAll("fieldset.groups")], all = new Map();
  const set = (group, shown) => {
    for (const box of all.get(group.name)) box.checked = shown;
    hidden[shown ? "delete" : "add"](group.name);
  };
  for (const fieldset of fieldsets) {
    fieldset.hidden = page.groups.length < 2;
    for (const group of page.groups) {
      const label = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => { set(group, box.checked); drawAll(); });
      label.style.color = box.style.accentColor = `var(--series-${group.series % 8})`;
      label.append(box, group.name);
      fieldset.append(label);
      all.set(group.name, [...(all.get(group.name) || []), box]);
    }
    if (page.groups.length < 3) continue;
    for (const [text, shown] of [["All", true], ["None", false]]) {
      fieldset.append(button(text, `${text} of them`, () => { page.groups.forEach((group) => set(group, shown)); drawAll(); }));
    }
  }
}

addCheckboxes();
for (const figure of page.figures) {
  const element = document.getElementById(figure.id);
  if (figure.marks.length) addPlot(element, figure.title, (zoomed, size) => specOf(figure, zoomed, size), () => rowsOf(figure));
  else element.closest("figure").hidden = true; // nothing is known yet
}
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", drawAll);
