// Points with WebGL2: positions travel to the graphics memory once, colours when they change, nothing else. While the
// view moves at most MOVING points are drawn, a random part; all of them as soon as it rests.

const MOVING = 50_000, REST_MS = 140;

const VERTEX = `#version 300 es
in vec2 position; in vec4 colour;
uniform vec2 centre, scale; uniform float size, opacity; uniform vec4 instead;
out vec4 tint;
void main() {
  gl_Position = vec4((position - centre) * scale, 0., 1.);
  gl_PointSize = size;
  tint = instead.a > 0. ? instead : vec4(colour.rgb, opacity);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 tint; out vec4 result;
void main() {
  vec2 d = gl_PointCoord * 2. - 1.;
  float inside = 1. - smoothstep(.72, 1., dot(d, d));
  if (inside <= 0.) discard;
  float alpha = tint.a * inside;
  result = vec4(tint.rgb * alpha, alpha);
}`;

// What part of the plane is seen; shared by two panes.
export class View {
  x = 0; y = 0; scale = 1; // centre in the plane, CSS px per unit
  #listeners = [];

  onChange(listener) { this.#listeners.push(listener); }
  changed(moving) { for (const each of this.#listeners) each(moving); }
}

export class Scatter {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: true, premultipliedAlpha: true });
    if (!gl) throw new Error("This browser has no WebGL2, with which the map is drawn.");
    this.gl = gl;
    const program = gl.createProgram();
    for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, "position");
    gl.bindAttribLocation(program, 1, "colour");
    gl.linkProgram(program);
    gl.useProgram(program);
    this.at = Object.fromEntries(
      ["centre", "scale", "size", "opacity", "instead"].map((name) => [name, gl.getUniformLocation(program, name)]));
    this.buffers = { position: gl.createBuffer(), colour: gl.createBuffer(), order: gl.createBuffer() };
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.groups = []; // {first, count, size factor, opacity factor, instead}
    this.size = 5; this.opacity = 0.85;
    this.width = this.height = 1;
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
    view.onChange((moving) => this.request(moving));
  }

  resize() {
    const box = this.canvas.getBoundingClientRect(), ratio = Math.min(2, window.devicePixelRatio || 1);
    if (!box.width) return;
    this.width = box.width; this.height = box.height; this.ratio = ratio;
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    this.draw(false);
    this.onResize?.();
  }

  setPositions(positions) {
    const gl = this.gl;
    this.positions = positions;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.position);
    gl.bufferData(gl.ARRAY_BUFFER, positions, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
  }

  // Three bytes and one of padding a point.
  setColours(colours) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.colour);
    gl.bufferData(gl.ARRAY_BUFFER, colours, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 0, 0);
  }

  // Numbers of the drawn points; `groups` are drawn one after the other, the last on top.
  setOrder(order, groups) {
    const gl = this.gl;
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.order);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    this.groups = groups;
  }

  request(moving = false) {
    this.moving = moving;
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(this.moving); });
    clearTimeout(this.resting);
    if (moving) this.resting = setTimeout(() => this.request(false), REST_MS);
  }

  draw(moving) {
    const gl = this.gl, ratio = this.ratio ?? 1;
    if (!this.positions) return;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.at.centre, this.view.x, this.view.y);
    gl.uniform2f(this.at.scale, (2 * this.view.scale) / this.width, (2 * this.view.scale) / this.height);
    const total = this.groups.reduce((sum, group) => sum + group.count, 0);
    const share = moving && total > MOVING ? MOVING / total : 1;
    for (const group of this.groups) {
      if (!group.count) continue;
      gl.uniform1f(this.at.size, this.size * (group.size ?? 1) * ratio);
      gl.uniform1f(this.at.opacity, this.opacity * (group.opacity ?? 1));
      const instead = group.instead ?? [0, 0, 0, 0];
      gl.uniform4f(this.at.instead, ...instead);
      gl.drawElements(gl.POINTS, Math.ceil(group.count * share), gl.UNSIGNED_INT, 4 * group.first);
    }
  }

  toScreen(x, y) {
    return [this.width / 2 + (x - this.view.x) * this.view.scale, this.height / 2 - (y - this.view.y) * this.view.scale];
  }

  toPlane(left, top) {
    return [this.view.x + (left - this.width / 2) / this.view.scale, this.view.y - (top - this.height / 2) / this.view.scale];
  }
}

// Finds the nearest of many points: cells of a grid, filled by counting.
export class Grid {
  constructor(positions, points) {
    this.positions = positions;
    let low = [Infinity, Infinity], high = [-Infinity, -Infinity];
    for (const p of points) {
      const x = positions[2 * p], y = positions[2 * p + 1];
      if (x < low[0]) low[0] = x; if (x > high[0]) high[0] = x;
      if (y < low[1]) low[1] = y; if (y > high[1]) high[1] = y;
    }
    this.low = low; this.high = high;
    this.side = Math.max(1, Math.min(1024, Math.ceil(Math.sqrt(points.length / 3))));
    this.cell = [(high[0] - low[0]) / this.side || 1, (high[1] - low[1]) / this.side || 1];
    const cells = new Uint32Array(points.length), starts = new Uint32Array(this.side * this.side + 1);
    for (let i = 0; i < points.length; i++) {
      const cell = this.#cellOf(positions[2 * points[i]], positions[2 * points[i] + 1]);
      cells[i] = cell;
      starts[cell + 1]++;
    }
    for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
    this.starts = starts.slice();
    this.points = new Uint32Array(points.length);
    for (let i = 0; i < points.length; i++) this.points[starts[cells[i]]++] = points[i];
  }

  #along(value, axis) {
    return Math.max(0, Math.min(this.side - 1, Math.floor((value - this.low[axis]) / this.cell[axis])));
  }

  #cellOf(x, y) { return this.#along(y, 1) * this.side + this.#along(x, 0); }

  // Number of the nearest point within `radius` (in the plane), −1 if there is none.
  nearest(x, y, radius) {
    let best = -1, least = radius * radius;
    const left = this.#along(x - radius, 0), right = this.#along(x + radius, 0);
    for (let row = this.#along(y - radius, 1); row <= this.#along(y + radius, 1); row++) {
      for (let i = this.starts[row * this.side + left]; i < this.starts[row * this.side + right + 1]; i++) {
        const p = this.points[i], dx = this.positions[2 * p] - x, dy = this.positions[2 * p + 1] - y;
        const distance = dx * dx + dy * dy;
        if (distance <= least) { least = distance; best = p; }
      }
    }
    return best;
  }
}
