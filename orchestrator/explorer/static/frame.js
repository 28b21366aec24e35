// What the pages of all kinds of study share: the bar, the theme, keys, notes, the card beside the pointer, and the way
// through a list of cases. A page adds `state` with a `point` (the case that is looked at) and a `tab`.

import { $, h, isCaged, remember, remembered, showDialog, showText } from "explorer/dom.js";

export const STEPS = ["← →", "case before, next case of the list"], DRAG = ["Shift + drag", "lasso at any time"], CLOSE = ["Esc", "close the case, then select nothing"];
export const LARGER = ["Z", "images of the case larger or smaller"], LAST = [["D", "light or dark"], ["?", "this list"]];

export class Frame {
  // read and write: between a state and its text in the address; help: keys in words.
  constructor(source, { read, write, help }) {
    Object.assign(this, { source, read, write, help });
    this.state = read(location.hash.slice(1));
    this.theme = remembered() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = this.theme;
    this.keys = {
      ArrowRight: () => this.step(1), ArrowDown: () => this.step(1), ArrowLeft: () => this.step(-1), ArrowUp: () => this.step(-1),
      z: () => this.toggleLarge(), d: () => this.toggleTheme(), "?": () => this.showKeys(),
      Escape: () => (this.state.point !== null ? this.choose(null) : this.clearSelection()),
    };
    $("theme").onclick = () => this.toggleTheme();
    $("menu").onclick = () => this.toggleMenu();
    $("help").onclick = () => this.showKeys();
    $("link").onclick = () => this.copyLink();
    addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) === this.written) return;
      this.state = this.read(location.hash.slice(1));
      this.refresh();
    });
  }

  async start() {
    try {
      this.study = await this.source.study();
      $("study").textContent = this.study.study;
      $("question").textContent = this.study.question ?? "";
      document.title = `${this.study.study} · explorer`;
      this.state.trial ??= this.study.first;
      this.source.notes().then((found) => { this.notes = found.notes; this.renderLists(); }, (error) => this.fail(error));
      await this.refresh();
    } catch (error) {
      this.fail(error);
      throw error;
    }
  }

  fail(error) { this.say(error.message, true); }

  say(text, isProblem = false) {
    $("status").textContent = text;
    $("status").classList.toggle("problem", isProblem);
  }

  writeAddress() {
    this.written = this.write(this.state);
    try { history.replaceState(null, "", `#${this.written}`); } catch { /* a frame that has no address of its own */ }
  }

  change(patch) {
    Object.assign(this.state, patch);
    this.writeAddress();
    return this.refresh().catch((error) => this.fail(error));
  }

  step(by) {
    if (!this.list?.length) return;
    const at = Array.prototype.indexOf.call(this.list, this.state.point);
    const next = at < 0 ? (by > 0 ? 0 : this.list.length - 1) : Math.max(0, Math.min(this.list.length - 1, at + by));
    this.choose(this.list[next], true);
  }

  async saveNote(note) {
    this.notes = (await this.source.saveNote(note)).notes;
    if (this.state.tab === "notes") this.renderLists();
  }

  // Shows the card beside the pointer; `key` says what is on it, `describe` makes that.
  showCard(key, event, describe) {
    const card = $("card");
    if (this.hovered !== key) {
      this.hovered = key;
      card.replaceChildren(...describe());
    }
    card.hidden = false;
    const { width, height } = card.getBoundingClientRect(), gap = 16;
    const left = event.clientX + gap + width > innerWidth ? event.clientX - gap - width : event.clientX + gap;
    const top = Math.min(Math.max(8, event.clientY - height / 2), innerHeight - height - 8);
    card.style.left = `${Math.max(8, left)}px`;
    card.style.top = `${top}px`;
  }

  hideCard() {
    $("card").hidden = true;
    this.hovered = null;
  }

  // Head of a case: its id, the way to the next one and out of it.
  caseHeader(id) {
    return h("header", {}, id, h("span", { class: "spacer" }),
      h("button", { class: "quiet", title: "Case before (←)", "aria-label": "Case before", onclick: () => this.step(-1) }, "‹"),
      h("button", { class: "quiet", title: "Next case (→)", "aria-label": "Next case", onclick: () => this.step(1) }, "›"),
      h("button", { id: "close-case", class: "quiet", title: "Close (Esc)", "aria-label": "Close", onclick: () => this.choose(null) }, "×"));
  }

  // An image with room for something over it; a click shows it larger.
  lens(image) { return h("div", { class: "lens", title: "Larger or smaller (Z)", onclick: () => this.toggleLarge() }, image); }

  toggleLarge() {
    this.isLarge = !this.isLarge;
    document.querySelector("#case .figures")?.classList.toggle("large", this.isLarge);
  }

  toggleTheme() {
    this.theme = this.theme === "dark" ? "light" : "dark";
    remember(this.theme);
    document.documentElement.dataset.theme = this.theme;
    this.draw();
  }

  toggleMenu() {
    const open = document.body.classList.toggle("menu-open");
    $("menu").setAttribute("aria-expanded", String(open));
  }

  async copyLink() {
    if (isCaged) { this.say("This frame has no address to share: download the page, and open it from the disk", true); return; }
    try { await navigator.clipboard.writeText(location.href); this.say("Link copied"); } catch { showText("The link to this view", location.href); }
  }

  showKeys() { showDialog("Keys", h("dl", {}, this.help.map(([key, words]) => [h("dt", {}, key), h("dd", {}, words)]))); }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const target = event.target, kind = target.tagName;
    if (kind === "TEXTAREA" || kind === "SELECT" || (kind === "INPUT" && target.type !== "checkbox")) return;
    const run = this.keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!run) return;
    event.preventDefault();
    run();
  }
}

// Starts a page, and shows its app to whoever steers it.
export function open(app) {
  window.explorer = app;
  app.start();
}
