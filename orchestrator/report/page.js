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

function draw(plot) {
  const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: plot.dataset.figure } };
  Plotly.react(plot, figure.data, themed(figure.layout), config);
  plot.dataset.drawn = "1";
}

const plots = [...document.querySelectorAll(".plot")];
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
}, { rootMargin: "600px" });
plots.forEach((plot) => nearby.observe(plot));
const redraw = () => plots.filter((plot) => plot.dataset.drawn).forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => plots.filter((plot) => plot.offsetParent).forEach(draw));
addEventListener("afterprint", redraw);

// One of several views of a figure.
for (const views of document.querySelectorAll(".views")) {
  const buttons = [...views.querySelectorAll("button")];
  for (const button of buttons) button.addEventListener("click", () => {
    for (const other of buttons) {
      other.setAttribute("aria-pressed", String(other === button));
      document.getElementById(other.dataset.view).hidden = other !== button;
    }
  });
}

// Click a heading to sort a table by it; undefined values stay at the end.
for (const head of document.querySelectorAll("th[data-sort]")) head.addEventListener("click", () => {
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
});

// Where in the page one is.
const links = [...document.querySelectorAll(".bar a:not(.brand)")];
const places = links.map((link) => document.querySelector(link.getAttribute("href")));
function follow() {
  let here = -1;
  places.forEach((place, index) => { if (place.getBoundingClientRect().top < innerHeight * 0.35) here = index; });
  links.forEach((link, index) => link.classList.toggle("here", index === here));
}
addEventListener("scroll", follow, { passive: true });
