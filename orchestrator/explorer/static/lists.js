// The right side: lists of cases. Every list is one that the arrow keys step through.

import { listGroups } from "explorer/clusters.js";
import { count, h, percent, plural, wordShift } from "explorer/dom.js";
import { NO_LABEL, RIGHT, WRONG, ofVerdict, rankFailures, rankFirst, tally, wilson } from "explorer/model.js";
import { listNotes } from "explorer/notes.js";
import { emptySelection, markListed, numberBox, numberTable, renderTabs, saveTable, selectionHead } from "explorer/panel.js";

const MOST_LISTED = 100, PAGE = 60, MOST_STEPPED = 5_000;
export const TABS = [["failures", "Failures"], ["selection", "Selection"], ["clusters", "Clusters"], ["notes", "Notes"]];

export function renderLists(app) {
  const numbers = { selection: app.state.picked?.length, notes: app.notes?.length };
  renderTabs(app, TABS.map(([name, title]) => [name, title, numbers[name]]), { failures, selection, clusters, notes });
}

function verdictClass(trial, p) {
  return trial.verdict[p] === WRONG ? "is-wrong" : trial.verdict[p] === RIGHT ? "is-right" : "is-unknown";
}

export function picture(app, p, side, size = side) {
  const block = app.trial.block(p);
  if (!block.set.has_images) return h("span", { class: "no-image", title: "This image is not on this machine." });
  const source = app.source.image(app.trial.number, p, side);
  return source ? h("img", { src: source, alt: "", loading: "lazy", width: size, height: size })
    : h("span", { class: "no-image", title: "Not in this file." });
}

function row(app, p) {
  const { trial } = app, block = trial.block(p);
  return h("button", { class: `case-row ${verdictClass(trial, p)}`, "data-point": String(p), onclick: () => app.choose(p) },
    picture(app, p, 96, 44),
    h("span", { class: "what" },
      h("b", {}, app.className(trial, trial.predicted[p])),
      h("span", {}, ` for ${app.className(trial, trial.labels[p])}`),
      h("small", {}, `${block.set.name}${block.position ? `, ${wordShift(block.shift)}` : ""}`)),
    h("span", { class: "value" }, app.readScore(p)));
}

function failures(app) {
  const { state, trial } = app, sets = trial.index.sets.filter((set) => app.shown.blocks.some((b) => trial.blocks[b].set === set));
  const within = sets.find((set) => set.number === state.within) ?? null;
  const points = within ? app.points.filter((p) => trial.block(p).set === within) : app.points;
  const kind = state.kind === "under" ? "under" : "over";
  app.list = rankFailures(trial, points, app.values, kind, MOST_LISTED);
  const choice = (name, title, words) => h("button", { id: `kind-${name}`, "aria-pressed": String(kind === name), title: words,
    onclick: () => app.change({ kind: name, point: null }) }, title);
  const picker = h("select", { id: "within", "aria-label": "In which set", onchange: (event) => app.change({ within: event.target.value === "" ? null : Number(event.target.value), point: null }) },
    h("option", { value: "" }, "in all shown"), sets.map((set) => h("option", { value: String(set.number) }, `in ${set.name}`)));
  picker.value = within ? String(within.number) : "";
  const words = kind === "over" ? "Wrong, and most confident: failures that nobody would notice."
    : "Right, and least confident: cases that would be referred for nothing.";
  return [
    h("div", { class: "row" }, h("div", { class: "segments" }, choice("over", "Over-confident", "wrong, most confident first"),
      choice("under", "Under-confident", "right, least confident first")), picker),
    h("p", { class: "faint" }, words, app.list.length ? h("span", { class: "hint" }, " ← → step through them.") : null),
    app.list.length ? h("div", { class: "rows" }, app.list.map((p) => row(app, p))) : h("p", { class: "empty" }, kind === "over" ? "Nothing of what is shown is wrong." : "Nothing of what is shown is right."),
  ];
}

function numbers(app, points) {
  const found = tally(app.trial, points, app.values), [low, high] = found.interval;
  return h("div", { class: "numbers" },
    numberBox("images", count(found.points)),
    numberBox("error rate", percent(found.error), found.judged ? `${(100 * low).toFixed(0)} – ${percent(high, 0)}` : "no class of the study"),
    numberBox("wrong", count(found.wrong), `of ${count(found.judged)}`));
}

function breakdown(app, points) {
  const { trial } = app, { sets } = trial.index, setOf = trial.blocks.map((block) => block.set.number);
  const seen = new Uint32Array(3 * sets.length), pairs = new Map();
  for (const p of points) {
    const verdict = trial.verdict[p];
    seen[3 * setOf[trial.blockOf[p]] + verdict]++;
    if (verdict !== WRONG) continue;
    const key = 65536 * trial.labels[p] + trial.predicted[p];
    pairs.set(key, (pairs.get(key) ?? 0) + 1);
  }
  const rows = sets.map((set) => ({ name: set.name, right: seen[3 * set.number], wrong: seen[3 * set.number + 1], unknown: seen[3 * set.number + 2] }))
    .filter((each) => each.right + each.wrong + each.unknown);
  const wrong = [...pairs].sort((a, b) => b[1] - a[1]).slice(0, 4);
  return [
    rows.length > 1 ? numberTable(["set", "images", "error rate", "95 % interval"], rows.slice(0, 12).map((each) => {
      const judged = each.right + each.wrong, [low, high] = wilson(each.wrong, judged);
      return [each.name, count(judged + each.unknown), percent(each.wrong / judged), judged ? `${percent(low, 0)} – ${percent(high, 0)}` : "–"];
    })) : null,
    wrong.length ? h("p", { class: "faint" }, wrong.map(([pair, number]) => `${app.className(trial, Math.floor(pair / 65536))} taken for ${app.className(trial, pair % 65536)}: ${count(number)}`).join(" · ")) : null,
  ];
}

