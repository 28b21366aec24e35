// The right side: tabs with lists of cases, and what is said of a selection.

import { $, count, h, save } from "explorer/dom.js";

// tabs: [name, title, number or null] each; show: name → content of the tab.
export function renderTabs(app, tabs, show) {
  const { state } = app;
  const buttons = h("nav", { role: "tablist", id: "tabs" }, tabs.map(([name, title, number]) => h("button", {
    role: "tab", id: `tab-${name}`, "aria-selected": String(state.tab === name), onclick: () => app.change({ tab: name }) },
  title, number ? h("small", {}, ` ${count(number)}`) : null)));
  const body = h("div", { id: "list", role: "tabpanel", "aria-labelledby": `tab-${state.tab}` });
  app.list = [];
  body.append(...[(show[state.tab] ?? show[tabs[0][0]])(app)].flat().filter(Boolean));
  const old = $("list"), top = old?.dataset.tab === state.tab ? old.parentElement.scrollTop : null;
  body.dataset.tab = state.tab;
  $("lists").replaceChildren(buttons, body);
  if (top !== null) $("lists").scrollTop = top;
  markListed(app);
}

// Keys 1, 2, … open the tabs.
export const tabKeys = (app, tabs) => Object.fromEntries(tabs.map(([name], number) => [number + 1, () => app.change({ tab: name })]));

// Shows which entry of the list is looked at, without drawing the list again.
export function markListed(app, scroll = false) {
  for (const each of document.querySelectorAll("#list [data-point]")) {
    const on = Number(each.dataset.point) === app.state.point;
    each.setAttribute("aria-current", String(on));
    if (on && scroll) each.scrollIntoView({ block: "nearest" });
  }
}

export const numberBox = (name, value, note) => h("div", { class: "number" }, h("span", {}, name), h("b", {}, value), note ? h("small", {}, note) : null);

// A table of numbers: words of its head, and its rows.
export const numberTable = (head, rows) => h("table", { class: "by-set" }, h("thead", {}, h("tr", {}, head.map((word) => h("th", {}, word)))),
  h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, String(cell)))))));

export const emptySelection = (things, unit) => h("div", { class: "empty" }, h("p", {}, "Nothing is selected."),
  h("p", {}, `Draw around ${things} with the lasso (L), or hold Shift and drag. What is selected is counted here, shown ${unit} by ${unit}, and can be exported.`));

// What selected it, and what can be done with it.
export const selectionHead = (app, origin, help, exportAll) => h("div", { class: "row" }, h("span", { class: "faint" }, origin), h("span", { class: "spacer" }),
  h("button", { id: "export-csv", title: help, onclick: exportAll }, "Export CSV"), h("button", { id: "clear", title: "Select nothing (Esc)", onclick: () => app.clearSelection() }, "Clear"));

const quote = (value) => {
  const text = String(value ?? "");
  // A cell that begins like a formula is one to a spreadsheet.
  const safe = /^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

export const saveTable = (name, lines) => save(name, lines.map((line) => line.map(quote).join(",")).join("\r\n") + "\r\n", "text/csv");
