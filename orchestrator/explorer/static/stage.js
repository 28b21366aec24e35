// The map: one pane, or two with the same view for two trials; panning, zooming, lasso, hovering.

import { css, scales } from "explorer/colours.js";
import { $, brief, count, h, svg } from "explorer/dom.js";
import { chipOf, scaleOf } from "explorer/legend.js";
import { WRONG, isPlaced } from "explorer/model.js";
import { Grid, Scatter, View } from "explorer/scatter.js";

const NEAR_PX = 9, STEP_PX = 3;

class Pane {
  constructor(stage, view, title) {
    this.canvas = h("canvas", {});
    this.overlay = svg("svg", { class: "overlay" });
    this.title = h("div", { class: "pane-title" }, title ?? "");
    this.box = h("div", { class: "pane", tabindex: "0" }, this.canvas, this.overlay, this.title);
    stage.append(this.box);
    this.scatter = new Scatter(this.canvas, view);
  }
}

export class Stage {
  constructor(box, handlers) {
    this.box = box;
    this.handlers = handlers;
    this.view = new View();
    this.tool = "pan";
    this.marks = { point: null, hovered: null, neighbours: [], outline: null };
    this.panesBox = h("div", { id: "panes" });
    this.legend = h("div", { id: "legend" });
    this.note = h("div", { id: "map-note" });
    this.tools = this.#buildTools();
    box.append(this.panesBox, this.tools, h("div", { id: "below" }, this.legend, this.note));
    this.panes = [];
    this.#addPane();
    this.view.onChange((moving) => { this.drawOverlay(); if (!moving) return; this.#settle(); });
  }

  #buildTools() {
    const tool = (name, label, title, run) => h("button", { id: `tool-${name}`, title, onclick: run }, label);
    return h("div", { id: "tools", role: "toolbar", "aria-label": "Map" },
      tool("pan", "Move", "Drag to move, wheel to zoom (M)", () => this.setTool("pan")),
      tool("lasso", "Lasso", "Draw around points; Shift and drag does it at any time (L)", () => this.setTool("lasso")),
      tool("fit", "Fit", "Show all points (0)", () => this.fit()));
  }

  setTool(name) {
    this.tool = name;
    for (const each of ["pan", "lasso"]) $(`tool-${each}`).setAttribute("aria-pressed", String(each === name));
    this.box.classList.toggle("lassoing", name === "lasso");
  }

  #addPane() {
    const pane = new Pane(this.panesBox, this.view);
    this.#listen(pane);
    pane.scatter.onResize = () => { this.drawOverlay(); this.handlers.onResize?.(); };
    this.panes.push(pane);
    return pane;
  }

