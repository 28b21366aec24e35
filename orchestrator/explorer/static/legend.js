// Parts of a legend: a scale of colours, and single ones.

import { gradient } from "explorer/colours.js";
import { h } from "explorer/dom.js";

export function scaleOf(name, stops, ends) {
  const bar = h("i", { class: "bar" });
  bar.style.background = gradient(stops);
  return h("div", { class: "scale" }, h("span", { class: "name" }, name), bar, h("span", { class: "ends" }, ends.map((text) => h("span", {}, text))));
}

// fill: a colour of CSS, null for a hollow dot.
export function chipOf(fill, ...words) {
  const dot = h("i", {});
  if (fill) dot.style.background = fill;
  return h("span", { class: `level${fill ? "" : " hollow"}` }, dot, ...words);
}
