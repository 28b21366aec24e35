// Fields of the left side. Every control says its value by itself; nothing is hidden behind an "apply".

import { h } from "explorer/dom.js";

export const field = (label, control, note) =>
  h("label", { class: control.tagName === "SELECT" ? "field wide" : "field" }, h("span", {}, label), control, note ? h("small", {}, note) : null);

export const select = (id, options, value, onchange) => {
  const element = h("select", { id, onchange: (event) => onchange(event.target.value) },
    options.map(([key, name, disabled]) => h("option", { value: String(key), disabled }, name)));
  element.value = String(value ?? "");
  element.title = element.selectedOptions[0]?.textContent ?? ""; // it may be cut off
  return element;
};

export const section = (title, ...children) => h("section", {}, h("h2", {}, title), ...children);

// What an exported file holds, in words.
export const aboutFile = (app) => (app.source.about ? section("This file", h("p", { class: "faint" }, app.source.about)) : "");

export const trialOptions = (study) => study.trials.map((each) => {
  const done = each.state === "complete";
  return [each.number, `${each.name} · replicate ${each.replicate}${done ? "" : ` (${each.state})`}`, !done];
});
