// The explorer of segmentations: cases worst first, on a plot of any two of their numbers, and the chosen one's pictures.

import { category, css, ramp, scales } from "explorer/colours.js";
import { $, brief, h, plural } from "explorer/dom.js";
import { aboutFile, field, section, select, trialOptions } from "explorer/fields.js";
import { CLOSE, DRAG, Frame, LARGER, LAST, STEPS, open } from "explorer/frame.js";
import { chipOf, scaleOf } from "explorer/legend.js";
import { markListed, tabKeys } from "explorer/panel.js";
import { describePlace, renderCase, smallPicture } from "explorer/segmentation-case.js";
import { DICE, TABS, meanOf, renderLists } from "explorer/segmentation-lists.js";
import { Plot, insideOf } from "explorer/segmentation-plot.js";
import { EmbeddedCases, ServedCases } from "explorer/segmentation-source.js";
import { openSource } from "explorer/source.js";

const VIEWS = { map: "Map", score: "Dice over confidence", areas: "Sizes" };
const HELP = [STEPS, ["↑ ↓", "the same"], ["L", "lasso on or off"], DRAG, CLOSE, ["1 – 4", "cases, selection, clusters, notes"], LARGER, ...LAST];
// Name in the state → key in the address.
const NUMBERS = { trial: "t", point: "case" }, TEXTS = { x: "x", y: "y", colour: "colour", sort: "sort", tab: "tab", group: "group" };

function read(text) {
  const found = new URLSearchParams(text), list = (key) => (found.get(key) ?? "").split(",").filter(Boolean).map(Number).filter(Number.isFinite);
  const state = { trial: null, point: null, x: null, y: null, colour: DICE, sort: DICE, tab: "cases", group: null, sets: null, outline: null };
  for (const [name, key] of Object.entries(NUMBERS)) if (/^\d+$/.test(found.get(key) ?? "")) state[name] = Number(found.get(key));
  for (const [name, key] of Object.entries(TEXTS)) state[name] = found.get(key) ?? state[name];
  if (!/^(cluster|part) \d+$/.test(state.group ?? "")) state.group = null;
  if (found.has("sets")) state.sets = list("sets");
  const outline = list("outline");
  if (outline.length >= 6 && outline.length % 2 === 0) state.outline = outline;
  return state;
}

function write(state) {
  const said = new URLSearchParams();
  for (const [name, key] of Object.entries({ ...NUMBERS, ...TEXTS })) if (state[name] !== null) said.set(key, state[name]);
  if (state.sets) said.set("sets", state.sets.join(","));
  if (state.outline) said.set("outline", state.outline.map((each) => Number(each.toPrecision(5))).join(","));
  return said.toString();
}

class App extends Frame {
  constructor() {
    super(openSource(ServedCases, EmbeddedCases), { read, write, help: HELP });
    Object.assign(this.keys, { l: () => this.toggleLasso(), ...tabKeys(this, TABS) });
    const lasso = h("button", { id: "lasso", "aria-pressed": "false", title: "Draw around cases (L, or Shift and drag)", onclick: () => this.toggleLasso() }, "Lasso");
    this.views = h("div", { class: "segments", role: "group", "aria-label": "What the plot shows" });
    const plot = h("div", { id: "plot" });
    this.legend = h("div", { id: "legend" });
    this.note = h("div", { id: "map-note" });
    $("stage").append(h("div", { id: "toolbar", class: "row" }, this.views, lasso), plot, h("div", { id: "below" }, this.legend, this.note));
    this.plot = new Plot(plot, {
      onChoose: (number) => this.choose(number, true), onHover: (number, event) => this.hover(number, event), onLasso: (outline) => this.change({ outline, group: null, tab: "selection" }),
    });
  }

  renderLists() { if (this.index) renderLists(this); }

