// The left side: what is shown.

import { $, count, h, percent, wordShift } from "explorer/dom.js";
import { aboutFile, field, section, select, trialOptions } from "explorer/fields.js";
import { CHOICES } from "explorer/paint.js";
import { NO_LABEL, WRONG, RIGHT } from "explorer/model.js";

export function renderControls(app) {
  const { state, trial, study } = app, box = $("controls");
  const top = box.scrollTop, open = new Set([...box.querySelectorAll("details[open]")].map((each) => each.dataset.set));
  const trials = trialOptions(study);
  const columns = trial.index.columns.map((column, number) => [`column:${number}`, column.name]);
  const classes = trial.index.classes;
  box.replaceChildren(
    section("Model",
      field("Trial", select("trial", trials, state.trial, (value) => app.change({ trial: Number(value), point: null, picked: null, outline: null, origin: null, view: null }))),
      trials.length < 2 ? null : field("Beside it", select("other", [["", "no other trial"], ...trials.filter(([number]) => number !== state.trial)], state.other,
        (value) => app.change({ other: value === "" ? null : Number(value) })),
      state.other === null ? null : "Same places (those of the trial above), the other's predictions."),
      field("Confidence", select("score", trial.index.scores.map((each) => [each.name, each.title]), app.scoreName, (value) => app.change({ score: value })),
        app.scoreFormula)),
    section("Map",
      field("Colour", select("colour", [...CHOICES, ...columns], state.colour, (value) => app.change({ colour: value }))),
      field("Places", select("map", [["pca", "PCA"], ["tsne", "t-SNE (openTSNE)"]], state.map, (value) => app.change({ map: value, view: null, outline: null }))),
      field("Size", h("input", { id: "size", type: "range", min: "1", max: "16", step: "0.5", value: String(app.size),
        oninput: (event) => app.changeStyle({ size: Number(event.target.value) }) })),
      field("Opacity", h("input", { id: "opacity", type: "range", min: "5", max: "100", value: String(state.opacity),
        oninput: (event) => app.changeStyle({ opacity: Number(event.target.value) }) }))),
    section("Images", ...trial.index.sets.map((set) => renderSet(app, set, open))),
    section("Classes", h("div", { class: "chips" }, classes.slice(0, 40).map((name, number) => {
      const on = !state.classes || state.classes.includes(number);
      return h("button", { class: "chip", "aria-pressed": String(on), onclick: () => toggleClass(app, number) }, name);
    }), trial.labels.includes(NO_LABEL)
      ? h("button", { class: "chip", "aria-pressed": String(!state.classes || state.classes.includes(NO_LABEL)), onclick: () => toggleClass(app, NO_LABEL) }, "no class of the study")
      : null), classes.length > 40 ? h("small", {}, `and ${classes.length - 40} more classes`) : null),
    trial.index.problems.length ? section("Not shown", ...trial.index.problems.map((each) => h("p", { class: "problem" }, each))) : "",
    aboutFile(app),
  );
  box.scrollTop = top;
}

function toggleClass(app, number) {
  const all = [...app.trial.index.classes.keys(), NO_LABEL], now = app.state.classes ?? all;
  const next = now.includes(number) ? now.filter((each) => each !== number) : [...now, number].sort((a, b) => a - b);
  app.change({ classes: next.length === all.length ? null : next });
}

function renderSet(app, set, open) {
  const { trial, shown } = app, blocks = trial.blocks.filter((block) => block.set === set);
  const [plain, ...shifted] = blocks, on = new Set(shown.blocks);
  const row = (block, name) => h("label", { class: "block" },
    h("input", { type: "checkbox", checked: on.has(block.number), "data-block": String(block.number),
      onchange: () => app.toggleBlocks([block.number]) }),
    h("span", { class: "name" }, name), h("span", { class: "error", title: describeErrors(trial, block) }, errorOf(trial, block)));
  const families = new Map();
  for (const block of shifted) {
    const name = block.shift.slice(0, block.shift.lastIndexOf("/"));
    families.set(name, [...(families.get(name) ?? []), block]);
  }
  const shiftsOn = shifted.filter((block) => on.has(block.number)).length;
  return h("div", { class: "set" }, row(plain, `${set.name} `),
    shifted.length ? h("details", { "data-set": set.name, open: open.has(set.name) || undefined },
      h("summary", {}, `${shifted.length} shifts${shiftsOn ? `, ${shiftsOn} shown` : ""}`),
      h("div", { class: "shifts" }, [...families].map(([name, each]) => h("div", { class: "family" },
        h("button", { class: "link", title: "All severities on or off", onclick: () => app.toggleBlocks(each.map((block) => block.number)) }, name.replaceAll("_", " ")),
        h("span", { class: "severities" }, each.map((block) => h("button", { class: "chip", "aria-pressed": String(on.has(block.number)),
          "data-block": String(block.number), title: `${wordShift(block.shift)}: ${describeErrors(trial, block)}`,
          onclick: () => app.toggleBlocks([block.number]) }, block.shift.split("/")[1]))))))) : null,
    set.problem ? h("small", { class: "reason" }, set.problem) : null);
}

const tallies = new WeakMap();

function countBlock(trial, block) {
  if (!tallies.has(block)) {
    let wrong = 0, judged = 0;
    for (let p = block.first; p < block.first + block.count; p++) {
      if (trial.verdict[p] === WRONG) wrong++;
      if (trial.verdict[p] === WRONG || trial.verdict[p] === RIGHT) judged++;
    }
    tallies.set(block, { wrong, judged });
  }
  return tallies.get(block);
}

function errorOf(trial, block) {
  const { wrong, judged } = countBlock(trial, block);
  return judged ? percent(wrong / judged, 0) : "–";
}

function describeErrors(trial, block) {
  const { wrong, judged } = countBlock(trial, block);
  return judged ? `${count(wrong)} of ${count(judged)} wrong` : `${count(block.count)} images, none of a class of the study`;
}
