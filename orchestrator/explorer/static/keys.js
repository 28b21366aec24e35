// Keys, and the list of them.

import { $, h, showDialog } from "explorer/dom.js";

export function showKeys() {
  const keys = [["← →", "case before, next case of the list"], ["↑ ↓", "the same"], ["O  U", "over-confident, under-confident failures"],
    ["L  M", "lasso, move"], ["Shift + drag", "lasso at any time"], ["+  −  0", "zoom, fit"], ["Esc", "close the case, then select nothing"],
    ["1 – 4", "failures, selection, clusters, notes"], ["A", "where the model looked, on or off"], ["Z", "images of the case larger or smaller"], ["D", "light or dark"], ["?", "this list"]];
  showDialog("Keys", h("dl", {}, keys.map(([key, words]) => [h("dt", {}, key), h("dd", {}, words)])));
}

export function onKey(app, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const target = event.target, kind = target.tagName;
  if (kind === "TEXTAREA" || kind === "SELECT" || (kind === "INPUT" && target.type !== "checkbox")) return;
  const tabs = ["failures", "selection", "clusters", "notes"];
  const keys = {
    ArrowRight: () => app.step(1), ArrowDown: () => app.step(1), ArrowLeft: () => app.step(-1), ArrowUp: () => app.step(-1),
    o: () => app.change({ tab: "failures", kind: "over", point: null }), u: () => app.change({ tab: "failures", kind: "under", point: null }),
    a: () => app.toggleLooked(), z: () => app.toggleLarge(), l: () => app.stage.setTool("lasso"), m: () => app.stage.setTool("pan"), d: () => app.toggleTheme(), "?": () => showKeys(),
    "+": () => app.stage.zoomBy(1.4), "=": () => app.stage.zoomBy(1.4), "-": () => app.stage.zoomBy(1 / 1.4), 0: () => app.stage.fit(),
    Escape: () => (app.state.point !== null ? app.choose(null) : app.clearSelection()),
  };
  tabs.forEach((tab, number) => { keys[number + 1] = () => app.change({ tab }); });
  const run = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!run) return;
  event.preventDefault();
  run();
}