  // Another trial has cases of its own: what was chosen is found again by set and id.
  async changeTrial(trial) {
    const { point } = this.state, before = point === null ? null : this.index.cases[point], set = before && this.index.sets[before.set].name;
    this.index = null;
    await this.change({ trial, point: null, outline: null, group: null, sets: null });
    if (before && this.index) this.choose(this.findPoint(set, before.id));
  }

  // Number of a case by set and id, null if this trial lacks it.
  findPoint(set, id) {
    const found = this.index.cases.findIndex((each) => each.id === id && this.index.sets[each.set].name === set);
    return found < 0 ? null : found;
  }

  async refresh() {
    const { trial } = this.state;
    if (!this.index || this.indexOf !== trial) {
      this.say("Reading the cases of the trial");
      const index = await this.source.trial(trial);
      if (trial !== this.state.trial) return;
      Object.assign(this, { index, indexOf: trial, clusters: null });
      this.columns = listColumns(index);
      this.say("");
    }
    const { state, columns } = this;
    const [x, y] = this.viewAxes(usualView(this.index));
    if (!columns.has(state.x)) state.x = x;
    if (!columns.has(state.y)) state.y = y;
    if (state.colour !== "set" && !columns.has(state.colour)) state.colour = columns.has(DICE) ? DICE : "set";
    if (!columns.has(state.sort)) state.sort = columns.has(DICE) ? DICE : [...columns.keys()][0];
    if (state.point !== null && !(state.point < this.index.cases.length)) state.point = null;
    const clusters = state.group || state.tab === "clusters" ? await this.#readClusters(trial) : null;
    if (trial !== this.state.trial || state !== this.state) return;
    if (clusters) this.clusters = clusters;
    this.draw();
    this.renderControls();
    this.renderLists();
    renderCase(this);
    this.writeAddress();
    document.documentElement.dataset.ready = String(Number(document.documentElement.dataset.ready ?? 0) + 1);
  }

