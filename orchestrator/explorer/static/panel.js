// The right side: lists of cases. Every list is one that the arrow keys step through.

import { $, count, h, percent, plural, save, wordShift } from "explorer/dom.js";
import { NO_LABEL, RIGHT, WRONG, ofVerdict, rankFailures, rankFirst, tally, wilson } from "explorer/model.js";

const MOST_LISTED = 100, PAGE = 60, MOST_STEPPED = 5_000;
const TABS = [["failures", "Failures"], ["selection", "Selection"], ["clusters", "Clusters"], ["notes", "Notes"]];

export function renderPanel(app) {
  const { state } = app;
  const tabs = h("nav", { role: "tablist", id: "tabs" }, TABS.map(([name, title]) => h("button", {
    role: "tab", id: `tab-${name}`, "aria-selected": String(state.tab === name), onclick: () => app.change({ tab: name }) },
  title, name === "selection" && state.picked ? h("small", {}, ` ${count(state.picked.length)}`) : null,
  name === "notes" && app.notes?.length ? h("small", {}, ` ${app.notes.length}`) : null)));
  const body = h("div", { id: "list", role: "tabpanel", "aria-labelledby": `tab-${state.tab}` });
  const show = { failures, selection, clusters, notes }[state.tab] ?? failures;
  app.list = [];
  body.append(...[show(app)].flat().filter(Boolean));
  const old = $("list"), top = old?.dataset.tab === state.tab ? old.parentElement.scrollTop : null;
  body.dataset.tab = state.tab;
  $("lists").replaceChildren(tabs, body);
  if (top !== null) $("lists").scrollTop = top;
  markListed(app);
}

// Shows which entry of the list is looked at, without drawing the list again.
export function markListed(app, scroll = false) {
  for (const each of document.querySelectorAll("#list [data-point]")) {
    const on = Number(each.dataset.point) === app.state.point;
    each.setAttribute("aria-current", String(on));
    if (on && scroll) each.scrollIntoView({ block: "nearest" });
  }
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
  const line = (name, value, note) => h("div", { class: "number" }, h("span", {}, name), h("b", {}, value), note ? h("small", {}, note) : null);
  return h("div", { class: "numbers" },
    line("images", count(found.points)),
    line("error rate", percent(found.error), found.judged ? `${(100 * low).toFixed(0)} – ${percent(high, 0)}` : "no class of the study"),
    line("wrong", count(found.wrong), `of ${count(found.judged)}`));
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
    rows.length > 1 ? h("table", { class: "by-set" }, h("thead", {}, h("tr", {}, h("th", {}, "set"), h("th", {}, "images"), h("th", {}, "error rate"), h("th", {}, "95 % interval"))),
      h("tbody", {}, rows.slice(0, 12).map((each) => {
        const judged = each.right + each.wrong, [low, high] = wilson(each.wrong, judged);
        return h("tr", {}, h("td", {}, each.name), h("td", {}, count(judged + each.unknown)), h("td", {}, percent(each.wrong / judged)),
          h("td", {}, judged ? `${percent(low, 0)} – ${percent(high, 0)}` : "–"));
      }))) : null,
    wrong.length ? h("p", { class: "faint" }, wrong.map(([pair, number]) => `${app.className(trial, Math.floor(pair / 65536))} taken for ${app.className(trial, pair % 65536)}: ${count(number)}`).join(" · ")) : null,
  ];
}

export function selectedPoints(app) {
  const { picked } = app.state, { count: n } = app.trial;
  if (!picked) return new Uint32Array(0);
  return picked.length && picked.at(-1) >= n ? picked.filter((p) => p < n) : picked; // ascending
}

function selection(app) {
  if (!app.state.picked) {
    return [h("div", { class: "empty" }, h("p", {}, "Nothing is selected."),
      h("p", {}, "Draw around points with the lasso (L), or hold Shift and drag. What is selected is counted here, shown image by image, and can be exported."))];
  }
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
    h("div", { class: "row" }, h("span", { class: "faint" }, app.state.origin && app.state.origin !== "lasso" ? app.state.origin : "lasso"),
      h("span", { class: "spacer" }), h("button", { id: "export-csv", title: "One line an image: set, id, shift, class, prediction, confidence", onclick: () => exportSelection(app) }, "Export CSV"),
      h("button", { id: "clear", title: "Select nothing (Esc)", onclick: () => app.clearSelection() }, "Clear")),
    numbers(app, points), ...breakdown(app, points).filter(Boolean),
    h("p", { class: "faint" }, `Wrong ones first, most confident first${order.length < points.length ? `; the first ${count(order.length)}` : ""}.`), gallery, more];
}

function tile(app, p) {
  const { trial } = app;
  return h("button", { class: `tile ${verdictClass(trial, p)}`, "data-point": String(p), onclick: () => app.choose(p),
    title: `${app.className(trial, trial.predicted[p])} for ${app.className(trial, trial.labels[p])}, ${app.readScore(p)}` }, picture(app, p, 96, 60));
}

