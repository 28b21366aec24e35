// Brings together what is shown (state), the data (source, model), the map (stage) and the two sides.

import { renderCase } from "explorer/case.js";
import { renderControls } from "explorer/controls.js";
import { $, brief, h, percent, wordShift } from "explorer/dom.js";
import { CLOSE, DRAG, Frame, LARGER, LAST, STEPS, open } from "explorer/frame.js";
import { EmbeddedImages, ServedImages } from "explorer/image-source.js";
import { TABS, renderLists } from "explorer/lists.js";
import { NO_LABEL, Trial, UNKNOWN, WRONG, findShown, isPlaced, shuffled } from "explorer/model.js";
import { paint } from "explorer/paint.js";
import { markListed, tabKeys } from "explorer/panel.js";
import { pointsInside } from "explorer/polygon.js";
import { openSource } from "explorer/source.js";
import { Stage } from "explorer/stage.js";
import { read, write } from "explorer/state.js";

const HELP = [STEPS, ["↑ ↓", "the same"], ["O  U", "over-confident, under-confident failures"], ["L  M", "lasso, move"], DRAG, ["+  −  0", "zoom, fit"], CLOSE,
  ["1 – 4", "failures, selection, clusters, notes"], ["A", "where the model looked, on or off"], LARGER, ...LAST];

class App extends Frame {
  constructor() {
    super(openSource(ServedImages, EmbeddedImages), { read, write, help: HELP });
    this.trials = new Map();
    this.ticket = 0;
    this.stage = new Stage($("stage"), {
      onView: (view) => { this.state.view = view; this.writeAddress(); },
      // Until somebody moves it, the map fills its place.
      onResize: () => { if (!this.state.view && this.stage?.points) this.stage.fitTo(this.stage.points); },
      onHover: (point, event, pane) => this.hover(point, event, pane),
      onClick: (point) => this.choose(point),
      onLasso: (outline) => this.lasso(outline),
    });
    this.stage.setTool("pan");
    const show = (kind) => this.change({ tab: "failures", kind, point: null });
    Object.assign(this.keys, {
      o: () => show("over"), u: () => show("under"), a: () => this.toggleLooked(), l: () => this.stage.setTool("lasso"), m: () => this.stage.setTool("pan"),
      "+": () => this.stage.zoomBy(1.4), "=": () => this.stage.zoomBy(1.4), "-": () => this.stage.zoomBy(1 / 1.4), 0: () => this.stage.fit(), ...tabKeys(this, TABS),
    });
  }

  renderLists() { if (this.trial) renderLists(this); }

  changeStyle(patch) {
    Object.assign(this.state, patch);
    this.stage.setStyle(this.size, this.state.opacity / 100);
    this.writeAddress();
  }

  changeLooked(patch) {
    Object.assign(this.state, patch);
    if (this.state.looked) this.lastLooked = this.state.looked;
    this.writeAddress();
    renderCase(this).catch((error) => this.fail(error));
  }

  toggleLooked() {
    const first = this.study.attributions?.[0]?.name;
    if (this.state.point !== null && first) this.changeLooked({ looked: this.state.looked ? null : (this.lastLooked ?? first) });
  }

  fadeLooked(opacity) {
    this.state.lookedOpacity = opacity;
    for (const each of document.querySelectorAll(".looked-at")) each.style.opacity = String(opacity / 100);
    this.writeAddress();
  }

  // Larger where there are few.
  get size() {
    const n = this.points.length;
    return this.state.size ?? (n < 3_000 ? 7 : n < 20_000 ? 5 : n < 100_000 ? 4 : 3);
  }

  async openTrial(number) {
    if (!this.trials.has(number)) {
      const share = (value) => this.say(`Reading the predictions of the trial: ${percent(value, 0)}`);
      const index = await this.source.trial(number, share);
      const [labels, predicted] = await Promise.all(["labels", "predicted"].map((name) => this.source.array(number, name, "u2")));
      this.trials.set(number, new Trial(number, index, labels, predicted));
    }
    return this.trials.get(number);
  }

  scoreOf(trial) {
    const found = trial.index.scores.findIndex((each) => each.name === this.state.score);
    return Math.max(0, found);
  }

  get scoreName() { return this.trial.index.scores[this.scoreOf(this.trial)].name; }
  get scoreTitle() { return this.trial.index.scores[this.scoreOf(this.trial)].title; }
  get scoreFormula() { return this.trial.index.scores[this.scoreOf(this.trial)].formula; }

  get shown() {
    const wanted = this.state.blocks ?? this.trial.usual;
    return { blocks: wanted.filter((number) => number < this.trial.blocks.length) };
  }

  toggleBlocks(numbers) {
    const now = new Set(this.shown.blocks), all = numbers.every((number) => now.has(number));
    for (const number of numbers) { if (all) now.delete(number); else now.add(number); }
    this.change({ blocks: [...now].sort((a, b) => a - b) });
  }

