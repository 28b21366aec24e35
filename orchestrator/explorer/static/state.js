// What is shown, and its whole in the address: a link brings a colleague to exactly the same view and selection.

// Longest list of selected points in an address, in characters; a larger selection travels as its outline alone.
const MAX_LIST = 8_000;

export const defaults = () => ({
  trial: 0, other: null, score: null, colour: "confidence", map: "pca",
  blocks: null, // numbers of the shown blocks (a set under a shift); null: all sets, unshifted
  classes: null, // numbers of the shown classes; null: all
  size: null, opacity: 85, view: null, // centre x, y and scale
  tab: "failures", kind: "over", within: null, // list of cases: kind, and number of the set
  point: null, // number of the case that is looked at
  looked: null, lookedFor: "predicted", lookedOpacity: 70, // attribution over the image: method, class, opacity
  outline: null, // lasso in the plane, Float32Array
  picked: null, // sorted numbers of selected points, Uint32Array
  origin: null, // what selected them: "lasso" or "cluster <n>"
});

const toText = (bytes) => {
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
};
const toBytes = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));

// Ascending numbers as differences of seven bits a byte.
export function packNumbers(numbers) {
  const bytes = [];
  let before = 0;
  for (const number of numbers) {
    let gap = number - before;
    before = number;
    while (gap > 127) { bytes.push((gap & 127) | 128); gap >>>= 7; }
    bytes.push(gap);
  }
  return toText(Uint8Array.from(bytes));
}

export function unpackNumbers(text) {
  const numbers = [];
  let before = 0, gap = 0, shift = 0;
  for (const byte of toBytes(text)) {
    gap += (byte & 127) * 2 ** shift;
    shift += 7;
    if (byte < 128) { before += gap; numbers.push(before); gap = shift = 0; }
  }
  return Uint32Array.from(numbers);
}

const list = (text) => (text === "" ? [] : text.split(".").map(Number));

export function write(state) {
  const base = defaults(), parts = [];
  const put = (key, value) => parts.push(`${key}=${encodeURIComponent(value)}`);
  const names = { trial: "t", other: "u", score: "s", colour: "c", map: "m", size: "z", opacity: "o", tab: "tab",
    kind: "k", within: "w", point: "p", origin: "from", looked: "a", lookedFor: "af", lookedOpacity: "ao" };
  put("t", state.trial);
  for (const [name, key] of Object.entries(names)) {
    if (name !== "trial" && state[name] !== base[name] && state[name] !== null) put(key, state[name]);
  }
  if (state.blocks) put("b", state.blocks.join("."));
  if (state.classes) put("y", state.classes.join("."));
  if (state.view) put("v", state.view.map((value) => Number(value.toPrecision(7))).join(","));
  if (state.outline) put("l", toText(new Uint8Array(state.outline.buffer)));
  if (state.picked) {
    if (state.picked.length <= MAX_LIST) {
      const text = packNumbers(state.picked);
      if (text.length <= MAX_LIST) put("q", text);
    }
  }
  return parts.join("&");
}

export function read(text) {
  const found = new URLSearchParams(text), state = defaults();
  const number = (key) => (found.has(key) && Number.isFinite(Number(found.get(key))) ? Number(found.get(key)) : null);
  state.trial = number("t");
  state.other = number("u");
  state.point = number("p");
  state.within = number("w");
  state.size = number("z"); // null: by the number of points
  state.opacity = number("o") ?? state.opacity;
  state.lookedOpacity = number("ao") ?? state.lookedOpacity;
  for (const [name, key] of [["score", "s"], ["colour", "c"], ["map", "m"], ["tab", "tab"], ["kind", "k"], ["origin", "from"], ["looked", "a"], ["lookedFor", "af"]]) {
    state[name] = found.get(key) ?? state[name];
  }
  try {
    if (found.has("b")) state.blocks = list(found.get("b"));
    if (found.has("y")) state.classes = list(found.get("y"));
    if (found.has("v")) state.view = found.get("v").split(",").map(Number);
    if (found.has("l")) state.outline = new Float32Array(toBytes(found.get("l")).buffer);
    if (found.has("q")) state.picked = unpackNumbers(found.get("q"));
  } catch {
    state.outline = state.picked = null; // a link that was cut off
  }
  return state;
}
