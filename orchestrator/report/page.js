"use strict";
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Figures carry data; text, axes and grid take the page's colours, light or dark.
function themed(layout) {
  const result = structuredClone(layout);
  Object.assign(result, {
    autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--soft"), orientation: "v" },
    hoverlabel: { bgcolor: colour("--paper"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12 }, align: "left" },
  });
  for (const key of Object.keys(result).filter((name) => /^[xy]axis\d*$/.test(name))) {
    result[key] = { gridcolor: colour("--grid"), zerolinecolor: colour("--faint"), linecolor: colour("--line"),
      tickfont: { color: colour("--soft"), size: 11.5 }, ...result[key] };
    if (result[key].title) result[key].title = { ...result[key].title, font: { size: 12, color: colour("--soft") } };
  }
  return result;
}

// plotly.js and the figures' data are packed by page.py: zlib, base 85.
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
async function unpack(identifier) {
  const text = document.getElementById(identifier).textContent, rest = text.length % 5, whole = text.length - rest;
  const value = new Uint8Array(128);
  for (let i = 0; i < 85; i++) value[DIGITS.charCodeAt(i)] = i;
  const bytes = new Uint8Array(whole / 5 * 4 + 4), view = new DataView(bytes.buffer);
  const digit = (at) => at < text.length ? value[text.charCodeAt(at)] : 84;
  for (let i = 0; i < text.length; i += 5) {
    let number = 0;
    for (let k = 0; k < 5; k++) number = number * 85 + digit(i + k);
    view.setUint32(i / 5 * 4, number % 4294967296);
  }
  const stream = new Blob([bytes.subarray(0, whole / 5 * 4 + (rest ? rest - 1 : 0))]).stream();
  return new Response(stream.pipeThrough(new DecompressionStream("deflate"))).text();
}
let figures = {};
const figureOf = (plot) => figures[plot.dataset.figure];
const loaded = (async () => {
  const [code, data] = await Promise.all([unpack("packed-plotly"), unpack("packed-figures")]);
  figures = JSON.parse(data);
  const script = document.createElement("script");
  script.textContent = code;
  document.head.append(script);
})();

function draw(plot) {
  const figure = figureOf(plot);
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["resetScale2d"]] };
  Plotly.react(plot, figure.data, themed(figure.layout), config);
  plot.dataset.drawn = "1";
}

const plots = [...document.querySelectorAll(".plot")];
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
}, { rootMargin: "600px" });
loaded.then(() => plots.forEach((plot) => nearby.observe(plot)));
const redraw = () => plots.filter((plot) => plot.dataset.drawn).forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Do something in light colours, whatever the page is shown in: for paper and for saved figures.
function inLight(action) {
  document.documentElement.dataset.theme = "light";
  try { return action(); } finally { delete document.documentElement.dataset.theme; }
}

const viewOf = (button) => document.getElementById(button.dataset.view);

// On paper all views of a figure are shown, each drawn as wide as on a screen and scaled to what an A4 or Letter page can
// hold (CSS px, 96 dpi).
// Text of tables is printed .75 times as large as it is shown (page.css).
const PAPER = { width: 690, height: 860, drawn: 960, text: 0.75 };
addEventListener("beforeprint", () => inLight(() => {
  for (const details of document.querySelectorAll("details:not([open])")) { details.open = true; details.dataset.closed = "1"; }
  for (const button of document.querySelectorAll(".views button")) viewOf(button).hidden = false;
  for (const table of document.querySelectorAll("table:not(.examples)")) {
    table.style.width = "min-content"; // a table whose words do not fit is scaled down whole
    const zoom = Math.min(1, PAPER.width / (PAPER.text * table.offsetWidth));
    table.style.width = "";
    table.style.zoom = zoom;
  }
  for (const plot of plots.filter((each) => each.offsetParent)) {
    const { width, height } = figureOf(plot);
    const drawn = Math.max(PAPER.drawn, width);
    plot.style.width = `${drawn}px`;
    draw(plot);
    plot.style.zoom = Math.min(PAPER.width / drawn, PAPER.height / height);
  }
}));
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-closed]")) { details.open = false; delete details.dataset.closed; }
  for (const button of document.querySelectorAll(".views button")) viewOf(button).hidden = button.getAttribute("aria-pressed") !== "true";
  for (const plot of plots) plot.style.width = plot.style.zoom = "";
  for (const table of document.querySelectorAll("table")) table.style.zoom = "";
  redraw();
});

