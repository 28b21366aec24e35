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

// plotly.js and the figures' data are packed by page.py: zlib, then the last seven bits of every character.
async function unpack(identifier) {
  const text = document.getElementById(identifier).textContent, bytes = new Uint8Array(Math.floor(text.length * 7 / 8));
  for (let i = 0, at = 0, held = 0, bits = 0; i < text.length; i++) {
    held = held << 7 | text.charCodeAt(i) & 127;
    bits += 7;
    if (bits >= 8) bytes[at++] = held >> (bits -= 8);
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
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

// Text of a figure is measured before it is drawn, to break what is too long for its place.
const ruler = document.createElement("canvas").getContext("2d");
function widthOf(html, size) {
  ruler.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(html.replace(/<[^>]*>/g, "").replace(/&[^;]+;/g, "&")).width;
}
const linesOf = (html) => html.split("<br>").length;
function broken(html, width, size) {
  let line = 0, result = "";
  for (const token of html.split(/(<[^>]+>|\s+)/)) {
    if (token.startsWith("<")) { if (token === "<br>") line = 0; result += token; continue; }
    const pieces = widthOf(token, size) > width ? token.split(/(?<=[_\-/=])/) : [token];
    for (const piece of pieces) {
      const long = widthOf(piece, size);
      if (line && line + long > width) { result += "<br>"; line = 0; if (!piece.trim()) continue; }
      result += piece;
      line += long;
    }
  }
  return result;
}
function cut(html, width, size) {
  if (widthOf(html, size) <= width) return html;
  let text = plain(html);
  while (text && widthOf(`${text}…`, size) > width) text = text.slice(0, -1);
  return `${text}…`.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

// Black or white, whichever stands out more: at least 4.58 to 1 on any colour (WCAG 2, relative luminance).
const rgbOf = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
function luminance(rgb) {
  const [red, green, blue] = rgb.map((each) => each / 255).map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
const inkOn = (rgb) => luminance(rgb) > 0.179 ? "#000" : "#fff";
function colourAt(scale, share) {
  const above = Math.max(1, scale.findIndex(([place]) => place >= share)), [[low, from], [high, to]] = [scale[above - 1], scale[above]];
  const [start, end] = [rgbOf(from), rgbOf(to)];
  return start.map((each, k) => each + (end[k] - each) * (share - low) / (high - low));
}
function inked(trace) {
  const known = trace.z.flat().filter((value) => value !== null);
  const low = trace.zmin ?? Math.min(...known), high = trace.zmax ?? Math.max(...known);
  const text = (trace.text ?? []).map((row, i) => row.map((cell, j) => cell && trace.z[i][j] !== null
    ? `<span style="color:${inkOn(colourAt(trace.colorscale, high > low ? (trace.z[i][j] - low) / (high - low) : 0.5))}">${cell}</span>` : cell));
  return { ...trace, text };
}

// Data and layout of a figure for the width it has: panels that do not fit side by side one above the other, long names
// broken, room for a legend of that height. Figures with several panels say how wide one must be (style.panels_of).
const TITLE = { size: 12.5, line: 17 }, TICK = { size: 11.5, line: 15 };
function fitted(figure, width, legend, seen = width, most = Infinity) {
  const layout = structuredClone(figure.layout), { margin } = layout, { panels = {} } = layout.meta ?? {};
  const data = figure.data.map((trace) => trace.type === "heatmap" ? inked(trace)
    : trace.showlegend !== false && trace.name ? { ...trace, name: broken(trace.name, width - 70, 12) } : trace);
  const names = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name));
  const axes = names.map((name) => [layout[name], layout[name.replace("x", "y")] ??= {}]);
  if (data[0].type === "heatmap" && axes[0][1].automargin) Object.assign(axes[0][1], { tickvals: data[0].y, ticktext: data[0].y });
  const rowsOf = axes[0][1].ticktext ?? [];
  let tall = 0; // lines of the names of rows, left of the first column
  if (axes[0][1].automargin && rowsOf.length) {
    const named = axes[0][1].ticktext = rowsOf.map((each) => broken(each, seen * 0.38, TICK.size));
    tall = Math.max(...named.map(linesOf));
    margin.l = 16 + Math.max(...named.flatMap((each) => each.split("<br>")).map((line) => widthOf(line, TICK.size)));
    for (const [, y] of axes) if (y.ticktext) y.ticktext = named;
  }
  const inner = width - margin.l - margin.r;
  for (const note of layout.annotations ?? []) if (note.xref === "paper" && note.yref !== "paper") note.text = cut(note.text, inner, note.font.size);
  const places = axes.map(([x, y]) => [x.domain ?? [0, 1], y.domain ?? [0, 1]]);
  const corner = ([x, y]) => `${x[0].toFixed(4)} ${y[1].toFixed(4)}`;
  const titles = places.map((place) => (layout.annotations ?? []).filter((note) => note.yref === "paper" && `${note.x.toFixed(4)} ${note.y.toFixed(4)}` === corner(place)));
  const wide = new Set(places.map(([x]) => x[0].toFixed(4))).size;
  const columns = Math.max(1, Math.min(wide, Math.floor(inner / (panels.width ?? 1))));
  const gap = 8 + (panels.left ?? 0), each = (inner - (columns - 1) * gap) / columns;
  const [, span] = places[0];
  let high = (span[1] - span[0]) * (figure.height - figure.layout.margin.t - figure.layout.margin.b);
  if (tall > 1) high = Math.max(high, rowsOf.length * (8 + TICK.line * tall));
  let above = 0, deeper = 0;
  axes.forEach(([x], k) => {
    for (const note of titles[k]) {
      note.text = broken(note.text, each, TITLE.size);
      above = Math.max(above, 6 + TITLE.line * linesOf(note.text));
    }
    if (!x.ticktext || x.tickangle !== 0) return;
    x.ticktext = x.ticktext.map((text) => broken(text, each / x.ticktext.length - 6, TICK.size));
    deeper = Math.max(deeper, ...x.ticktext.map((text) => TICK.line * (linesOf(text) - 1)));
  });
  margin.t = Math.max(legend ? legend + above + 8 : above, titles.flat().length || legend ? 0 : margin.t);
  margin.b += deeper;
  const between = above + (panels.below ?? 0) + deeper, rows = Math.ceil(axes.length / columns);
  if (rows > 1) high = Math.min(high, Math.max(60, (most - margin.t - margin.b - (rows - 1) * between) / rows));
  const pitch = high + between;
  const total = (rows - 1) * pitch + high;
  axes.forEach(([x, y], k) => {
    const column = k % columns, row = Math.floor(k / columns), left = column * (each + gap);
    x.domain = [left / inner, (left + each) / inner];
    y.domain = [Math.max(0, 1 - (row * pitch + high) / total), 1 - row * pitch / total];
    if (panels.shared) y.showticklabels = column === 0;
    if (y.title && column && panels.shared) delete y.title;
    for (const note of titles[k]) [note.x, note.y] = [x.domain[0], y.domain[1]];
  });
  layout.legend.y = 1 + above / total;
  return { data, layout, height: total + margin.t + margin.b };
}

function draw(plot) {
  const figure = figureOf(plot), config = { displaylogo: false, modeBarButtons: [["resetScale2d"]] };
  const show = () => {
    const { data, layout, height } = fitted(figure, plot.clientWidth, Number(plot.dataset.legend ?? 0), plot.parentNode.clientWidth, Number(plot.dataset.most ?? Infinity));
    plot.style.height = `${height}px`;
    Plotly.react(plot, data, themed(layout), config);
    const legend = Math.ceil(plot.querySelector(".legend .bg")?.getBoundingClientRect().height ?? 0);
    const changed = legend !== Number(plot.dataset.legend ?? 0);
    plot.dataset.legend = legend;
    return changed;
  };
  if (show()) show(); // how high the legend is shows when it is drawn
  plot.dataset.drawn = "1";
}

const plots = [...document.querySelectorAll(".plot")];
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
}, { rootMargin: "600px" });
loaded.then(() => plots.forEach((plot) => nearby.observe(plot)));
const redraw = () => plots.filter((plot) => plot.dataset.drawn).forEach((plot) => {
  if (plot.offsetParent) draw(plot);
  else delete plot.dataset.drawn; // it is drawn when it is shown
});
let lastWidth = innerWidth, resized = 0;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return; // a telephone hides its address bar
  lastWidth = innerWidth;
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(redraw);
});
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
// Rows of panels that are a little higher than half a page are made flatter, so that two figures fit.
const PAPER = { width: 690, height: 860, drawn: 960, text: 0.75, half: 0.39, flatten: 0.7 };
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
    const drawn = Math.max(PAPER.drawn, figureOf(plot).width);
    plot.style.width = `${drawn}px`;
    draw(plot);
    if (plot.offsetHeight * PAPER.width / drawn < PAPER.flatten * PAPER.height) {
      plot.dataset.most = PAPER.half * PAPER.height * drawn / PAPER.width;
      draw(plot);
      delete plot.dataset.most;
    }
    plot.style.zoom = Math.min(PAPER.width / drawn, PAPER.height / plot.offsetHeight);
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
  const plot = button.closest("figure").querySelector(".plot"), figure = figureOf(plot), { width } = figure;
  const filename = plot.dataset.figure.replace("figure-", ""), format = button.dataset.save;
  if (format === "csv") return download(`${filename}.csv`, csvOf(figure));
  const { data, layout: drawn, height } = fitted(figure, width, Number(plot.dataset.legend ?? 0));
  const layout = inLight(() => ({ ...themed(drawn), paper_bgcolor: "#fff", plot_bgcolor: "#fff", autosize: false, width, height }));
  Plotly.downloadImage({ data, layout }, { format, filename, width, height, scale: format === "png" ? 2 : 1 });
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
