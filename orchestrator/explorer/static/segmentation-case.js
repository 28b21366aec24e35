// The chosen case: its pictures, metrics, scores, areas and note.

import { $, brief, h, percent, wordShift } from "explorer/dom.js";
import { chipOf } from "explorer/legend.js";
import { noteOn } from "explorer/notes.js";

const WITH_TRUTH = new Set(["truth", "errors"]);
const ERRORS_HELP = "Green: found; orange: missed; blue: invented. Uncertainty: entropy of the probabilities, white is the largest.";

export function renderCase(app) {
  const box = $("case"), { point } = app.state;
  box.hidden = point === null;
  if (point === null) { box.replaceChildren(); return; }
  const { index, source } = app, each = index.cases[point], set = index.sets[each.set];
  const panels = index.panels.filter((panel) => (set.has_targets || !WITH_TRUTH.has(panel)) && source.hasPanel(point, panel));
  box.replaceChildren(h("div", {}, app.caseHeader(h("span", { class: "id" }, each.id)),
    h("p", { class: "faint" }, describePlace(set, each)),
    index.no_images ? h("p", { class: "problem" }, `There are no pictures here: ${index.no_images}`) : [
      h("div", { class: `figures${app.isLarge ? " large" : ""}` }, panels.map((panel) => drawPanel(app, point, panel))),
      set.has_targets ? drawKey(app, panels) : null,
      source.hasPanel(point, "image") ? null : h("p", { class: "faint" }, "The other pictures of this case are not in this file."),
    ],
    h("div", { class: "parts" }, listMetrics(app, each), listScores(app, each), listAreas(app, each), listShifts(app, each),
      noteOn(app, { set: set.name, id: each.id, point }, "mask"))));
  box.scrollTop = 0;
}

export const describePlace = (set, each) => [set.name, each.site === set.name ? null : each.site, set.has_targets ? null : "no truth"].filter(Boolean).join(" · ");

// A small picture of a case: its errors, or what is predicted where the truth is not known.
export function smallPicture(app, point, size) {
  const { index, source } = app, set = index.sets[index.cases[point].set];
  const address = index.no_images ? null : source.picture(app.state.trial, point, set.has_targets ? "errors" : "prediction", 96);
  return address ? h("img", { src: address, alt: "", loading: "lazy", width: size, height: size }) : h("span", { class: "no-image", title: "There is no picture here." });
}

function drawPanel(app, point, panel) {
  const address = app.source.picture(app.state.trial, point, panel, 512);
  return h("figure", {}, app.lens(h("img", { src: address, alt: `${panel} of ${app.index.cases[point].id}`, onerror: () => app.explainPicture(address),
    onload: ({ target }) => target.classList.toggle("shrunk", target.naturalWidth > target.clientWidth) })),
  h("figcaption", {}, panel));
}

function drawKey(app, panels) {
  return h("p", { class: "key faint", title: ERRORS_HELP }, Object.entries(app.study.colours).map(([word, rgb]) => chipOf(`rgb(${rgb.join(" ")})`, word)),
    panels.includes("uncertainty") ? h("span", {}, "uncertainty: white is the largest") : null);
}

function listMetrics(app, each) {
  const rows = app.index.metrics.map((metric, k) => [metric, each.metrics?.[k] ?? null]).filter(([, value]) => value !== null);
  if (!rows.length) return null;
  return h("section", {}, h("h3", {}, `Metrics${app.index.classes.length > 1 ? ", mean over classes" : ""}`),
    h("dl", { class: "measures" }, rows.map(([{ title, formula }, value]) => [h("dt", { title: formula }, title), h("dd", {}, brief(value)), h("dd", {})])));
}

// A confidence has no scale of its own: beside it, the share of test cases that are surer.
function listScores(app, each) {
  const rows = app.index.scores.map((score, k) => [score.title, each.scores[k], app.shareSurer(k, each.scores[k])]).filter(([, value]) => value !== null);
  if (!rows.length) return null;
  return h("section", {}, h("h3", {}, "Confidence, and the share of test cases with more of it"),
    h("dl", { class: "measures" }, rows.map(([title, value, share]) => [
      h("dt", {}, title), h("dd", {}, brief(value)), h("dd", {}, share === null ? "" : h("small", {}, percent(share, 0)))])));
}

function listAreas(app, each) {
  if (!each.areas) return null;
  const [predicted, real] = each.areas;
  return h("section", {}, h("h3", {}, `${app.index.measure === "volume" ? "Volume" : "Area"}, all classes`), h("dl", { class: "measures" },
    h("dt", {}, "predicted"), h("dd", {}, brief(predicted)), h("dd", {}), h("dt", {}, "true"), h("dd", {}, brief(real)), h("dd", {})));
}

function listShifts(app, each) {
  const shifts = app.index.shifts[app.index.sets[each.set].name];
  if (!each.shifted || shifts.length < 2) return null;
  return h("section", {}, h("h3", {}, "Dice under shifts"), h("dl", { class: "measures" },
    shifts.map((shift, k) => [h("dt", {}, wordShift(shift)), h("dd", {}, brief(each.shifted[k] ?? NaN)), h("dd", {})])));
}
