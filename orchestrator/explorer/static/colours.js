// Colours of points. Right and wrong have scales of their own; hues are told apart by colour-blind readers
// (Okabe & Ito 2008), and the more confident a point the further it stands out from the page.

const CATEGORIES = [
  [43, 138, 201], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233], [140, 109, 70],
  [138, 99, 210], [120, 160, 40], [200, 60, 90],
];

const SCALES = {
  light: {
    right: [[214, 228, 240], [125, 176, 214], [28, 98, 158]],
    wrong: [[250, 214, 180], [238, 138, 60], [176, 44, 8]],
    unknown: [[226, 218, 240], [170, 143, 212], [104, 62, 168]],
    number: [[222, 235, 220], [104, 178, 140], [10, 92, 90]],
    muted: [205, 210, 216],
  },
  dark: {
    right: [[38, 58, 78], [66, 132, 186], [150, 208, 250]],
    wrong: [[84, 52, 30], [206, 108, 40], [255, 178, 92]],
    unknown: [[58, 46, 84], [136, 104, 192], [208, 184, 255]],
    number: [[34, 66, 60], [64, 150, 120], [176, 240, 190]],
    muted: [62, 70, 80],
  },
};

export const scales = (theme) => SCALES[theme];

export function category(index) {
  if (index < CATEGORIES.length) return CATEGORIES[index];
  return fromHue((index * 137.508) % 360);
}

function fromHue(hue) {
  const part = (shift) => {
    const k = (shift + hue / 30) % 12;
    return Math.round(255 * (0.5 - 0.28 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

// 256 colours of a scale of three stops, as one Uint8Array.
export function ramp(stops) {
  const table = new Uint8Array(256 * 3);
  for (let step = 0; step < 256; step++) {
    const at = (step / 255) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at)), share = at - low;
    for (let c = 0; c < 3; c++) table[3 * step + c] = Math.round(stops[low][c] * (1 - share) + stops[low + 1][c] * share);
  }
  return table;
}

export const css = (rgb) => `rgb(${rgb[0]} ${rgb[1]} ${rgb[2]})`;

export const gradient = (stops) => `linear-gradient(to right, ${stops.map(css).join(", ")})`;
