// One case: its image beside the unshifted one, what was predicted, the same image under all shifts, its neighbours.

import { css, scales } from "explorer/colours.js";
import { $, h, percent, wordShift } from "explorer/dom.js";
import { picture } from "explorer/lists.js";
import { renderLooked } from "explorer/looked.js";
import { RIGHT, UNKNOWN, WRONG } from "explorer/model.js";
import { noteOn } from "explorer/notes.js";

export async function renderCase(app) {
  const box = $("case"), { point } = app.state, { trial } = app;
  if (point === null || point >= trial.count) {
    box.hidden = true;
    box.replaceChildren();
    app.neighbours = [];
    return;
  }
  const block = trial.block(point), plain = point - block.position * block.set.count;
  box.hidden = false;
  const lenses = [];
  const figure = (p, words, looks = null) => {
    const box = app.lens(picture(app, p, 512, 168)), caption = h("figcaption", {}, words);
    if (looks) lenses.push({ box, caption, words, ...looks });
    return h("figure", {}, box, caption);
  };
  const mine = { number: trial.number, point, shown: trial }, { other } = app, besideIt = other && other.match[point] >= 0 && app.state.looked;
  const wrong = trial.verdict[point] === WRONG, right = trial.verdict[point] === RIGHT;
  const id = h("span", { class: "id" }, "");
  const details = h("div", { class: "details" }, h("p", { class: "faint" }, "…"));
  box.replaceChildren(
    app.caseHeader(id),
    h("div", { class: app.isLarge ? "figures large" : "figures" }, block.position && app.source.hasShifted(point) ? [figure(point, wordShift(block.shift), mine), figure(plain, "unshifted")]
      : figure(point, block.position ? "unshifted; the shifted one is not in this file" : besideIt ? "this trial" : "", mine),
      besideIt ? figure(point, "other trial", { number: other.number, point: other.match[point], shown: other }) : null,
      h("div", { class: "verdict" },
        h("span", { class: "badge " + (wrong ? "is-wrong" : right ? "is-right" : "is-unknown") }, wrong ? "wrong" : right ? "right" : "no class of the study"),
        h("div", {}, h("small", {}, "predicted "), h("b", {}, app.className(trial, trial.predicted[point]))),
        h("div", {}, h("small", {}, "class "), h("b", {}, app.className(trial, trial.labels[point]))),
        h("div", {}, h("small", {}, `${app.scoreTitle} `), h("b", {}, app.readScore(point))),
        app.other ? besides(app, point) : null,
        h("small", {}, `${block.set.name}, ${wordShift(block.shift)}`))),
    renderLooked(app, lenses, point), details);
  let found;
  try {
    found = await app.source.case(trial.number, point);
  } catch (error) {
    details.replaceChildren(h("p", { class: "problem" }, error.message));
    return;
  }
  if (app.state.point !== point) return; // another case has been chosen since
  id.textContent = found.id;
  app.neighbours = found.neighbours.map((each) => each.point).filter((each) => each !== null);
  app.stage.mark({ point, outline: app.state.outline, neighbours: app.neighbours });
  details.replaceChildren(...[
    distribution(app, found), versions(app, found, point), neighbours(app, found), metadata(found), noteOn(app, { set: block.set.name, id: found.id, point: found.point }, "label"),
  ].filter(Boolean));
}

function besides(app, point) {
  const { other } = app;
  if (other.match[point] < 0) return h("small", {}, "not predicted by the other trial");
  const wrong = other.verdict[point] === WRONG;
  return h("div", { class: "other" }, h("small", {}, "other trial "), h("b", { class: wrong ? "wrong" : "" }, app.className(other, other.predicted[point])), ` ${app.readValue(other.values[point])}`);
}

function distribution(app, found) {
  return h("div", { class: "distribution" }, found.distribution.map((each) => {
    const bar = h("i", { class: each.class === found.label ? "true" : "" });
    bar.style.width = `${100 * each.probability}%`;
    return h("div", { class: "share" }, h("span", { class: "name", title: app.className(app.trial, each.class) }, app.className(app.trial, each.class), each.class === found.label ? h("small", {}, " (class)") : null),
      h("span", { class: "track" }, bar), h("span", { class: "number" }, percent(each.probability)));
  }));
}

// All versions of the image as a grid, shift × severity: colour and shade as on the map.
function versions(app, found, point) {
  if (found.versions.length < 2) return null;
  const { trial, theme } = app, stops = scales(theme), families = new Map();
  for (const each of found.versions.slice(1)) {
    const [name, severity] = each.shift.split("/");
    if (!families.has(name)) families.set(name, []);
    families.get(name).push({ ...each, severity });
  }
  const cell = (each, text) => {
    const verdict = trial.verdict[each.point], scale = [stops.right, stops.wrong, stops.unknown][verdict];
    const sure = Math.max(0, Math.min(1, (each.probability - 1 / trial.index.classes.length) / (1 - 1 / trial.index.classes.length)));
    const element = h("button", { class: "version", "aria-current": String(each.point === point), "data-point": String(each.point),
      onclick: () => app.choose(each.point), onpointerenter: (event) => app.hover(each.point, event), onpointerleave: () => app.hover(null) }, text);
    element.style.background = css(scale[sure > 0.66 ? 2 : sure > 0.33 ? 1 : 0]);
    element.classList.toggle("strong", sure > 0.66);
    element.setAttribute("aria-label", `${wordShift(each.shift)}: ${["right", "wrong", "no class"][verdict]}, ${percent(each.probability)}`);
    return element;
  };
  const wrong = found.versions.filter((each) => trial.verdict[each.point] === WRONG).length;
  return h("details", { class: "versions", open: app.versionsOpen ?? true, ontoggle: (event) => { app.versionsOpen = event.target.open; } },
    h("summary", {}, trial.verdict[point] === UNKNOWN ? "Under shifts" : `Under shifts: wrong under ${wrong} of ${found.versions.length}`),
    h("div", { class: "version-grid" }, h("div", { class: "family" }, h("span", {}, "unshifted"), cell(found.versions[0], "0")),
      [...families].map(([name, each]) => h("div", { class: "family" }, h("span", { title: name }, name.replaceAll("_", " ")), each.map((one) => cell(one, one.severity))))));
}

function neighbours(app, found) {
  if (found.no_neighbours) return h("p", { class: "faint" }, `No nearest training images: ${found.no_neighbours}.`);
  if (!found.neighbours.length) return null;
  const { trial } = app;
  return h("div", { class: "neighbours" }, h("h3", {}, "Nearest training images"), h("div", { class: "gallery" }, found.neighbours.map((each) => h("button", {
    class: `tile ${each.label === found.label ? "is-right" : "is-wrong"}`, disabled: each.point === null, onclick: () => app.choose(each.point),
    title: `${each.id ? `${each.id}, ` : ""}class ${app.className(trial, each.label)}, distance ${each.distance.toPrecision(3)}` },
  each.point !== null ? picture(app, each.point, 96, 56) : each.picture ? h("img", { src: each.picture, alt: "", width: 56, height: 56 }) : h("span", { class: "no-image" }), h("small", {}, app.className(trial, each.label))))));
}

function metadata(found) {
  const entries = Object.entries(found.metadata);
  return entries.length ? h("dl", {}, entries.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])) : null;
}