export function selectedPoints(app) {
  const { picked } = app.state, { count: n } = app.trial;
  if (!picked) return new Uint32Array(0);
  return picked.length && picked.at(-1) >= n ? picked.filter((p) => p < n) : picked; // ascending
}

function selection(app) {
  if (!app.state.picked) return [emptySelection("points", "image")];
  const points = selectedPoints(app), { trial } = app;
  const first = rankFirst(ofVerdict(trial, points, WRONG, true), app.values, MOST_STEPPED, true).subarray(0, MOST_STEPPED);
  const rest = rankFirst(ofVerdict(trial, points, WRONG, false), app.values, MOST_STEPPED, true).subarray(0, MOST_STEPPED - first.length);
  const order = new Uint32Array(first.length + rest.length);
  order.set(first);
  order.set(rest, first.length);
  app.list = order;
  const gallery = h("div", { class: "gallery" });
  const more = h("button", { class: "more" }, "Show more");
  let shown = 0;
  const add = () => {
    gallery.append(...Array.from(order.subarray(shown, shown + PAGE), (p) => tile(app, p)));
    shown = Math.min(order.length, shown + PAGE);
    more.hidden = shown >= order.length;
    more.textContent = `Show more of ${count(order.length - shown)}`;
  };
  more.onclick = () => { add(); markListed(app); };
  add();
  return [
    selectionHead(app, app.state.origin && app.state.origin !== "lasso" ? app.state.origin : "lasso", "One line an image: set, id, shift, class, prediction, confidence", () => exportSelection(app)),
    numbers(app, points), ...breakdown(app, points).filter(Boolean),
    h("p", { class: "faint" }, `Wrong ones first, most confident first${order.length < points.length ? `; the first ${count(order.length)}` : ""}.`), gallery, more];
}

function tile(app, p) {
  const { trial } = app;
  return h("button", { class: `tile ${verdictClass(trial, p)}`, "data-point": String(p), onclick: () => app.choose(p),
    title: `${app.className(trial, trial.predicted[p])} for ${app.className(trial, trial.labels[p])}, ${app.readScore(p)}` }, picture(app, p, 96, 60));
}

export async function exportSelection(app) {
  const { trial } = app, ids = await app.source.ids(trial.number);
  const lines = [["set", "id", "shift", "severity", "class", "predicted", "verdict", app.scoreName]];
  for (const p of selectedPoints(app)) {
    const block = trial.block(p), [shift, severity] = block.shift.split("/");
    lines.push([block.set.name, ids[trial.image(p)], shift, severity, trial.labels[p] === NO_LABEL ? "" : app.className(trial, trial.labels[p]),
      app.className(trial, trial.predicted[p]), ["right", "wrong", ""][trial.verdict[p]], app.values[p]]);
  }
  saveTable(`${app.study.study}-selection.csv`, lines);
}

function clusters(app) {
  const found = app.clusters;
  if (!found) return [h("p", { class: "empty" }, "Looking for clusters…")];
  if (found.problem) return [h("p", { class: "problem" }, found.problem)];
  if (!found.clusters.length) return [h("p", { class: "empty" }, `The ${count(found.num_images)} unshifted images form no cluster: no part of the map is denser than the rest.`)];
  const { trial } = app;
  const sums = found.clusters.map(() => [0, 0]);
  for (let p = 0; p < trial.count; p++) {
    const code = found.codes[p];
    if (code >= 0) { sums[code][0] += app.toFormula(app.values[p]); sums[code][1]++; }
  }
  const elevated = found.clusters.filter((each) => each.is_elevated).length;
  return [
    h("p", { class: "faint" }, `Formed on one half of the patients; errors counted on the other. There ${percent(found.error_rate)} is wrong over all. `,
      elevated ? `${elevated} of ${plural(found.clusters.length, "cluster")} ${elevated > 1 ? "have" : "has"} more (p ≤ .05 over all of them).` : `None of ${plural(found.clusters.length, "cluster")} has more at p ≤ .05 over all of them.`),
    listGroups(found.clusters.map((each) => ({ ...each, name: `Cluster ${each.number + 1}`, value: each.error_rate, isElevated: each.is_elevated })), {
      all: found.error_rate, unit: "images", flag: "more errors", help: "Error rate with its 95 % interval; the line is that of all images", word: (value) => percent(value, 0),
      isChosen: (each) => app.state.origin === `cluster ${each.number + 1}`, choose: (each) => app.pickCluster(each.number),
      describe: (each) => `${app.scoreTitle} ${app.wordNumber(sums[each.number][0] / sums[each.number][1])} on average`,
    }),
  ];
}

const notes = (app) => listNotes(app, "label", (point) => picture(app, point, 96, 44));
