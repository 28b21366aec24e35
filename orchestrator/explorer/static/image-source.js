// Where the data of a study of classifications come from: arrays and images of its server, or those in an exported file.

import { EmbeddedSource, ServerSource, SourceError } from "explorer/source.js";

const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };
const MOST_LOOKED = 200; // pictures of attributions that are kept

export class ServedImages extends ServerSource {
  #looked = new Map();

  array(trial, name, type, number) {
    const path = `api/trials/${trial}/arrays/${name}${number === undefined ? "" : `/${number}`}`;
    return this.once(path, async () => new TYPES[type](await (await this.ask(path)).arrayBuffer()));
  }

  ids(trial) { return this.once(`ids ${trial}`, async () => (await this.ask(`api/trials/${trial}/ids`)).json()); }

  clusters(trial, onShare) {
    return this.once(`clusters and codes ${trial}`, async () => {
      const found = await super.clusters(trial, onShare);
      return { ...found, codes: await this.array(trial, "clusters", "i2") };
    });
  }

  map(trial, method, onShare) {
    if (method === "pca") return this.array(trial, "pca", "f4");
    const path = `api/trials/${trial}/maps/${method}`;
    return this.once(path, async () => new Float32Array(await (await this.waitFor(path, onShare)).arrayBuffer()));
  }

  match(trial, other) {
    const path = `api/trials/${trial}/matches/${other}`;
    return this.once(path, async () => new Int32Array(await (await this.ask(path)).arrayBuffer()));
  }

  hasShifted() { return true; }

  image(trial, point, side) { return `api/trials/${trial}/images/${point}?side=${side}`; }

  // Address of the picture that shows where a trial's model looked for a class. The last ones are kept.
  attribution(trial, point, method, target) {
    const path = `api/trials/${trial}/attributions/${point}/${method}/${target}`;
    if (this.#looked.has(path)) return this.#looked.get(path);
    const promise = this.ask(path).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob));
    promise.catch(() => this.#looked.delete(path));
    this.#looked.set(path, promise);
    if (this.#looked.size > MOST_LOOKED) {
      const [oldest, address] = this.#looked.entries().next().value;
      this.#looked.delete(oldest);
      address.then(URL.revokeObjectURL, () => {});
    }
    return promise;
  }

  async case(trial, point) { return (await this.ask(`api/trials/${trial}/cases/${point}`)).json(); }
}

const decode = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

export class EmbeddedImages extends EmbeddedSource {
  #kept = new Map();

  async ids() { return this.content.ids; }

  #array(text, type) {
    if (!this.#kept.has(text)) this.#kept.set(text, new TYPES[type](decode(text)));
    return this.#kept.get(text);
  }

  async array(trial, name, type, number) {
    return this.#array(this.content.arrays[number === undefined ? name : `${name}/${number}`], type);
  }

  async map(trial, method) {
    if (!(method in this.content.arrays)) throw new SourceError("This file has no t-SNE map; choose PCA.");
    return this.array(trial, method, "f4");
  }

  async clusters(trial) {
    const found = this.content.clusters;
    return found.problem ? found : { ...found, codes: await this.array(trial, "clusters", "i2") };
  }

  #find(point) {
    const { sets } = this.content.index;
    const set = sets.findLast((each) => each.first_point <= point), inside = point - set.first_point;
    return { set, row: inside % set.count, shift: Math.floor(inside / set.count) };
  }

  // Whether a shifted image is in the file: those of some failures are.
  hasShifted(point) { return point in this.content.shifted; }

  // The unshifted image stands for a shifted one that is not in the file.
  image(trial, point) {
    const { set, row } = this.#find(point), text = this.content.shifted[point] ?? this.content.thumbnails[set.first_image + row];
    return text ? `data:image/jpeg;base64,${text}` : null;
  }

  // Where the model looked for what it has predicted of an unshifted failure, if that is in the file.
  attribution(trial, point) {
    const { set, row, shift } = this.#find(point), text = shift ? null : this.content.looked[set.first_image + row];
    if (text) return Promise.resolve(`data:image/png;base64,${text}`);
    return Promise.reject(new SourceError("Not in this file, which has it of failures, unshifted; the served page (robustsweep explore) has it of all."));
  }

  #neighbours(image) {
    const { content } = this, found = content.neighbours[image];
    if (!found) return { neighbours: [], no_neighbours: content.no_neighbours };
    const described = found.map(({ row, distance }) => {
      const { id, label, picture } = content.training[row];
      return { point: null, id, label, distance, picture: picture ? `data:image/jpeg;base64,${picture}` : null };
    });
    return { neighbours: described, no_neighbours: null };
  }

  async case(trial, point) {
    const { content } = this, { set, row, shift } = this.#find(point), image = set.first_image + row;
    const top = this.#array(content.top, "u1"), predicted = await this.array(trial, "predicted", "u2"), labels = await this.array(trial, "labels", "u2");
    const codes = this.#array(content.distribution_codes, "u2"), shares = this.#array(content.distribution_shares, "f4");
    const size = codes.length / content.index.num_images;
    const distribution = shift === 0
      ? [...codes.subarray(image * size, (image + 1) * size)].map((code, k) => ({ class: code, probability: shares[image * size + k] }))
      : [{ class: predicted[point], probability: top[point] / 255 }];
    const metadata = {};
    for (const [number, column] of content.index.columns.entries()) {
      const values = await this.array(trial, "column", column.levels ? "u2" : "f4", number), value = values[image];
      if (column.levels ? value < column.levels.length : Number.isFinite(value)) metadata[column.name] = column.levels ? column.levels[value] : String(Number(value.toPrecision(6)));
    }
    const versions = set.shifts.map((each, k) => {
      const p = set.first_point + k * set.count + row;
      return { point: p, shift: each, predicted: predicted[p], probability: top[p] / 255 };
    });
    return { point, id: content.ids[image], label: labels[point] === 65535 ? null : labels[point], distribution, metadata, versions,
      ...(shift === 0 ? this.#neighbours(image) : { neighbours: [], no_neighbours: "this file has those of unshifted images" }) };
  }
}
