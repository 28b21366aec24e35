// Where the models looked: attributions laid over the image of a case, of one trial or of both.

import { h } from "explorer/dom.js";
import { NO_LABEL, WRONG } from "explorer/model.js";

const WAIT_MS = 120; // whoever steps through cases with the arrow keys asks for the last one alone

// Class that is explained: what this trial predicted, or the true one; an exported file has the first alone.
const targetOf = (app, trial, point) => (app.source.isServed && app.state.lookedFor === "label" && trial.labels[point] !== NO_LABEL ? trial.labels[point] : trial.predicted[point]);

// The choice of method, class and opacity; `lenses` are { box, caption, trial, point }: what is laid over what.
export function renderLooked(app, lenses, point) {
  const { state, trial } = app, methods = app.study.attributions ?? [];
  if (!trial.block(point).set.has_images) return null;
  const said = h("small", { class: "looked-said", role: "status" });
  const choose = h("select", { id: "looked", "aria-label": "Where the model looked",
    onchange: (event) => app.changeLooked({ looked: event.target.value || null }) },
  h("option", { value: "" }, "off"), methods.map((each) => h("option", { value: each.name }, each.title)));
  choose.value = state.looked ?? "";
  const children = [h("span", { title: "On or off: A" }, "Where it looked"), choose];
  if (state.looked) {
    if (app.source.isServed && trial.verdict[point] === WRONG) {
      const whose = h("select", { id: "looked-for", "aria-label": "For which class", onchange: (event) => app.changeLooked({ lookedFor: event.target.value }) },
        h("option", { value: "predicted" }, "for what is predicted"), h("option", { value: "label" }, "for the class"));
      whose.value = state.lookedFor === "label" ? "label" : "predicted";
      children.push(whose);
    }
    children.push(h("input", { id: "looked-opacity", type: "range", min: "0", max: "100", value: String(state.lookedOpacity), "aria-label": "Opacity of the attribution",
      oninput: (event) => app.fadeLooked(Number(event.target.value)) }));
  }
  if (state.looked) draw(app, lenses, point, said);
  return h("div", { class: "looked" }, ...children, said);
}

async function draw(app, lenses, point, said) {
  const { looked, lookedFor } = app.state;
  const isOver = () => app.state.point !== point || app.state.looked !== looked || app.state.lookedFor !== lookedFor;
  await new Promise((done) => setTimeout(done, WAIT_MS));
  if (isOver()) return;
  said.textContent = "computing …";
  try {
    for (const each of lenses) {
      const target = targetOf(app, each.shown, point);
      const address = await app.source.attribution(each.number, each.point, looked, target);
      if (isOver() || !each.box.isConnected) return;
      const picture = h("img", { class: "looked-at", src: address, alt: "" });
      picture.style.opacity = String(app.state.lookedOpacity / 100);
      each.box.append(picture);
      each.caption.textContent = `${each.words ? `${each.words}, ` : ""}for class ${app.className(each.shown, target)}`;
    }
    said.textContent = "";
  } catch (error) {
    if (isOver()) return;
    said.textContent = error.message;
    said.classList.add("problem");
  }
}
