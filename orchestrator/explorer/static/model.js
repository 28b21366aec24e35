// One trial's points as columns, and what is counted from them. Nothing here asks the server.

export const NO_LABEL = 65535;
export const RIGHT = 0, WRONG = 1, UNKNOWN = 2;

export class Trial {
  constructor(number, index, labels, predicted) {
    this.number = number;
    this.index = index;
    this.labels = labels;
    this.predicted = predicted;
    const n = (this.count = index.num_points);
    this.verdict = new Uint8Array(n);
    for (let p = 0; p < n; p++) this.verdict[p] = labels[p] === NO_LABEL ? UNKNOWN : labels[p] === predicted[p] ? RIGHT : WRONG;
    // A block is a set under a shift.
    this.blocks = [];
    this.blockOf = new Uint16Array(n);
    for (const set of index.sets) {
      set.shifts.forEach((shift, position) => {
        const first = set.first_point + position * set.count, number = this.blocks.length;
        this.blocks.push({ number, set, shift, position, first, count: set.count, placed: set.placed.includes(shift) });
        this.blockOf.fill(number, first, first + set.count);
      });
    }
    this.scores = new Map();
    this.columns = new Map();
  }

  block(point) { return this.blocks[this.blockOf[point]]; }

  row(point) { return point - this.block(point).first; }

  image(point) { const block = this.block(point); return block.set.first_image + point - block.first; }

  // Blocks that are shown unless others are chosen: every set but the training images, unshifted.
  get usual() {
    return this.blocks.filter((block) => block.position === 0 && block.set.name !== "train").map((block) => block.number);
  }
}

// A random order that is the same every time, so that no set hides another.
export function shuffled(n) {
  const order = new Uint32Array(n);
  for (let i = 0; i < n; i++) order[i] = i;
  let seed = 0x9e3779b9;
  for (let i = n - 1; i > 0; i--) {
    seed ^= seed << 13; seed ^= seed >>> 17; seed ^= seed << 5;
    const j = (seed >>> 0) % (i + 1), kept = order[i];
    order[i] = order[j]; order[j] = kept;
  }
  return order;
}

// Numbers of the points of the shown blocks and classes, in the order of `order`.
export function findShown(trial, order, blocks, classes) {
  const shown = new Uint8Array(trial.blocks.length), wanted = classes && new Uint8Array(NO_LABEL + 1);
  for (const number of blocks) if (number < shown.length) shown[number] = 1;
  if (wanted) for (const label of classes) wanted[label] = 1;
  const found = new Uint32Array(trial.count);
  let number = 0;
  for (let i = 0; i < order.length; i++) {
    const p = order[i];
    if (shown[trial.blockOf[p]] && (!wanted || wanted[trial.labels[p]])) found[number++] = p;
  }
  return found.slice(0, number);
}

export const isPlaced = (positions, p) => positions[2 * p] === positions[2 * p]; // NaN is not equal to itself

