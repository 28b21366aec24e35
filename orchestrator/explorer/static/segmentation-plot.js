// Scatter of the cases on any two of their numbers, as SVG: there are hundreds of them, not a million.

import { brief, svg } from "explorer/dom.js";
import { pointsInside } from "explorer/polygon.js";

const MARGIN = { left: 58, right: 16, top: 14, bottom: 42 };

export class Plot {
  constructor(box, { onChoose, onHover, onLasso }) {
    Object.assign(this, { box, onChoose, onHover, onLasso });
    this.root = box.appendChild(svg("svg", { role: "img", "aria-label": "Plot of the cases; the list has the same ones" }));
    box.addEventListener("pointerdown", (event) => this.#down(event));
    box.addEventListener("pointermove", (event) => this.#move(event));
    box.addEventListener("pointerup", () => this.#up());
    box.addEventListener("pointercancel", () => { this.drawn = null; this.#outline(); });
    box.addEventListener("click", (event) => { if (!this.isLasso) this.onChoose(this.#numberAt(event)); this.isLasso = false; });
    box.addEventListener("pointerleave", () => this.onHover(null));
    new ResizeObserver(() => this.draw()).observe(box);
  }

  // points: [{number, x, y, fill, isOut}]; x and y in units of the axes, fill null without a value. lines: levels of y; rug: points without y.
  show(points, { xTitle, yTitle, lines, rug, outline, chosen }) {
    Object.assign(this, { points, xTitle, yTitle, lines, rug, outline, chosen });
    this.draw();
  }

  mark(chosen) { this.chosen = chosen; this.#ring(); }

  draw() {
    if (!this.points) return;
    const { width, height } = this.box.getBoundingClientRect(), { left, right, top, bottom } = MARGIN;
    if (width < left + right + 20 || height < top + bottom + 20) return;
    this.xAxis = findAxis([...this.points, ...this.rug].map((p) => p.x), left, width - right, Math.max(2, Math.floor(width / 110)));
    this.yAxis = findAxis([...this.points.map((p) => p.y), ...this.lines.map(({ y }) => y)], height - bottom, top, Math.max(2, Math.floor(height / 70)));
    this.root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (const tick of this.xAxis.ticks) {
      const x = this.xAxis.place(tick);
      parts.push(svg("line", { class: "axis", x1: x, x2: x, y1: top, y2: height - bottom }), text(x, height - bottom + 15, word(tick), "middle"));
    }
    for (const tick of this.yAxis.ticks) {
      const y = this.yAxis.place(tick);
      parts.push(svg("line", { class: "axis", x1: left, x2: width - right, y1: y, y2: y }), text(left - 6, y + 4, word(tick), "end"));
    }
    for (const { y: value, isDotted } of this.lines) {
      const y = this.yAxis.place(value);
      parts.push(svg("line", { class: `limit${isDotted ? " dotted" : ""}`, x1: left, x2: width - right, y1: y, y2: y }));
    }
    const wide = text((left + width - right) / 2, height - 8, this.xTitle, "middle", "title");
    const tall = text(0, 0, this.yTitle, "middle", "title");
    tall.setAttribute("transform", `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`);
    parts.push(wide, tall);
    const radius = this.points.length > 600 ? 3.5 : 5;
    for (const p of this.points) {
      const dot = svg("circle", { class: `case${p.fill ? "" : " unknown"}${p.isOut ? " out" : ""}`, cx: this.xAxis.place(p.x), cy: this.yAxis.place(p.y), r: radius });
      if (p.fill) dot.style.fill = p.fill;
      dot.dataset.point = p.number;
      parts.push(dot);
    }
    for (const p of this.rug) {
      const x = this.xAxis.place(p.x), tick = svg("line", { class: "tick", x1: x, x2: x, y1: height - bottom - 9, y2: height - bottom });
      if (p.fill) tick.style.stroke = p.fill;
      tick.dataset.point = p.number;
      parts.push(tick);
    }
    this.mark_ = svg("circle", { class: "ring", r: radius + 4 });
    this.path = svg("polygon", { class: "outline" });
    this.root.replaceChildren(...parts, this.mark_, this.path);
    shorten(wide, width - left - right);
    shorten(tall, height - top - bottom);
    this.#ring();
    this.#outline();
  }

  #ring() {
    const p = this.points?.find((each) => each.number === this.chosen);
    if (!this.mark_) return;
    this.mark_.style.display = p ? "" : "none";
    if (!p) return;
    this.mark_.setAttribute("cx", this.xAxis.place(p.x));
    this.mark_.setAttribute("cy", this.yAxis.place(p.y));
  }

  #outline() {
    const corners = this.drawn ?? (this.outline ? pairs(this.outline).map(([x, y]) => [this.xAxis.place(x), this.yAxis.place(y)]) : []);
    this.path?.setAttribute("points", corners.map((corner) => corner.join(",")).join(" "));
  }

  #numberAt(event) {
    const number = event.target.dataset?.point;
    return number === undefined ? null : Number(number);
  }

  #at(event) {
    const { left, top } = this.box.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  #down(event) {
    if (!(event.shiftKey || this.box.classList.contains("lassoing")) || event.button !== 0) return;
    event.preventDefault();
    this.box.setPointerCapture(event.pointerId);
    this.drawn = [this.#at(event)];
  }

  #move(event) {
    if (!this.drawn) { this.onHover(this.#numberAt(event), event); return; }
    this.drawn.push(this.#at(event));
    this.#outline();
  }

  #up() {
    if (!this.drawn) return;
    const corners = this.drawn;
    this.drawn = null;
    this.isLasso = corners.length > 3;
    if (!this.isLasso) { this.#outline(); return; }
    this.onLasso(corners.flatMap(([x, y]) => [this.xAxis.value(x), this.yAxis.value(y)]));
  }
}

// Numbers of the cases inside an outline in units of the axes.
export function insideOf(points, outline) {
  const places = Float64Array.from(points.flatMap((p) => [p.x, p.y]));
  return [...pointsInside(outline, places, points.map((_, k) => k))].map((k) => points[k].number);
}

const pairs = (flat) => Array.from({ length: flat.length / 2 }, (_, k) => [flat[2 * k], flat[2 * k + 1]]);

function text(x, y, words, anchor, kind = "") {
  const element = svg("text", { x, y, "text-anchor": anchor, class: kind });
  element.textContent = words;
  return element;
}

// A title that is longer than its axis ends with an ellipsis.
function shorten(element, length) {
  while (element.getComputedTextLength() > length && element.textContent.length > 4) element.textContent = `${element.textContent.slice(0, -4).trimEnd()}…`;
}

const word = (tick) => (tick === 0 ? "0" : Math.abs(tick) >= 1e5 || Math.abs(tick) < 1e-3 ? brief(tick) : String(Number(tick.toPrecision(6)))).replace("-", "−");

function findAxis(values, from, to, most) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!(low < high)) { const middle = Number.isFinite(low) ? low : 0; low = middle - 0.5; high = middle + 0.5; }
  const pad = 0.04 * (high - low);
  low -= pad;
  high += pad;
  const rough = (high - low) / most, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * size >= rough) * size;
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(k * step);
  return {
    low, high, ticks,
    place: (value) => from + ((value - low) / (high - low)) * (to - from),
    value: (place) => low + ((place - from) / (to - from)) * (high - low),
  };
}
