// What lies inside an outline.

const SLABS = 512;

// Which of `points` lie in a polygon (x, y, x, y, …), ascending: by crossings of a horizontal ray, with the few edges that
// pass its height.
export function pointsInside(polygon, positions, points) {
  const corners = polygon.length / 2;
  let left = Infinity, right = -Infinity, bottom = Infinity, top = -Infinity;
  for (let i = 0; i < corners; i++) {
    left = Math.min(left, polygon[2 * i]); right = Math.max(right, polygon[2 * i]);
    bottom = Math.min(bottom, polygon[2 * i + 1]); top = Math.max(top, polygon[2 * i + 1]);
  }
  const height = (top - bottom) / SLABS || 1, slabs = Array.from({ length: SLABS }, () => []);
  const slabOf = (y) => Math.max(0, Math.min(SLABS - 1, Math.floor((y - bottom) / height)));
  for (let i = 0, j = corners - 1; i < corners; j = i++) {
    const yi = polygon[2 * i + 1], yj = polygon[2 * j + 1];
    for (let slab = slabOf(Math.min(yi, yj)); slab <= slabOf(Math.max(yi, yj)); slab++) slabs[slab].push(i, j);
  }
  const isInside = new Uint8Array(positions.length / 2);
  let number = 0;
  for (let k = 0; k < points.length; k++) {
    const p = points[k], x = positions[2 * p], y = positions[2 * p + 1];
    if (!(x >= left && x <= right && y >= bottom && y <= top)) continue;
    const edges = slabs[slabOf(y)];
    let inside = 0;
    for (let e = 0; e < edges.length; e += 2) {
      const i = edges[e], j = edges[e + 1], yi = polygon[2 * i + 1], yj = polygon[2 * j + 1];
      if (yi > y !== yj > y && x < ((polygon[2 * j] - polygon[2 * i]) * (y - yi)) / (yj - yi) + polygon[2 * i]) inside ^= 1;
    }
    isInside[p] = inside;
    number += inside;
  }
  const found = new Uint32Array(number);
  for (let p = 0, at = 0; at < number; p++) if (isInside[p]) found[at++] = p;
  return found;
}
