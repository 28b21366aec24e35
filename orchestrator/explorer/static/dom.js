// Elements without a framework: h("button", {class: "quiet", onclick: f}, "text", child).

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && typeof value !== "string") element[name] = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export const $ = (id) => document.getElementById(id);

const PLAIN = new Intl.NumberFormat("en");
export const count = (value) => PLAIN.format(value);

export const percent = (value, digits = 1) => (Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : "–");

// Three significant digits, for scores of any scale.
export function brief(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(3);
}

// "gaussian_noise/3" → "gaussian noise 3"; "identity/0" → "unshifted".
export function wordShift(key) {
  if (key === "identity/0") return "unshifted";
  const [name, severity] = key.split("/");
  return `${name.replaceAll("_", " ")} ${severity}`;
}

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

// Whether the page stands in a frame that may neither download nor copy, such as MLflow's artifact viewer.
export const isCaged = self !== top && self.origin === "null";

// Shows a dialog with a button that closes it. No form: a caged page may send none.
export function showDialog(title, ...content) {
  const box = $("keys");
  box.replaceChildren(h("h2", {}, title), ...content, h("button", { onclick: () => box.close() }, "Close"));
  box.showModal();
}

// A text to copy by hand.
export function showText(title, text) {
  const area = h("textarea", { class: "to-copy", readonly: true, rows: "12", "aria-label": title });
  area.value = text;
  showDialog(title, area);
  area.select();
}

// Hands the user a file, as a text where files cannot be.
export function save(name, text, type) {
  if (isCaged) { showText(`${name}: this frame may not save files; copy it, or download the page`, text); return; }
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// A frame without an origin, such as that of an artifact viewer, has no storage.
const THEME = "robustsweep-theme";
export function remembered() {
  try { return localStorage.getItem(THEME); } catch { return null; }
}
export function remember(theme) {
  try { localStorage.setItem(THEME, theme); } catch { /* for this page only */ }
}