  // Reads what the state needs and draws it. A later call overtakes an earlier one.
  async refresh() {
    const ticket = ++this.ticket, { state } = this, stale = () => ticket !== this.ticket;
    const trial = await this.openTrial(state.trial);
    const number = this.scoreOf(trial);
    const [positions, values] = await Promise.all([
      this.source.map(state.trial, state.map, (share) => this.say(`Computing the map: ${percent(share, 0)}`)),
      this.source.array(state.trial, "score", "f4", number),
    ]);
    const other = state.other === null ? null : await this.#openOther(trial, state.other, number);
    const clusters = await this.#readClusters(trial);
    const extra = await this.#readExtra(trial, clusters);
    if (stale()) return;
    if (clusters) this.clusters = clusters;
    if (this.trial !== trial && clusters === null) this.clusters = null;
    if (!this.ids || this.idsOf !== trial) {
      this.source.ids(trial.number).then((ids) => { this.ids = ids; this.idsOf = trial; if (state.tab === "notes" && this.trial === trial) this.renderLists(); });
    }
    if (this.trial !== trial) this.order = shuffled(trial.count);
    const isNew = this.trial !== trial || this.positions !== positions || Boolean(this.other) !== Boolean(other);
    Object.assign(this, { trial, positions, values, other, extra });
    const shownBy = `${trial.number} ${this.shown.blocks} ${state.classes}`;
    if (this.shownBy !== shownBy) {
      this.shownBy = shownBy;
      this.points = findShown(trial, this.order, this.shown.blocks, state.classes);
    }
    if (state.outline && !state.picked) state.picked = pointsInside(state.outline, positions, this.points);
    this.say("");
    this.draw();
    if (isNew) { if (state.view) this.stage.setView(state.view); else this.stage.fitTo(this.stage.points); }
    this.writeAddress();
    renderControls(this);
    this.renderLists();
    document.documentElement.dataset.ready = String(ticket);
    await renderCase(this);
  }

  // A score in the words of its formula: stored values rank without ties, a probability as its log odds.
  readValue(value) {
    if (!Number.isFinite(value)) return "–";
    return this.wordNumber(this.toFormula(value));
  }

  get scale() { return this.trial.index.scores[this.scoreOf(this.trial)].scale; }

  toFormula(value) {
    return this.scale === "log odds" ? 1 / (1 + Math.exp(-value)) : this.scale === "−log" ? Math.exp(-value) : value;
  }

  wordNumber(number) { return this.scale === "log odds" ? sure(number) : brief(number); }

  readScore(point) { return this.readValue(this.values[point]); }

  // Number of the unshifted point of an image, null if this trial lacks it.
  findPoint(setName, id) {
    const set = this.trial.index.sets.find((each) => each.name === setName);
    if (!set || !this.ids || this.idsOf !== this.trial) return null;
    const row = this.ids.indexOf(id, set.first_image) - set.first_image;
    return row >= 0 && row < set.count ? set.first_point + row : null;
  }

  clearSelection() { this.change({ picked: null, outline: null, origin: null }); }

  pickCluster(number) {
    const picked = [];
    for (let p = 0; p < this.trial.count; p++) if (this.clusters.codes[p] === number) picked.push(p);
    this.change({ picked: Uint32Array.from(picked), outline: null, origin: `cluster ${number + 1}` });
  }

