// The chosen case: its pictures, metrics, scores and areas.

import { $, brief, h, percent, wordShift } from "explorer/dom.js";

const WITH_TRUTH = new Set(["truth", "errors"]);
const ERRORS_HELP = "Green: found; orange: missed; blue: invented. Uncertainty: entropy of the probabilities, white is the largest.";

export const pictureOf = (trial, number, panel, side) => `api/trials/${trial}/cases/${number}/${panel}?side=${side}`;

export function renderCase(app) {
  const box = $("case"), { number } = app;
  box.hidden = number === null;
  if (number === null) { box.replaceChildren(); return; }
  const { index } = app, each = index.cases[number], set = index.sets[each.set];
  const panels = index.panels.filter((panel) => set.has_targets || !WITH_TRUTH.has(panel));
  box.replaceChildren(h("div", {},
    h("header", {}, h("span", { class: "id" }, each.id), h("span", { class: "spacer" }),
      h("button", { class: "quiet", title: "Case before (←)", "aria-label": "Case before", onclick: () => app.step(-1) }, "‹"),
      h("button", { class: "quiet", title: "Next case (→)", "aria-label": "Next case", onclick: () => app.step(1) }, "›"),
      h("button", { class: "quiet", title: "Close (Esc)", "aria-label": "Close", onclick: () => app.choose(null) }, "×")),
    h("p", { class: "faint" }, describePlace(set, each)),
    index.no_images ? h("p", { class: "problem" }, `There are no pictures here: ${index.no_images}`) : [
      h("div", { class: `figures${app.isLarge ? " large" : ""}` }, panels.map((panel) => drawPanel(app, number, panel))),
      set.has_targets ? drawKey(app) : null,
    ],
    h("div", { class: "parts" }, listMetrics(app, each), listScores(app, each), listAreas(app, each), listShifts(app, each))));
  box.scrollTop = 0;
}

export const describePlace = (set, each) => [set.name, each.site === set.name ? null : each.site, set.has_targets ? null : "no truth"].filter(Boolean).join(" · ");

function drawPanel(app, number, panel) {
  const source = pictureOf(app.state.trial, number, panel, 512);
  return h("figure", {}, h("div", { class: "lens", title: "Larger or smaller (Z)", onclick: () => app.toggleLarge() },
    h("img", { src: source, alt: `${panel} of ${app.index.cases[number].id}`, onerror: () => app.explainPicture(source), onload: ({ target }) => target.classList.toggle("shrunk", target.naturalWidth > target.clientWidth) })),
  h("figcaption", {}, panel));
}

function drawKey(app) {
  return h("p", { class: "key faint", title: ERRORS_HELP }, Object.entries(app.study.colours).map(([word, rgb]) => {
    const dot = h("i", {});
    dot.style.background = `rgb(${rgb.join(" ")})`;
    return h("span", { class: "level" }, dot, word);
  }), h("span", {}, "uncertainty: white is the largest"));
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