  async #readClusters(trial) {
    try {
      return await this.source.clusters(trial, () => this.say("Looking for clusters"));
    } catch (error) {
      return { problem: error.message };
    } finally {
      this.say("");
    }
  }

  // Cases of a group: "cluster 0", "part 2".
  #listGroup(group) {
    const [kind, number] = group.split(" "), codes = this.clusters?.[kind === "part" ? "part_codes" : "codes"] ?? [];
    return codes.flatMap((code, k) => (code === Number(number) ? [k] : []));
  }

  // All but the training images, unless one asks for them.
  get sets() { return new Set(this.state.sets ?? this.index.sets.flatMap((set, k) => (set.name === "train" ? [] : [k]))); }

  get shown() { const { sets } = this; return this.index.cases.flatMap((each, k) => (sets.has(each.set) ? [k] : [])); }

  dice(number) { return this.columns.has(DICE) ? this.value(DICE, number) : null; }

  value(column, number) { return this.columns.get(column).of(this.index.cases[number]); }

  viewAxes(view) {
    const score = [...this.columns.keys()].find((name) => name.startsWith("score:spectral")) ?? [...this.columns.keys()].find((name) => name.startsWith("score:")) ?? DICE;
    return { map: ["place:0", "place:1"], score: [score, DICE], areas: ["area:mean", "area:difference"] }[view];
  }

  shareSurer(score, value) {
    const test = this.index.cases.filter((each) => this.index.sets[each.set].name === "test" && each.scores[score] !== null);
    return test.length && value !== null ? test.filter((each) => each.scores[score] > value).length / test.length : null;
  }

  draw() {
    const { state, columns } = this, paint = this.paint();
    const places = this.shown.map((number) => ({ number, x: this.value(state.x, number), y: this.value(state.y, number) }));
    const points = places.filter((p) => p.x !== null && p.y !== null);
    // What has no truth has no Dice: its other number stands along the axis.
    const rug = state.y === DICE ? places.filter((p) => p.x !== null && p.y === null) : [];
    const inside = state.group ? this.#listGroup(state.group) : null, isShown = new Set(inside ? this.shown : []);
    this.picked = inside ? new Set(inside.filter((each) => isShown.has(each))) : state.outline ? new Set(insideOf(points, state.outline)) : null;
    for (const p of rug) p.fill = state.colour === "set" ? paint(p.number) : null;
    for (const p of points) Object.assign(p, { fill: paint(p.number), isOut: this.picked !== null && !this.picked.has(p.number) });
    const lines = state.y === "area:difference" ? limitsOf(points.map((p) => p.y)) : [];
    // Bad cases lie above good ones.
    if (columns.has(DICE)) points.sort((a, b) => (this.value(DICE, b.number) ?? 2) - (this.value(DICE, a.number) ?? 2));
    this.plot.show(points, { xTitle: columns.get(state.x).title, yTitle: columns.get(state.y).title, lines, rug, outline: state.outline, chosen: state.point });
    const missing = places.length - points.length - rug.length, { explained, fitted_on } = this.index;
    this.note.textContent = [
      state.x.startsWith("place:") && fitted_on ? `PCA of the bottleneck's features, fitted on ${fitted_on} (${explained.map((share) => `${(100 * share).toFixed(0)} %`).join(" and ")} of the variance); all other sets placed on it.` : "Unshifted images.",
      lines.length ? `Bland–Altman: mean difference of all shown cases (${brief(lines[0].y)} %), dotted: 1.96 standard deviations around it.` : "",
      rug.length ? `Ticks at the bottom: ${plural(rug.length, "case")} without Dice.` : "",
      missing ? `${plural(missing, "case")} without these numbers in the list only.` : ""].filter(Boolean).join(" ");
    for (const button of this.views.children) button.setAttribute("aria-pressed", String(this.viewAxes(button.value).join() === `${state.x},${state.y}`));
  }

  // Returns the colour of a case, and shows the legend.
  paint() {
    const { state, index, theme, columns } = this, sets = this.sets;
    if (state.colour === "set") {
      this.legend.replaceChildren(...index.sets.flatMap((set, k) => (sets.has(k) ? [chipOf(css(category(k)), set.name)] : [])));
      return (number) => css(category(index.cases[number].set));
    }
    const { title, range } = columns.get(state.colour), { wrong, right, number: plain } = scales(theme);
    // A share from bad to good: the scales of wrong and right meet.
    const stops = state.colour === DICE ? [wrong[2], wrong[1], right[1], right[2]] : plain, table = ramp(stops);
    const known = this.shown.map((each) => this.value(state.colour, each)).filter((each) => each !== null);
    const [low, high] = range ?? [Math.min(...known), Math.max(...known)];
    this.legend.replaceChildren(...(known.length ? [scaleOf(title, stops, [brief(low), brief(high)])] : []),
      ...(known.length < this.shown.length ? [chipOf(null, state.colour.startsWith("metric:") ? "no truth" : "not known")] : []));
    return (number) => {
      const value = this.value(state.colour, number);
      if (value === null) return null;
      const step = Math.round(255 * Math.max(0, Math.min(1, (value - low) / (high - low || 1))));
      return css([table[3 * step], table[3 * step + 1], table[3 * step + 2]]);
    };
  }

  renderControls() {
    const { state, index, study } = this, sets = this.sets;
    this.views.replaceChildren(...Object.entries(VIEWS).flatMap(([view, title]) => {
      const [x, y] = this.viewAxes(view);
      return this.columns.has(x) && this.columns.has(y) ? [h("button", { value: view, "aria-pressed": String(state.x === x && state.y === y), onclick: () => this.change({ x, y, outline: null }) }, title)] : [];
    }));
    const columns = [...this.columns].map(([name, { title }]) => [name, title]);
    const choose = (title, id, options, run) => field(title, select(id, options, state[id], run));
    $("controls").replaceChildren(
      section("Trial", choose("Trained model", "trial", trialOptions(study), (value) => this.changeTrial(Number(value)))),
      section("Plot", choose("Across", "x", columns, (x) => this.change({ x, outline: null })), choose("Up", "y", columns, (y) => this.change({ y, outline: null })),
        choose("Colour", "colour", [["set", "set"], ...columns], (colour) => this.change({ colour }))),
      section("Sets, mean Dice", index.sets.map((set, k) => h("label", { class: "block" },
        h("input", { type: "checkbox", checked: sets.has(k), onchange: () => this.toggleSet(k) }), h("span", { class: "name", title: set.name }, set.name),
        h("span", { class: "error", title: set.has_targets ? "mean Dice" : "no truth" }, set.has_targets ? brief(meanOf(this.diceOf(k))) : plural(set.count, "case"))))),
      aboutFile(this),
    );
  }

  diceOf(set) { return this.index.cases.flatMap((each, k) => (each.set === set ? [this.value(DICE, k)] : [])); }

  toggleSet(number) {
    const { sets } = this;
    if (!sets.delete(number)) sets.add(number);
    this.change({ sets: [...sets].sort((a, b) => a - b) });
  }

  clearSelection() { this.change({ outline: null, group: null }); }

  choose(point, scroll = false) {
    this.state.point = point;
    this.writeAddress();
    this.plot.mark(point);
    markListed(this, scroll && innerWidth > 860);
    renderCase(this);
  }

  hover(number, event) {
    if (number === null || event.pointerType === "touch") { this.hideCard(); return; }
    this.showCard(number, event, () => {
      const each = this.index.cases[number], set = this.index.sets[each.set], dice = this.dice(number);
      return [this.index.no_images ? null : smallPicture(this, number, 96),
        h("div", {}, h("b", {}, dice === null ? "no truth" : `Dice ${brief(dice)}`), h("div", { class: "faint" }, describePlace(set, each)), h("div", { class: "faint id" }, each.id))].filter(Boolean);
    });
  }

  explainPicture(address) { this.source.explain(address).catch((error) => this.fail(error)); }

  toggleLasso() { $("lasso").setAttribute("aria-pressed", String($("plot").classList.toggle("lassoing"))); }
}

