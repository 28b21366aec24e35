// The explorer of segmentations: cases worst first, on a plot of any two of their numbers, and the chosen one's pictures.

import { category, css, gradient, ramp, scales } from "explorer/colours.js";
import { $, brief, h, plural, remember, remembered, showDialog, showText } from "explorer/dom.js";
import { insideOf, legendOf, Plot } from "explorer/segmentation-plot.js";
import { describePlace, pictureOf, renderCase } from "explorer/segmentation-case.js";
import { openSource } from "explorer/source.js";

const MOST_LISTED = 200;
const DICE = "metric:dice";
const VIEWS = { map: "Map", score: "Dice over confidence", areas: "Sizes" };
const NUMBERS = ["case", "trial"], TEXTS = ["x", "y", "colour", "sort"];

class App {
  constructor() {
    this.source = openSource();
    this.state = this.#read();
    this.theme = remembered() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = this.theme;
    const lasso = h("button", { id: "lasso", "aria-pressed": "false", title: "Draw around cases (L, or Shift and drag)", onclick: () => this.toggleLasso() }, "Lasso");
    this.views = h("div", { class: "segments", role: "group", "aria-label": "What the plot shows" });
    const plot = h("div", { id: "plot" });
    this.legend = h("div", { id: "legend" });
    this.note = h("div", { id: "map-note" });
    $("stage").append(h("div", { id: "toolbar", class: "row" }, this.views, lasso), plot, h("div", { id: "below" }, this.legend, this.note));
    this.plot = new Plot(plot, {
      onChoose: (number) => this.choose(number, true), onHover: (number, event) => this.hover(number, event), onLasso: (outline) => this.change({ outline }),
    });
    $("theme").onclick = () => this.toggleTheme();
    $("menu").onclick = () => this.toggleMenu();
    $("help").onclick = showKeys;
    $("link").onclick = () => this.copyLink();
    addEventListener("keydown", (event) => this.onKey(event));
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) === this.written) return;
      this.state = this.#read();
      this.refresh();
    });
  }

  #read() {
    const found = new URLSearchParams(location.hash.slice(1)), list = (text) => text.split(",").filter(Boolean).map(Number).filter(Number.isFinite);
    const state = { trial: null, case: null, x: null, y: null, colour: DICE, sort: DICE, sets: null, outline: null };
    for (const name of NUMBERS) if (/^\d+$/.test(found.get(name) ?? "")) state[name] = Number(found.get(name));
    for (const name of TEXTS) state[name] = found.get(name) ?? state[name];
    if (found.get("t")) state.trial = Number(found.get("t"));
    if (found.has("sets")) state.sets = list(found.get("sets"));
    const outline = list(found.get("outline") ?? "");
    if (outline.length >= 6 && outline.length % 2 === 0) state.outline = outline;
    return state;
  }

  #write() {
    const { state } = this, said = new URLSearchParams();
    for (const name of [...NUMBERS, ...TEXTS]) if (state[name] !== null) said.set(name, state[name]);
    if (state.sets) said.set("sets", state.sets.join(","));
    if (state.outline) said.set("outline", state.outline.map((each) => Number(each.toPrecision(5))).join(","));
    this.written = said.toString();
    history.replaceState(null, "", `#${this.written}`);
  }

  async start() {
    this.study = await this.source.study();
    $("study").textContent = this.study.study;
    $("question").textContent = this.study.question ?? "";
    document.title = `${this.study.study} · explorer`;
    this.state.trial ??= this.study.first;
    await this.refresh();
  }

  say(text, isProblem = false) {
    $("status").textContent = text;
    $("status").classList.toggle("problem", isProblem);
  }

  change(patch) {
    Object.assign(this.state, patch);
    return this.refresh().catch((error) => this.say(error.message, true));
  }

  // Another trial has cases of its own: what was chosen is found again by set and id.
  async changeTrial(trial) {
    const before = this.number === null ? null : { id: this.index.cases[this.number].id, set: this.index.sets[this.index.cases[this.number].set].name };
    this.index = null;
    await this.change({ trial, case: null, outline: null, sets: null });
    if (before && this.index) this.choose(this.#find(before));
  }

  #find({ id, set }) {
    const found = this.index.cases.findIndex((each) => each.id === id && this.index.sets[each.set].name === set);
    return found < 0 ? null : found;
  }

  async refresh() {
    const { trial } = this.state;
    if (!this.index || this.indexOf !== trial) {
      this.say("Reading the cases of the trial");
      const index = await this.source.trial(trial);
      if (trial !== this.state.trial) return;
      Object.assign(this, { index, indexOf: trial });
      this.columns = listColumns(index);
      this.say("");
    }
    const { state, columns } = this;
    const [x, y] = this.viewAxes(usualView(this.index));
    if (!columns.has(state.x)) state.x = x;
    if (!columns.has(state.y)) state.y = y;
    if (state.colour !== "set" && !columns.has(state.colour)) state.colour = columns.has(DICE) ? DICE : "set";
    if (!columns.has(state.sort)) state.sort = columns.has(DICE) ? DICE : [...columns.keys()][0];
    if (state.case !== null && !(state.case < this.index.cases.length)) state.case = null;
    this.draw();
    this.renderControls();
    this.renderList();
    renderCase(this);
    this.#write();
    document.documentElement.dataset.ready = String(Number(document.documentElement.dataset.ready ?? 0) + 1);
  }

  get number() { return this.state.case; }

  // All but the training images, unless one asks for them.
  get sets() { return new Set(this.state.sets ?? this.index.sets.flatMap((set, k) => (set.name === "train" ? [] : [k]))); }

  get shown() { const { sets } = this; return this.index.cases.flatMap((each, k) => (sets.has(each.set) ? [k] : [])); }

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
    const { state, columns, theme } = this, paint = this.paint();
    const places = this.shown.map((number) => ({ number, x: this.value(state.x, number), y: this.value(state.y, number) }));
    const points = places.filter((p) => p.x !== null && p.y !== null);
    // What has no truth has no Dice: its other number stands along the axis.
    const rug = state.y === DICE ? places.filter((p) => p.x !== null && p.y === null) : [];
    this.picked = state.outline ? new Set(insideOf(points, state.outline)) : null;
    for (const p of rug) p.fill = state.colour === "set" ? paint(p.number) : null;
    for (const p of points) Object.assign(p, { fill: paint(p.number), isOut: this.picked !== null && !this.picked.has(p.number) });
    const lines = state.y === "area:difference" ? limitsOf(points.map((p) => p.y)) : [];
    // Bad cases lie above good ones.
    if (columns.has(DICE)) points.sort((a, b) => (this.value(DICE, b.number) ?? 2) - (this.value(DICE, a.number) ?? 2));
    this.plot.show(points, { xTitle: columns.get(state.x).title, yTitle: columns.get(state.y).title, lines, rug, outline: state.outline, chosen: state.case });
    const missing = places.length - points.length - rug.length, { explained, fitted_on } = this.index;
    this.note.textContent = [
      state.x.startsWith("place:") && fitted_on ? `PCA of the bottleneck's features, fitted on ${fitted_on} (${explained.map((share) => `${(100 * share).toFixed(0)} %`).join(" and ")} of the variance); all other sets placed on it.` : "Unshifted images.",
      lines.length ? `Bland–Altman: mean difference of all shown cases (${brief(lines[0].y)} %), dotted: 1.96 standard deviations around it.` : "",
      rug.length ? `Ticks at the bottom: ${plural(rug.length, "case")} without Dice.` : "",
      missing ? `${plural(missing, "case")} without these numbers in the list only.` : ""].filter(Boolean).join(" ");
    document.documentElement.dataset.theme = theme;
    for (const button of this.views.children) button.setAttribute("aria-pressed", String(this.viewAxes(button.value).join() === `${state.x},${state.y}`));
  }

  // Returns the colour of a case, and shows the legend.
  paint() {
    const { state, index, theme, columns } = this, sets = this.sets;
    if (state.colour === "set") {
      this.legend.replaceChildren(...index.sets.flatMap((set, k) => (sets.has(k) ? [legendOf(set.name, css(category(k)))] : [])));
      return (number) => css(category(index.cases[number].set));
    }
    const { title, range } = columns.get(state.colour), { wrong, right, number: plain } = scales(theme);
    // A share from bad to good: the scales of wrong and right meet.
    const stops = state.colour === DICE ? [wrong[2], wrong[1], right[1], right[2]] : plain, table = ramp(stops);
    const known = this.shown.map((each) => this.value(state.colour, each)).filter((each) => each !== null);
    const [low, high] = range ?? [Math.min(...known), Math.max(...known)];
    const bar = h("div", { class: "bar" });
    bar.style.background = gradient(stops);
    this.legend.replaceChildren(...(known.length ? [h("div", { class: "scale" }, h("span", {}, title), bar, h("div", { class: "ends" }, h("span", {}, brief(low)), h("span", {}, brief(high))))] : []),
      ...(known.length < this.shown.length ? [legendOf(state.colour.startsWith("metric:") ? "no truth" : "not known")] : []));
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
    const choose = (title, id, options, chosen, run) => h("label", { class: "field wide" }, h("span", {}, title),
      h("select", { id, onchange: (event) => run(event.target.value) }, options.map(([value, words]) => h("option", { value, selected: value === String(chosen) }, words))));
    const columns = [...this.columns].map(([name, { title }]) => [name, title]);
    const trials = study.trials.filter((each) => each.state === "complete").map((each) => [String(each.number), `${each.name} · replicate ${each.replicate}`]);
    $("controls").replaceChildren(
      h("section", {}, h("h2", {}, "Trial"), choose("Trained model", "trial", trials, state.trial, (value) => this.changeTrial(Number(value)))),
      h("section", {}, h("h2", {}, "Plot"),
        choose("Across", "x", columns, state.x, (x) => this.change({ x, outline: null })),
        choose("Up", "y", columns, state.y, (y) => this.change({ y, outline: null })),
        choose("Colour", "colour", [["set", "set"], ...columns], state.colour, (colour) => this.change({ colour }))),
      h("section", {}, h("h2", {}, "Sets, mean Dice"), index.sets.map((set, k) => h("label", { class: "block" },
        h("input", { type: "checkbox", checked: sets.has(k), onchange: () => this.toggleSet(k) }), h("span", { class: "name", title: set.name }, set.name),
        h("span", { class: "error", title: set.has_targets ? "mean Dice" : "no truth" }, set.has_targets ? brief(meanOf(this.diceOf(k))) : plural(set.count, "case"))))),
    );
  }

  diceOf(set) { return this.index.cases.flatMap((each, k) => (each.set === set ? [this.value(DICE, k)] : [])); }

  toggleSet(number) {
    const { sets } = this;
    if (!sets.delete(number)) sets.add(number);
    this.change({ sets: [...sets].sort((a, b) => a - b) });
  }

  // Worst first: lowest Dice or confidence; what has none is at the end.
  renderList() {
    const { state, picked } = this, listed = picked ? this.shown.filter((each) => picked.has(each)) : this.shown;
    const key = (number) => this.value(state.sort, number) ?? Infinity;
    this.list = listed.sort((a, b) => key(a) - key(b) || a - b);
    const sorts = [...this.columns].filter(([name]) => name === DICE || name.startsWith("score:"));
    const sort = h("select", { id: "within", "aria-label": "Order", onchange: (event) => this.change({ sort: event.target.value }) },
      sorts.map(([name, { title, short }]) => h("option", { value: name, selected: name === state.sort }, short ? `lowest confidence: ${short}` : `lowest ${title}`)));
    this.most = Math.max(MOST_LISTED, this.list.indexOf(state.case) + 1);
    const rows = h("div", { class: "rows" }, this.list.slice(0, this.most).map((number) => this.#row(number)));
    const more = this.list.length > this.most ? h("p", { class: "faint" }, `and ${plural(this.list.length - this.most, "case")} more: draw a lasso around some`) : null;
    $("lists").replaceChildren(h("div", { id: "list" }, picked ? this.#summary() : null, h("div", { class: "row" }, h("b", {}, plural(this.list.length, "case")), sort), rows, more));
  }

  #row(number) {
    const each = this.index.cases[number], set = this.index.sets[each.set], dice = this.columns.has(DICE) ? this.value(DICE, number) : null;
    const panel = set.has_targets ? "errors" : "prediction", { sort } = this.state;
    const own = sort === DICE ? null : this.value(sort, number);
    return h("button", { class: "case-row", "data-number": number, "aria-current": String(number === this.number), onclick: () => this.choose(number) },
      this.index.no_images ? h("span", { class: "no-image" }) : h("img", { src: pictureOf(this.state.trial, number, panel, 96), alt: "", loading: "lazy" }),
      h("span", { class: "what" }, each.id, h("small", {}, describePlace(set, each))),
      h("span", { class: "value" }, dice === null ? (own === null ? "–" : brief(own)) : `Dice ${brief(dice)}${own === null ? "" : ` · ${brief(own)}`}`));
  }

  #summary() {
    const inside = [...this.picked], dice = (numbers) => numbers.map((each) => (this.columns.has(DICE) ? this.value(DICE, each) : null)).filter((each) => each !== null);
    const all = dice(inside), number = (words, value) => h("div", { class: "number" }, h("span", {}, words), h("b", {}, value));
    const rows = this.index.sets.flatMap((set, k) => {
      const own = inside.filter((each) => this.index.cases[each].set === k);
      return own.length ? [h("tr", {}, [set.name, own.length, brief(meanOf(dice(own))), brief(Math.min(...dice(own)))].map((cell) => h("td", {}, String(cell))))] : [];
    });
    return h("div", { class: "summary" },
      h("div", { class: "numbers" }, number("inside", String(inside.length)), number("mean Dice", brief(meanOf(all))), number("lowest Dice", brief(Math.min(...all)))),
      h("table", {}, h("tr", {}, ["set", "cases", "mean Dice", "lowest"].map((word) => h("th", {}, word))), rows),
      h("button", { onclick: () => this.change({ outline: null }) }, "Select nothing (Esc)"));
  }

  choose(number, scroll = false) {
    this.state.case = number;
    this.#write();
    this.plot.mark(number);
    for (const row of document.querySelectorAll(".case-row")) {
      const isChosen = Number(row.dataset.number) === number;
      row.setAttribute("aria-current", String(isChosen));
      if (isChosen && scroll && innerWidth > 860) row.scrollIntoView({ block: "nearest" });
    }
    renderCase(this);
  }

  step(by) {
    if (!this.list?.length) return;
    const at = this.list.indexOf(this.number);
    const next = at < 0 ? (by > 0 ? 0 : this.list.length - 1) : Math.max(0, Math.min(this.list.length - 1, at + by));
    this.choose(this.list[next], true);
  }

  hover(number, event) {
    const card = $("card");
    card.hidden = number === null || event.pointerType === "touch";
    if (card.hidden) return;
    const each = this.index.cases[number], set = this.index.sets[each.set];
    if (this.hovered !== number || !card.childElementCount) {
      this.hovered = number;
      const picture = this.index.no_images ? null : h("img", { src: pictureOf(this.state.trial, number, set.has_targets ? "errors" : "prediction", 96), alt: "", width: 96, height: 96 });
      const dice = this.columns.has(DICE) ? this.value(DICE, number) : null;
      card.replaceChildren(...[picture, h("div", {}, h("b", {}, dice === null ? "no truth" : `Dice ${brief(dice)}`), h("div", { class: "faint" }, describePlace(set, each)), h("div", { class: "faint id" }, each.id))].filter(Boolean));
    }
    const { width, height } = card.getBoundingClientRect(), gap = 16;
    const left = event.clientX + gap + width > innerWidth ? event.clientX - gap - width : event.clientX + gap;
    card.style.left = `${Math.max(8, left)}px`;
    card.style.top = `${Math.min(Math.max(8, event.clientY - height / 2), innerHeight - height - 8)}px`;
  }

  // An image says only that it failed; its server says why.
  async explainPicture(source) {
    try {
      const answer = await fetch(source);
      if (!answer.ok) this.say((await answer.json()).error, true);
    } catch {
      this.say("The server does not answer; start `robustsweep explore` again.", true);
    }
  }

  toggleLarge() {
    this.isLarge = !this.isLarge;
    document.querySelector("#case .figures")?.classList.toggle("large", this.isLarge);
  }

  toggleLasso() { $("lasso").setAttribute("aria-pressed", String($("plot").classList.toggle("lassoing"))); }

  toggleTheme() {
    this.theme = this.theme === "dark" ? "light" : "dark";
    remember(this.theme);
    this.draw();
  }

  toggleMenu() { $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("menu-open"))); }

  async copyLink() {
    try { await navigator.clipboard.writeText(location.href); this.say("Link copied"); } catch { showText("The link to this view", location.href); }
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open || !this.index) return;
    const { tagName, type } = event.target;
    if (tagName === "SELECT" || tagName === "TEXTAREA" || (tagName === "INPUT" && type !== "checkbox")) return;
    const run = {
      ArrowDown: () => this.step(1), ArrowRight: () => this.step(1), ArrowUp: () => this.step(-1), ArrowLeft: () => this.step(-1),
      z: () => this.toggleLarge(), l: () => this.toggleLasso(), d: () => this.toggleTheme(), "?": showKeys,
      Escape: () => (this.number !== null ? this.choose(null) : this.change({ outline: null })),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!run) return;
    event.preventDefault();
    run();
  }
}

function showKeys() {
  const keys = [["← →  ↑ ↓", "case before, next case of the list"], ["L", "lasso on or off"], ["Shift + drag", "lasso at any time"], ["Z", "pictures larger or smaller"],
    ["Esc", "close the case, then select nothing"], ["D", "light or dark"], ["?", "this list"]];
  showDialog("Keys", h("dl", {}, keys.map(([key, words]) => [h("dt", {}, key), h("dd", {}, words)])));
}

const meanOf = (values) => { const known = values.filter((each) => each !== null); return known.reduce((sum, each) => sum + each, 0) / known.length; };

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

const app = new App();
window.explorer = app;
app.start().catch((error) => { app.say(error.message, true); throw error; });