  #settle() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.handlers.onView([this.view.x, this.view.y, this.view.scale]), 200);
  }

  // Positions of all points, and for each pane its colours, verdicts and title.
  show({ positions, panes, points, size, opacity, selection, theme, quickly }) {
    while (this.panes.length < panes.length) this.#addPane().scatter.setPositions(positions);
    while (this.panes.length > panes.length) this.panes.pop().box.remove();
    if (this.numPanes !== panes.length) for (const { scatter } of this.panes) scatter.resize(); // at once, not when observed
    this.numPanes = panes.length;
    if (positions !== this.positions) {
      this.positions = positions;
      for (const pane of this.panes) pane.scatter.setPositions(positions);
    }
    if (this.given?.points !== points || this.given.positions !== positions) {
      this.given = { points, positions };
      this.points = points.filter((p) => isPlaced(positions, p));
      this.grid = null;
    }
    const muted = [...scales(theme).muted.map((part) => part / 255), theme === "dark" ? 0.5 : 0.45];
    panes.forEach((each, number) => {
      const { scatter, title } = this.panes[number];
      title.textContent = title.title = each.title;
      title.hidden = panes.length < 2;
      scatter.size = size;
      scatter.opacity = opacity;
      if (this.panes[number].colours !== each.colours) scatter.setColours((this.panes[number].colours = each.colours));
      const parts = [[], [], []].map(() => new Uint32Array(this.points.length)), sizes = [0, 0, 0];
      for (const p of this.points) {
        const at = (selection && !selection[p]) || (each.match && each.match[p] < 0) ? 0 : each.verdict[p] === WRONG ? 2 : 1;
        parts[at][sizes[at]++] = p;
      }
      const order = new Uint32Array(this.points.length), groups = [];
      let first = 0;
      parts.forEach((part, at) => {
        order.set(part.subarray(0, sizes[at]), first);
        groups.push({ first, count: sizes[at], size: [0.85, 1, 1.25][at], instead: at === 0 ? muted : undefined });
        first += sizes[at];
      });
      scatter.setOrder(order, groups);
      if (quickly) scatter.request(true); // a part of them now, all of them as soon as it rests
      else scatter.draw(false);
    });
    this.drawOverlay();
  }

  setStyle(size, opacity) {
    for (const { scatter } of this.panes) {
      scatter.size = size;
      scatter.opacity = opacity;
      scatter.request();
    }
  }

  fit() {
    this.fitTo(this.points);
    this.handlers.onView(null);
  }

  fitTo(points) {
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const p of points) {
      const x = this.positions[2 * p], y = this.positions[2 * p + 1];
      if (x < left) left = x; if (x > right) right = x; if (y < bottom) bottom = y; if (y > top) top = y;
    }
    if (!(right >= left)) return;
    const { width, height } = this.panes[0].scatter, margin = 0.9;
    const span = [Math.max(right - left, 1e-9), Math.max(top - bottom, 1e-9)];
    this.setView([(left + right) / 2, (bottom + top) / 2, margin * Math.min(width / span[0], height / span[1])]);
  }

  setView([x, y, scale]) {
    Object.assign(this.view, { x, y, scale });
    this.view.changed(false);
  }

  // Moves the view so that a point is seen, if it is not.
  reveal(p) {
    if (p === null || !isPlaced(this.positions, p)) return;
    const { scatter } = this.panes[0], [left, top] = scatter.toScreen(this.positions[2 * p], this.positions[2 * p + 1]);
    if (left > 20 && top > 20 && left < scatter.width - 20 && top < scatter.height - 20) return;
    this.view.x = this.positions[2 * p];
    this.view.y = this.positions[2 * p + 1];
    this.view.changed(false);
    this.handlers.onView([this.view.x, this.view.y, this.view.scale]);
  }

  mark({ point = null, hovered = null, neighbours = [], outline = null }) {
    this.marks = { point, hovered, neighbours, outline };
    this.drawOverlay();
  }

  drawOverlay() {
    if (!this.positions) return;
    const { point, hovered, neighbours, outline } = this.marks;
    for (const { scatter, overlay } of this.panes) {
      const parts = [], place = (p) => scatter.toScreen(this.positions[2 * p], this.positions[2 * p + 1]);
      const ring = (p, name, radius) => {
        if (p === null || !isPlaced(this.positions, p)) return;
        const [cx, cy] = place(p);
        parts.push(svg("circle", { cx, cy, r: radius, class: name }));
      };
      const line = this.drawing ?? outline;
      if (line?.length >= 4) {
        const corners = [];
        for (let i = 0; i < line.length; i += 2) corners.push(scatter.toScreen(line[i], line[i + 1]).map((v) => v.toFixed(1)).join(","));
        parts.push(svg("polygon", { points: corners.join(" "), class: "outline" }));
      }
      for (const p of neighbours) ring(p, "neighbour", scatter.size / 2 + 3);
      ring(hovered, "hovered", scatter.size / 2 + 4);
      ring(point, "chosen", scatter.size / 2 + 6);
      overlay.replaceChildren(...parts);
    }
  }

  #find(pane, event) {
    this.grid ??= new Grid(this.positions, this.points);
    const box = pane.box.getBoundingClientRect(), [x, y] = pane.scatter.toPlane(event.clientX - box.left, event.clientY - box.top);
    return this.grid.nearest(x, y, NEAR_PX / this.view.scale);
  }

  #listen(pane) {
    const { box } = pane, fingers = new Map();
    let start = null, distance = 0;
    const at = (event) => {
      const frame = box.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    };
    const spreadOf = () => {
      const [a, b] = [...fingers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.positions) return;
      box.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, at(event));
      if (fingers.size === 2) { distance = spreadOf(); this.drawing = null; start = null; return; }
      const lasso = this.tool === "lasso" || event.shiftKey;
      start = { from: at(event), view: { x: this.view.x, y: this.view.y }, moved: false, lasso };
      if (lasso) this.drawing = [...pane.scatter.toPlane(...at(event))];
    });
    box.addEventListener("pointermove", (event) => {
      if (!this.positions) return;
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, at(event));
      if (fingers.size === 2) {
        const now = spreadOf();
        this.zoom(pane, [...fingers.values()][0], now / (distance || now));
        distance = now;
        return;
      }
      if (!start) { this.#hover(pane, event); return; }
      const [left, top] = at(event), [dx, dy] = [left - start.from[0], top - start.from[1]];
      if (!start.moved && Math.hypot(dx, dy) < 4) return;
      start.moved = true;
      this.handlers.onHover(null);
      if (start.lasso) {
        const last = pane.scatter.toScreen(this.drawing.at(-2), this.drawing.at(-1));
        if (Math.hypot(left - last[0], top - last[1]) >= STEP_PX) this.drawing.push(...pane.scatter.toPlane(left, top));
        this.drawOverlay();
        return;
      }
      this.view.x = start.view.x - dx / this.view.scale;
      this.view.y = start.view.y + dy / this.view.scale;
      this.view.changed(true);
    });
    const end = (event) => {
      fingers.delete(event.pointerId);
      const done = start, drawn = this.drawing;
      start = null;
      this.drawing = null;
      if (!done) return;
      if (done.lasso && done.moved && drawn.length >= 6) this.handlers.onLasso(Float32Array.from(drawn));
      else if (!done.moved && event.type === "pointerup") {
        const found = this.#find(pane, event);
        this.handlers.onClick(found < 0 ? null : found);
      }
      this.drawOverlay();
    };
    box.addEventListener("pointerup", end);
    box.addEventListener("pointercancel", end);
    box.addEventListener("pointerleave", () => this.handlers.onHover(null));
    box.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(pane, at(event), Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)));
    }, { passive: false });
  }

  #hover(pane, event) {
    if (event.pointerType === "touch") return;
    const found = this.#find(pane, event);
    this.handlers.onHover(found < 0 ? null : found, event, this.panes.indexOf(pane));
  }

  zoom(pane, [left, top], factor) {
    if (!this.positions) return;
    const [x, y] = pane.scatter.toPlane(left, top);
    this.view.scale *= factor;
    const [nowX, nowY] = pane.scatter.toPlane(left, top);
    this.view.x += x - nowX;
    this.view.y += y - nowY;
    this.view.changed(true);
  }

  zoomBy(factor) {
    const { scatter } = this.panes[0];
    this.zoom(this.panes[0], [scatter.width / 2, scatter.height / 2], factor);
  }

  showLegend(legend, note, word = brief) {
    this.note.textContent = note ?? "";
    if (legend.kind === "scales") {
      const ends = [legend.low, legend.middle, legend.high].filter((v) => v !== undefined).map(word);
      this.legend.replaceChildren(...legend.bars.map((bar) => scaleOf([`${bar.name} `, h("small", {}, count(bar.count))], bar.stops, ends.filter((text, k) => text !== ends[k - 1]))));
      return;
    }
    const chip = (level) => chipOf(css(level.colour), level.name, " ", h("small", {}, count(level.count)));
    this.legend.replaceChildren(...legend.levels.map(chip), legend.more ? h("small", {}, `and ${legend.more} more`) : "");
  }
}
