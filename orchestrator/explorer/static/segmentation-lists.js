// The right side: cases worst first, those that are selected, clusters and sites with their risk, notes.

import { listGroups } from "explorer/clusters.js";
import { brief, count, h, percent, plural } from "explorer/dom.js";
import { listNotes } from "explorer/notes.js";
import { emptySelection, numberBox, numberTable, renderTabs, saveTable, selectionHead } from "explorer/panel.js";
import { describePlace, smallPicture } from "explorer/segmentation-case.js";

export const DICE = "metric:dice";
export const TABS = [["cases", "Cases"], ["selection", "Selection"], ["clusters", "Clusters"], ["notes", "Notes"]];
const MOST_LISTED = 200;

export function renderLists(app) {
  const numbers = { selection: app.picked?.size, notes: app.notes?.length };
  renderTabs(app, TABS.map(([name, title]) => [name, title, numbers[name]]), { cases, selection, clusters, notes });
}

export const meanOf = (values) => { const known = values.filter((each) => each !== null); return known.reduce((sum, each) => sum + each, 0) / known.length; };

// Worst first: lowest Dice or confidence; what has none is at the end.
function cases(app, listed = app.shown) {
  const { state } = app, key = (number) => app.value(state.sort, number) ?? Infinity;
  app.list = [...listed].sort((a, b) => key(a) - key(b) || a - b);
  const sorts = [...app.columns].filter(([name]) => name === DICE || name.startsWith("score:"));
  const sort = h("select", { id: "within", "aria-label": "Order", onchange: (event) => app.change({ sort: event.target.value }) },
    sorts.map(([name, { title, short }]) => h("option", { value: name, selected: name === state.sort }, short ? `lowest confidence: ${short}` : `lowest ${title}`)));
  const most = Math.max(MOST_LISTED, app.list.indexOf(state.point) + 1);
  return [
    h("div", { class: "row" }, h("b", {}, plural(app.list.length, "case")), sort),
    h("div", { class: "rows" }, app.list.slice(0, most).map((number) => row(app, number))),
    app.list.length > most ? h("p", { class: "faint" }, `and ${plural(app.list.length - most, "case")} more: draw a lasso around some`) : null,
  ];
}

function row(app, number) {
  const each = app.index.cases[number], set = app.index.sets[each.set], dice = app.dice(number), { sort } = app.state;
  const own = sort === DICE ? null : app.value(sort, number);
  return h("button", { class: "case-row", "data-point": String(number), onclick: () => app.choose(number) }, smallPicture(app, number, 44),
    h("span", { class: "what" }, each.id, h("small", {}, describePlace(set, each))),
    h("span", { class: "value" }, dice === null ? (own === null ? "–" : brief(own)) : `Dice ${brief(dice)}${own === null ? "" : ` · ${brief(own)}`}`));
}

function selection(app) {
  if (!app.picked) return [emptySelection("cases", "case")];
  const inside = [...app.picked], diceOf = (numbers) => numbers.map((each) => app.dice(each)).filter((each) => each !== null), all = diceOf(inside);
  const rows = app.index.sets.flatMap((set, k) => {
    const own = inside.filter((each) => app.index.cases[each].set === k), dice = diceOf(own);
    return own.length ? [[set.name, count(own.length), brief(meanOf(dice)), brief(Math.min(...dice))]] : [];
  });
  return [
    selectionHead(app, app.state.group ? nameGroup(app, app.state.group) : "lasso", "One line a case: set, id, site, metrics, areas, confidences", () => exportSelection(app, inside)),
    h("div", { class: "numbers" }, numberBox("cases", count(inside.length)), numberBox("mean Dice", brief(meanOf(all))), numberBox("lowest Dice", brief(Math.min(...all)))),
    numberTable(["set", "cases", "mean Dice", "lowest"], rows),
    ...cases(app, inside),
  ];
}

function exportSelection(app, numbers) {
  const { index } = app, columns = [...app.columns].filter(([name]) => !name.startsWith("place:"));
  const lines = numbers.map((number) => {
    const each = index.cases[number];
    return [index.sets[each.set].name, each.id, each.site, ...columns.map(([, column]) => column.of(each))];
  });
  saveTable(`${app.study.study}-selection.csv`, [["set", "id", "site", ...columns.map(([name]) => name.slice(name.indexOf(":") + 1))], ...lines]);
}

// Groups have a kind and a number: "cluster 0", "part 2".
const nameGroup = (app, group) => {
  const [kind, number] = group.split(" ");
  return kind === "part" ? (app.clusters?.parts?.[number]?.name ?? group) : `cluster ${Number(number) + 1}`;
};

function clusters(app) {
  const found = app.clusters;
  if (!found) return [h("p", { class: "empty" }, "Looking for clusters…")];
  if (!found.parts) return [h("p", { class: "problem" }, found.problem)];
  const list = (kind, groups, all) => listGroups(groups.map((each) => ({ ...each, name: nameGroup(app, `${kind} ${each.number}`).replace("cluster", "Cluster"), value: each.risk, isElevated: each.is_elevated, more: each.more ?? [] })), {
    all, unit: "cases", flag: "worse", help: "Risk, 1 − Dice, with its 95 % interval; the line is that of all cases", word: (value) => (value === null ? "–" : value.toFixed(2)),
    isChosen: (each) => app.state.group === `${kind} ${each.number}`, choose: (each) => app.change({ group: `${kind} ${each.number}`, outline: null }),
    describe: (each) => `risk on ${plural(each.num_judged, "case")} of ${plural(each.num_patients, "patient")}`,
  });
  return [
    h("p", { class: "faint" }, "Risk is 1 − Dice: the mean over patients of the mean over their cases, with its 95 % interval (from 5 patients on). Unshifted cases with a truth, without training images."),
    h("h3", {}, "Sets and sites"), say(found.parts, "group"), list("part", found.parts, found.part_risk),
    h("h3", {}, "Clusters in feature space"),
    found.problem ? h("p", { class: "problem" }, found.problem)
      : found.clusters.length ? [h("p", { class: "faint" }, `Formed on one half of the patients, judged on the other, where the risk is ${found.risk.toFixed(2)}. `, words(found.clusters, "cluster")), list("cluster", found.clusters, found.risk)]
        : h("p", { class: "empty" }, `The ${plural(found.num_cases, "case")} form no cluster: they are too few, or no part of the map is denser than the rest.`),
  ];
}

const say = (groups, unit) => (groups.length > 1 ? h("p", { class: "faint" }, words(groups, unit)) : null);

function words(groups, unit) {
  const worse = groups.filter((each) => each.is_elevated).length;
  return worse ? `${worse} of ${plural(groups.length, unit)} ${worse > 1 ? "are" : "is"} worse than the rest (p ≤ .05 over all of them).` : `None of ${plural(groups.length, unit)} is worse than the rest at p ≤ .05 over all of them.`;
}

const notes = (app) => listNotes(app, "mask", (point) => smallPicture(app, point, 44));