// Interval of a share with 95 % (Wilson 1927).
export function wilson(hits, n, z = 1.959964) {
  if (!n) return [NaN, NaN];
  const share = hits / n, square = z * z, centre = (share + square / (2 * n)) / (1 + square / n);
  const half = (z / (1 + square / n)) * Math.sqrt((share * (1 - share)) / n + square / (4 * n * n));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

export function tally(trial, points, values) {
  const found = { points: points.length, right: 0, wrong: 0, unknown: 0, confidence: 0 };
  for (const p of points) {
    const verdict = trial.verdict[p];
    if (verdict === RIGHT) found.right++; else if (verdict === WRONG) found.wrong++; else found.unknown++;
    if (values) found.confidence += values[p];
  }
  const judged = found.right + found.wrong;
  return { ...found, judged, error: judged ? found.wrong / judged : NaN, interval: wilson(found.wrong, judged),
    confidence: points.length ? found.confidence / points.length : NaN };
}

// 256 steps that share the points equally among the colours, whatever the values' distribution.
export function quantiles(values, points) {
  const step = Math.max(1, Math.floor(points.length / 20_000)), kept = [];
  for (let i = 0; i < points.length; i += step) if (Number.isFinite(values[points[i]])) kept.push(values[points[i]]);
  if (!kept.length) return Float64Array.of(0);
  const sorted = Float64Array.from(kept).sort();
  return Float64Array.from({ length: 256 }, (_, k) => sorted[Math.round((k / 255) * (sorted.length - 1))]);
}

// Number of the step of a value, 0 to 255.
export function stepOf(steps, value) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

// The ends of the middle 98 % of the values, so that one outlier does not take all colours.
export function spread(values, points) {
  const step = Math.max(1, Math.floor(points.length / 20_000)), kept = [];
  for (let i = 0; i < points.length; i += step) if (Number.isFinite(values[points[i]])) kept.push(values[points[i]]);
  if (!kept.length) return [0, 1];
  const sorted = Float64Array.from(kept).sort();
  const low = sorted[Math.floor(0.01 * (sorted.length - 1))], high = sorted[Math.ceil(0.99 * (sorted.length - 1))];
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}

// The most over-confident (wrong and sure) or under-confident (right and unsure) of some points, most first.
export function rankFailures(trial, points, values, kind, most) {
  const wanted = ofVerdict(trial, points, kind === "over" ? WRONG : RIGHT, true);
  return [...rankFirst(wanted, values, most, kind === "over").subarray(0, most)];
}

// The points with that verdict, or with any other.
export function ofVerdict(trial, points, verdict, has) {
  const found = new Uint32Array(points.length);
  let number = 0;
  for (let k = 0; k < points.length; k++) if ((trial.verdict[points[k]] === verdict) === has) found[number++] = points[k];
  return found.subarray(0, number);
}

// The first of `rank`: at least `most` of them if there are so many. A histogram leaves out most of the others.
export function rankFirst(points, values, most, largest) {
  if (points.length <= 4 * most) return rank(points, values, largest);
  const sign = largest ? 1 : -1;
  let low = Infinity, high = -Infinity;
  for (let k = 0; k < points.length; k++) {
    const value = sign * values[points[k]];
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const bins = new Uint32Array(1024), scale = 1023 / (high - low) || 0;
  for (let k = 0; k < points.length; k++) bins[((sign * values[points[k]] - low) * scale) | 0]++;
  let bin = 1023, kept = bins[bin];
  while (bin > 0 && kept < most) kept += bins[--bin];
  const first = new Uint32Array(kept);
  let number = 0;
  for (let k = 0; k < points.length; k++) if ((((sign * values[points[k]] - low) * scale) | 0) >= bin) first[number++] = points[k];
  return rank(first, values, largest);
}

const BITS = 20; // of a point's number, beside the 32 of its value: 52 in all, exact in a float64

// Points by their values, least first unless `largest`; ties by number, values that are none last. Numbers are sorted,
// not objects: a tenth of the time.
export function rank(points, values, largest = false) {
  const bits = new Uint32Array(1), number = new Float32Array(bits.buffer), keys = new Float64Array(points.length);
  if (points.some((p) => p >= 2 ** BITS)) {
    const sign = largest ? -1 : 1;
    return Uint32Array.from([...points].sort((a, b) => sign * (values[a] - values[b]) || a - b));
  }
  for (let k = 0; k < points.length; k++) {
    const value = values[points[k]];
    number[0] = largest ? -value : value;
    const ordered = value !== value ? 0xffffffff : bits[0] >>> 31 ? ~bits[0] >>> 0 : (bits[0] | 0x80000000) >>> 0;
    keys[k] = ordered * 2 ** BITS + points[k];
  }
  keys.sort();
  return Uint32Array.from(keys, (key) => key % 2 ** BITS);
}