const quote = (value) => {
  const text = String(value ?? "");
  // A cell that begins like a formula is one to a spreadsheet.
  const safe = /^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

export async function exportSelection(app) {
  const { trial } = app, ids = await app.source.ids(trial.number);
  const lines = [["set", "id", "shift", "severity", "class", "predicted", "verdict", app.scoreName]];
  for (const p of selectedPoints(app)) {
    const block = trial.block(p), [shift, severity] = block.shift.split("/");
    lines.push([block.set.name, ids[trial.image(p)], shift, severity, trial.labels[p] === NO_LABEL ? "" : app.className(trial, trial.labels[p]),
      app.className(trial, trial.predicted[p]), ["right", "wrong", ""][trial.verdict[p]], app.values[p]]);
  }
  save(`${app.study.study}-selection.csv`, lines.map((line) => line.map(quote).join(",")).join("\r\n") + "\r\n", "text/csv");
}

function clusters(app) {
  const found = app.clusters;
  if (!found) return [h("p", { class: "empty" }, "Looking for clusters…")];
  if (found.problem) return [h("p", { class: "problem" }, found.problem)];
  if (!found.clusters.length) return [h("p", { class: "empty" }, `The ${count(found.num_images)} unshifted images form no cluster: no part of the map is denser than the rest.`)];
  const { trial } = app, most = Math.max(...found.clusters.map((each) => each.high), 0.05);
  const sums = found.clusters.map(() => [0, 0]);
  for (let p = 0; p < trial.count; p++) {
    const code = found.codes[p];
    if (code >= 0) { sums[code][0] += app.toFormula(app.values[p]); sums[code][1]++; }
  }
  const elevated = found.clusters.filter((each) => each.is_elevated).length;
  return [
    h("p", { class: "faint" }, `Formed on one half of the patients; errors counted on the other. There ${percent(found.error_rate)} is wrong over all. `,
      elevated ? `${elevated} of ${plural(found.clusters.length, "cluster")} ${elevated > 1 ? "have" : "has"} more (p ≤ .05 over all of them).` : `None of ${plural(found.clusters.length, "cluster")} has more at p ≤ .05 over all of them.`),
    h("div", { class: "clusters" }, found.clusters.map((each) => {
      const bar = h("i", { class: "interval" }), dot = h("i", { class: "estimate" }), all = h("i", { class: "all" });
      const at = (value) => `${(100 * value) / most}%`;
      bar.style.left = at(each.low); bar.style.width = at(each.high - each.low);
      dot.style.left = at(each.error_rate ?? 0); all.style.left = at(found.error_rate);
      const chosen = app.state.origin === `cluster ${each.number + 1}`;
      return h("button", { class: "cluster", "aria-pressed": String(chosen), "data-cluster": String(each.number), onclick: () => app.pickCluster(each.number) },
        h("span", { class: "head" }, h("b", {}, `Cluster ${each.number + 1}`), each.is_elevated ? h("span", { class: "flag" }, "more errors") : null,
          h("span", { class: "spacer" }), h("span", {}, `${count(each.size)} images`)),
        h("span", { class: "rate" }, h("span", { class: "axis", title: "Error rate with its 95 % interval; the line is that of all images" }, bar, dot, all),
          h("b", {}, percent(each.error_rate, 0)), h("small", {}, `${percent(each.low, 0)} – ${percent(each.high, 0)}`)),
        h("small", {}, `${app.scoreTitle} ${app.wordNumber(sums[each.number][0] / sums[each.number][1])} on average`,
          ...each.more.map((level) => ` · ${level.column} ${level.level}: ${percent(level.inside, 0)} (else ${percent(level.outside, 0)})`)));
    })),
  ];
}

function notes(app) {
  const found = app.notes ?? [];
  if (!found.length) return [h("div", { class: "empty" }, h("p", {}, "No notes yet."), h("p", {}, app.source.isServed
    ? "Open a case to write one, or to mark its label as wrong. Notes lie in the study's ledger." : "Notes are written in the served page: robustsweep explore."))];
  const entries = found.map((each) => ({ ...each, point: app.findPoint(each.set, each.id) }));
  app.list = entries.map((each) => each.point).filter((point) => point !== null);
  const wrong = found.filter((each) => each.label_is_wrong).length;
  return [
    h("div", { class: "row" }, h("span", { class: "faint" }, `${plural(found.length, "note")}${wrong ? `, ${plural(wrong, "label")} marked as wrong` : ""}`), h("span", { class: "spacer" }),
      h("button", { id: "export-notes", onclick: () => save(`${app.study.study}-notes.json`, JSON.stringify({ study: app.study.study, notes: found }, null, 1), "application/json") }, "Export JSON")),
    h("div", { class: "rows" }, entries.map((each) => h("button", { class: "case-row note-row", "data-point": each.point === null ? undefined : String(each.point),
      disabled: each.point === null, onclick: () => app.choose(each.point) },
    each.point === null ? h("span", { class: "no-image" }) : picture(app, each.point, 96, 44),
    h("span", { class: "what" }, each.label_is_wrong ? h("b", { class: "wrong" }, "label wrong ") : null, each.note,
      h("small", {}, `${each.set}, ${each.id}`))))),
  ];
}