  async #readClusters(trial) {
    if (this.state.colour !== "cluster" && this.state.tab !== "clusters") return null;
    try {
      const found = await this.source.clusters(trial.number, (share) => this.say(`Looking for clusters: ${percent(share, 0)}`));
      return found;
    } catch (error) {
      return { problem: error.message };
    }
  }

  async #openOther(trial, number, score) {
    const other = await this.openTrial(number), name = trial.index.scores[score].name;
    const there = other.index.scores.findIndex((each) => each.name === name);
    const [match, values] = await Promise.all([
      this.source.match(trial.number, number), this.source.array(number, "score", "f4", Math.max(0, there))]);
    // The other's predictions at this trial's places: as if they were this one's.
    const n = trial.count, mapped = { index: other.index, blocks: trial.blocks, blockOf: trial.blockOf, labels: trial.labels };
    mapped.count = n;
    mapped.number = number;
    mapped.match = match;
    mapped.predicted = new Uint16Array(n);
    mapped.verdict = new Uint8Array(n).fill(UNKNOWN);
    mapped.values = new Float32Array(n).fill(NaN);
    mapped.block = trial.block.bind(trial);
    mapped.image = trial.image.bind(trial);
    for (let p = 0; p < n; p++) {
      if (match[p] < 0) continue;
      mapped.predicted[p] = other.predicted[match[p]];
      mapped.verdict[p] = other.verdict[match[p]];
      mapped.values[p] = values[match[p]];
    }
    return mapped;
  }

  async #readExtra(trial, clusters) {
    const { colour } = this.state;
    if (colour === "cluster") return clusters && !clusters.problem ? clusters : null;
    if (!colour.startsWith("column:")) return null;
    const number = Number(colour.slice(7)), column = trial.index.columns[number];
    if (!column) { this.state.colour = "confidence"; return null; }
    const values = await this.source.array(trial.number, "column", column.levels ? "u2" : "f4", number);
    return { kind: column.levels ? "levels" : "number", name: column.name, levels: column.levels, values };
  }

  get selection() {
    const { picked } = this.state;
    if (!picked) return null;
    if (this.maskOf !== picked || this.mask.length !== this.trial.count) {
      this.maskOf = picked;
      this.mask = new Uint8Array(this.trial.count);
      for (const p of picked) this.mask[p] = 1;
    }
    return this.mask;
  }

  draw() {
    const { trial, other, points, positions, values, theme, state, extra } = this;
    const key = [trial, points, values, positions, state.colour, theme, extra, other];
    if (this.paintedBy?.every((each, k) => each === key[k])) { this.#show(true); return; }
    this.paintedBy = key;
    const placed = points.filter((p) => isPlaced(positions, p)), over = placed.length ? placed : points;
    const one = paint({ trial, points, over, by: state.colour, values, theme, extra });
    this.painted = one;
    const name = (number) => { const each = this.study.trials[number]; return `${each.name} · replicate ${each.replicate}`; };
    const panes = [{ colours: one.colours, verdict: trial.verdict, title: name(trial.number) }];
    if (other) {
      const matched = points.filter((p) => other.match[p] >= 0);
      const two = paint({ trial: other, points: matched, over: matched, by: state.colour, values: other.values, theme, extra });
      panes.push({ colours: two.colours, verdict: other.verdict, match: other.match, title: name(other.number) });
    }
    this.panes = panes;
    this.#show();
  }

  // Quickly: only the selection has changed.
  #show(quickly = false) {
    const { trial, points, positions, theme, state, panes } = this, one = this.painted;
    this.stage.show({ positions, panes, points, size: this.size, opacity: state.opacity / 100, selection: this.selection, theme, quickly });
    const on = trial.index.fitted_on, shares = trial.index.explained;
    const missing = points.length - this.stage.points.length;
    const note = on === null ? "No features are stored, so there is no map."
      : `${state.map === "pca" ? `PCA fitted on ${on} (${shares.map((share) => percent(share, 0)).join(" and ")} of its variance)` : `t-SNE fitted on ${on}`}, `
        + `all other sets placed on it${missing ? `; ${missing} images without stored features are in the lists only` : ""}.`;
    this.stage.showLegend(one.legend, note, (value) => (one.legend.isScore ? this.readValue(value) : brief(value)));
    this.stage.mark({ point: state.point, outline: state.outline });
  }

  hover(point, event, pane = 0) {
    this.stage.mark({ point: this.state.point, hovered: point, outline: this.state.outline, neighbours: this.neighbours ?? [] });
    if (point === null || point === undefined) this.hideCard();
    else this.showCard(`${point} ${pane}`, event, () => this.describe(point, pane));
  }

  className(trial, code) { return code === NO_LABEL ? "no class of the study" : (trial.index.classes[code] ?? String(code)); }

  // Content of the card beside the pointer.
  describe(point, pane) {
    const { trial } = this, shownBy = pane && this.other ? this.other : trial;
    const values = pane && this.other ? this.other.values : this.values, block = trial.block(point);
    const wrong = shownBy.verdict[point] === WRONG;
    const lines = [
      h("b", { class: wrong ? "wrong" : "" }, `${this.className(trial, shownBy.predicted[point])}`),
      h("div", {}, "class ", this.className(trial, trial.labels[point])),
      h("div", {}, `${this.scoreTitle} ${this.readValue(values[point])}`),
      h("div", { class: "faint" }, `${block.set.name}, ${wordShift(block.shift)}`),
      h("div", { class: "faint id" }, this.ids?.[trial.image(point)] ?? ""),
    ];
    if (!this.ids || this.idsOf !== trial) {
      this.source.ids(trial.number).then((ids) => { const box = $("card").querySelector(".id"); if (box && this.hovered?.startsWith(`${point} `)) box.textContent = ids[trial.image(point)]; });
    }
    const picture = block.set.has_images ? h("img", { src: this.source.image(trial.number, point, 96), alt: "", width: 96, height: 96 }) : null;
    return [picture, h("div", {}, ...lines)].filter(Boolean);
  }

  // Looks at a case. Only what depends on it is drawn again.
  choose(point, scroll = false) {
    this.state.point = point;
    this.neighbours = [];
    this.writeAddress();
    this.stage.reveal(point);
    this.stage.mark({ point, outline: this.state.outline });
    markListed(this, scroll);
    renderCase(this).catch((error) => this.fail(error));
  }

  lasso(outline) {
    const picked = pointsInside(outline, this.positions, this.stage.points);
    return this.change({ outline, picked, origin: "lasso", tab: "selection" });
  }
}

const sure = (share) => (share > 0.9999 ? "> 0.9999" : share > 0.999 ? share.toFixed(4) : share.toFixed(3));

open(new App());