// Mean of differences, and 1.96 standard deviations on both sides of it (Bland & Altman 1986).
function limitsOf(values) {
  if (values.length < 2) return [];
  const mean = meanOf(values), sd = Math.sqrt(values.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (values.length - 1));
  return [{ y: mean }, { y: mean - 1.96 * sd, isDotted: true }, { y: mean + 1.96 * sd, isDotted: true }];
}

const usualView = (index) => (index.fitted_on ? "map" : "score");

// Numbers of a case that axes, colours and orders are chosen from: name → {title, of, range}.
function listColumns(index) {
  const columns = new Map();
  if (index.fitted_on) [0, 1].forEach((k) => columns.set(`place:${k}`, { title: `map, ${k ? "second" : "first"} axis`, of: (each) => each.place?.[k] ?? null }));
  index.metrics.forEach(({ name, title }, k) => columns.set(`metric:${name}`, { title, of: (each) => each.metrics?.[k] ?? null, range: name === "dice" ? [0, 1] : null }));
  index.scores.forEach(({ name, title }, k) => columns.set(`score:${name}`, { title: `${title} (higher: more confident)`, short: title, of: (each) => each.scores[k] }));
  if (index.cases.some((each) => each.areas)) {
    const area = (name, title, of) => columns.set(`area:${name}`, { title, of: (each) => (each.areas ? of(each.areas) : null) });
    area("predicted", `predicted ${index.measure}`, ([predicted]) => predicted);
    area("true", `true ${index.measure}`, ([, real]) => real);
    area("mean", `mean of predicted and true ${index.measure}`, ([predicted, real]) => (predicted + real) / 2);
    area("difference", `predicted − true ${index.measure}, % of the mean`, ([predicted, real]) => (predicted + real > 0 ? (200 * (predicted - real)) / (predicted + real) : 0));
  }
  return columns;
}

open(new App());
