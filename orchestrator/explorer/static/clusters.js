// Clusters of images or cases, each with how often, or how far, models fail on it.

import { count, h, percent } from "explorer/dom.js";

// A list of groups: { number, name, size, value, low, high (null without an interval), isElevated, more }; `all` is the value over all of them.
export function listGroups(groups, { all, unit, flag, help, word, isChosen, choose, describe }) {
  const most = Math.max(...groups.map((each) => each.high ?? 1.1 * each.value), 0.05);
  return h("div", { class: "clusters" }, groups.map((each) => {
    const bar = h("i", { class: "interval" }), dot = h("i", { class: "estimate" }), line = h("i", { class: "all" });
    const at = (value) => `${(100 * value) / most}%`;
    if (each.low !== null) { bar.style.left = at(each.low); bar.style.width = at(each.high - each.low); }
    dot.style.left = at(each.value ?? 0); line.style.left = at(all);
    return h("button", { class: "cluster", "aria-pressed": String(isChosen(each)), "data-cluster": String(each.number), onclick: () => choose(each) },
      h("span", { class: "head" }, h("b", {}, each.name), each.isElevated ? h("span", { class: "flag" }, flag) : null,
        h("span", { class: "spacer" }), h("span", {}, `${count(each.size)} ${unit}`)),
      h("span", { class: "rate" }, h("span", { class: "axis", title: help }, bar, dot, line),
        h("b", {}, word(each.value)), h("small", {}, each.low === null ? "no interval" : `${word(each.low)} – ${word(each.high)}`)),
      h("small", {}, describe(each), ...each.more.map((level) => ` · ${level.column} ${level.level}: ${percent(level.inside, 0)} (else ${percent(level.outside, 0)})`)));
  }));
}
