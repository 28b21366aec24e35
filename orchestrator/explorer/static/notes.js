// Notes on images, and the mark that people disagree with a label: written in the served page, read in a file.

import { h, plural, save } from "explorer/dom.js";

const findNote = (app, { set, id }) => app.notes?.find((each) => each.set === set && each.id === id);

// The note on a case { set, id, point }; words: what may be wrong of it ("label", "mask").
export const noteOn = (app, found, words) => (app.source.isServed ? writeNote : readNote)(app, found, words);

function readNote(app, found, words) {
  const saved = findNote(app, found);
  return saved ? h("p", { class: "read-note" }, saved.label_is_wrong ? h("b", { class: "wrong" }, `${words} wrong `) : null, saved.note) : null;
}

function writeNote(app, found, words) {
  const saved = findNote(app, found);
  const text = h("textarea", { id: "note", rows: "2", placeholder: "Note on this image", "aria-label": "Note on this image", maxlength: "4000" });
  text.value = saved?.note ?? "";
  const wrong = h("input", { id: "label-wrong", type: "checkbox", checked: saved?.label_is_wrong ?? false });
  const said = h("small", { id: "note-said" });
  const { trial } = app.state;
  const write = async () => {
    said.textContent = "saving…";
    try {
      await app.saveNote({ trial, point: found.point, note: text.value, label_is_wrong: wrong.checked });
      said.textContent = "saved in the ledger";
    } catch (error) {
      said.textContent = error.message;
    }
  };
  text.onchange = write;
  wrong.onchange = write;
  text.onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) text.blur(); };
  return h("div", { class: "note" }, text, h("label", {}, wrong, ` the ${words} is wrong`), said);
}

// All notes as a list; picture: of the point of an image.
export function listNotes(app, words, picture) {
  const found = app.notes ?? [];
  if (!found.length) return [h("div", { class: "empty" }, h("p", {}, "No notes yet."), h("p", {}, app.source.isServed
    ? `Open a case to write one, or to mark its ${words} as wrong. Notes lie in the study's ledger.` : "Notes are written in the served page: robustsweep explore."))];
  const entries = found.map((each) => ({ ...each, point: app.findPoint(each.set, each.id) }));
  app.list = entries.map((each) => each.point).filter((point) => point !== null);
  const wrong = found.filter((each) => each.label_is_wrong).length;
  return [
    h("div", { class: "row" }, h("span", { class: "faint" }, `${plural(found.length, "note")}${wrong ? `, ${plural(wrong, words)} marked as wrong` : ""}`), h("span", { class: "spacer" }),
      h("button", { id: "export-notes", onclick: () => save(`${app.study.study}-notes.json`, JSON.stringify({ study: app.study.study, notes: found }, null, 1), "application/json") }, "Export JSON")),
    h("div", { class: "rows" }, entries.map((each) => h("button", { class: "case-row note-row", "data-point": each.point === null ? undefined : String(each.point),
      disabled: each.point === null, onclick: () => app.choose(each.point) },
    each.point === null ? h("span", { class: "no-image" }) : picture(each.point),
    h("span", { class: "what" }, each.label_is_wrong ? h("b", { class: "wrong" }, `${words} wrong `) : null, each.note,
      h("small", {}, `${each.set}, ${each.id}`))))),
  ];
}
