// Colours of all shown points, and the legend that explains them.

import { category, ramp, scales } from "explorer/colours.js";
import { NO_LABEL, RIGHT, UNKNOWN, WRONG, quantiles, spread, stepOf } from "explorer/model.js";
import { wordShift } from "explorer/dom.js";

// What points can be coloured by, apart from metadata columns.
export const CHOICES = [
  ["confidence", "confidence, right and wrong"], ["confusion", "class confusion"], ["label", "class"],
  ["predicted", "predicted class"], ["set", "set"], ["shift", "shift"], ["cluster", "cluster"],
];
const MOST_PAIRS = 9, MOST_LEVELS = 24;

// Colours (4 bytes a point) and legend of `points`; scales share their colours equally among the points `over`. `extra` has the metadata column or the clusters, if they are asked for.
export function paint({ trial, points, over, by, values, theme, extra }) {
  const colours = new Uint8Array(4 * trial.count);
  const how = { confidence: byConfidence, confusion: byConfusion };
  const legend = (how[by] ?? byLevel)({ trial, points, over, by, values, theme, extra, colours });
  return { colours, legend };
}

function byConfidence({ trial, points, over, values, theme, colours }) {
  const stops = scales(theme), steps = quantiles(values, over);
  const tables = [ramp(stops.right), ramp(stops.wrong), ramp(stops.unknown)], seen = [0, 0, 0];
  for (const p of points) {
    const verdict = trial.verdict[p], table = tables[verdict];
    const step = 3 * stepOf(steps, values[p]);
    colours[4 * p] = table[step]; colours[4 * p + 1] = table[step + 1]; colours[4 * p + 2] = table[step + 2];
    seen[verdict]++;
  }
  const bars = [[RIGHT, "right", stops.right], [WRONG, "wrong", stops.wrong], [UNKNOWN, "no class of the study", stops.unknown]];
  return { kind: "scales", isScore: true, low: steps[0], middle: steps[steps.length >> 1], high: steps.at(-1),
    bars: bars.filter(([verdict]) => seen[verdict]).map(([verdict, name, each]) => ({ name, stops: each, count: seen[verdict] })) };
}

function put(colours, p, rgb) {
  colours[4 * p] = rgb[0]; colours[4 * p + 1] = rgb[1]; colours[4 * p + 2] = rgb[2];
}

function byConfusion({ trial, points, theme, colours }) {
  const muted = scales(theme).muted, pairs = new Map(), classes = trial.index.classes;
  const key = (p) => trial.labels[p] * 65536 + trial.predicted[p];
  let right = 0;
  for (const p of points) {
    if (trial.verdict[p] === WRONG) pairs.set(key(p), (pairs.get(key(p)) ?? 0) + 1);
    else right++;
  }
  const ranked = [...pairs].sort((a, b) => b[1] - a[1]);
  const hue = new Map(ranked.slice(0, MOST_PAIRS).map(([pair], index) => [pair, category(index + 1)]));
  const rest = theme === "dark" ? [150, 156, 164] : [110, 118, 128];
  for (const p of points) put(colours, p, trial.verdict[p] === WRONG ? (hue.get(key(p)) ?? rest) : muted);
  const name = (pair) => `${classes[Math.floor(pair / 65536)]} taken for ${classes[pair % 65536]}`;
  const levels = ranked.slice(0, MOST_PAIRS).map(([pair, number]) => ({ name: name(pair), colour: hue.get(pair), count: number }));
  const others = ranked.slice(MOST_PAIRS).reduce((sum, each) => sum + each[1], 0);
  if (others) levels.push({ name: "other confusions", colour: rest, count: others });
  levels.push({ name: "not wrong", colour: muted, count: right });
  return { kind: "levels", levels };
}

function byLevel({ trial, points, by, theme, extra, colours }) {
  const muted = scales(theme).muted, { classes, sets } = trial.index;
  if (extra?.kind === "number") return byNumber({ trial, points, theme, extra, colours });
  let code, name;
  if (by === "label" || by === "predicted") {
    const column = by === "label" ? trial.labels : trial.predicted;
    code = (p) => column[p];
    name = (level) => (level === NO_LABEL ? "no class of the study" : classes[level]);
  } else if (by === "set") {
    code = (p) => trial.block(p).set.number;
    name = (level) => sets[level].name;
  } else if (by === "shift") {
    const names = [...new Set(trial.blocks.map((block) => block.shift.split("/")[0]))];
    const codes = trial.blocks.map((block) => names.indexOf(block.shift.split("/")[0]));
    code = (p) => codes[trial.blockOf[p]];
    name = (level) => (names[level] === "identity" ? "unshifted" : wordShift(`${names[level]}/`).trim());
  } else if (by === "cluster") {
    code = (p) => (extra && extra.codes[p] >= 0 ? extra.codes[p] : NO_LABEL);
    name = (level) => (level === NO_LABEL ? "in no cluster" : `cluster ${level + 1}`);
  } else {
    code = (p) => extra.values[trial.image(p)];
    name = (level) => (level === NO_LABEL ? "not known" : extra.levels[level]);
  }
  const seen = new Map();
  for (const p of points) {
    const level = code(p);
    seen.set(level, (seen.get(level) ?? 0) + 1);
    put(colours, p, level === NO_LABEL ? muted : category(level));
  }
  const levels = [...seen].sort((a, b) => a[0] - b[0])
    .map(([level, number]) => ({ name: name(level), colour: level === NO_LABEL ? muted : category(level), count: number }));
  const more = levels.length - MOST_LEVELS;
  return { kind: "levels", levels: levels.slice(0, MOST_LEVELS), more: more > 0 ? more : 0 };
}

function byNumber({ trial, points, theme, extra, colours }) {
  const stops = scales(theme).number, table = ramp(stops), muted = scales(theme).muted;
  const ofPoint = (p) => extra.values[trial.image(p)];
  const sample = Float32Array.from(points, ofPoint);
  const [low, high] = spread(sample, sample.keys().toArray?.() ?? [...sample.keys()]);
  let known = 0;
  for (const p of points) {
    const value = ofPoint(p);
    if (!Number.isFinite(value)) { put(colours, p, muted); continue; }
    known++;
    const step = 3 * Math.max(0, Math.min(255, Math.round((255 * (value - low)) / (high - low))));
    put(colours, p, [table[step], table[step + 1], table[step + 2]]);
  }
  return { kind: "scales", low, high, bars: [{ name: extra.name, stops, count: known }] };
}