// Save a figure: as it is drawn on white paper, or its data as a table. The same rows as exports.figure_rows.
const plain = (html) => new DOMParser().parseFromString(String(html).replaceAll("<br>", "; "), "text/html").body.textContent;
function rowsOf({ data, axes: [x, y, z] }) {
  const rows = [];
  for (const trace of data.filter((each) => each.hoverinfo !== "skip")) {
    const head = {};
    if (trace.meta?.panel) head.panel = trace.meta.panel;
    if (trace.name) head.series = plain(trace.name);
    const text = (value) => typeof value === "string" ? plain(value) : value;
    const customs = (values) => (trace.meta?.columns ?? []).map((name, k) => [name, text([values].flat()[k])]);
    let line = trace.type !== "heatmap" && trace.x.includes(null) ? 0 : undefined;
    if (trace.type === "heatmap") trace.z.forEach((line, i) => line.forEach((value, j) => rows.push({ ...head,
      [x]: plain(trace.x[j]), [y]: plain(trace.y[i]), [z]: value, ...Object.fromEntries(customs(trace.customdata?.[i][j])) })));
    else trace.x.forEach((value, i) => {
      if (value === null && line !== undefined) { line += 1; return; } // a gap: another line of the same trace begins
      const which = line === undefined ? {} : trace.meta?.lines ? { signature: trace.meta.lines[line] } : { line };
      const row = { ...head, ...which, [x]: value, [y]: trace.y[i] };
      if (trace.error_x) row[`${x} sd`] = trace.error_x.array[i];
      if (trace.error_y) row[`${y} sd`] = trace.error_y.array[i];
      if (Array.isArray(trace.hovertext)) row.label = plain(trace.hovertext[i]);
      rows.push({ ...row, ...Object.fromEntries(customs(trace.customdata?.[i])) });
    });
  }
  return rows;
}
function csvOf(figure) {
  const rows = rowsOf(figure), columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value) => /[",\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? "");
  return [columns, ...rows.map((row) => columns.map((name) => row[name]))].map((line) => line.map(cell).join(",") + "\n").join("");
}
function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
for (const button of document.querySelectorAll(".save button")) button.addEventListener("click", () => {
  const plot = button.closest("figure").querySelector(".plot"), figure = figureOf(plot), { width, height } = figure;
  const filename = plot.dataset.figure.replace("figure-", ""), format = button.dataset.save;
  if (format === "csv") return download(`${filename}.csv`, csvOf(figure));
  const layout = inLight(() => ({ ...themed(figure.layout), paper_bgcolor: "#fff", plot_bgcolor: "#fff", autosize: false, width, height }));
  Plotly.downloadImage({ data: figure.data, layout }, { format, filename, width, height, scale: format === "png" ? 2 : 1 });
});

// One of several views of a figure.
for (const views of document.querySelectorAll(".views")) {
  const buttons = [...views.querySelectorAll("button")];
  for (const button of buttons) button.addEventListener("click", () => {
    for (const other of buttons) {
      other.setAttribute("aria-pressed", String(other === button));
      viewOf(other).hidden = other !== button;
    }
  });
}

// A click on a heading, or Enter, sorts a table by it; undefined values stay at the end.
function sortBy(head) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => {
    if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
    return (down ? -1 : 1) * (head.dataset.sort === "number" ? key(a) - key(b) : key(a).localeCompare(key(b)));
  };
  body.append(...[...body.rows].sort(order));
}
for (const head of document.querySelectorAll("th[data-sort]")) {
  head.tabIndex = 0;
  head.addEventListener("click", () => sortBy(head));
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sortBy(head); }
  });
}

// Where in the page one is.
const links = [...document.querySelectorAll(".bar a:not(.brand)")];
const places = links.map((link) => document.querySelector(link.getAttribute("href")));
function follow() {
  let here = -1;
  places.forEach((place, index) => { if (place.getBoundingClientRect().top < innerHeight * 0.35) here = index; });
  links.forEach((link, index) => link.classList.toggle("here", index === here));
}
addEventListener("scroll", follow, { passive: true });
