// Where the page's data come from: its server, or what is embedded in an exported file.

const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class SourceError extends Error {}

class ServerSource {
  isServed = true;
  #kept = new Map();

  async #ask(path, options) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new SourceError("The server does not answer; start `robustsweep explore` again.");
    }
    if (!answer.ok) {
      const text = await answer.text();
      let message = text;
      try { message = JSON.parse(text).error ?? text; } catch { /* plain text */ }
      throw new SourceError(message);
    }
    return answer;
  }

  // Asks until the job behind `path` is done; `onShare` hears its progress.
  async #await(path, onShare) {
    for (;;) {
      const answer = await this.#ask(path);
      if (answer.status !== 202) return answer;
      onShare?.((await answer.json()).share);
      await pause(250);
    }
  }

  #once(key, make) {
    if (!this.#kept.has(key)) {
      const promise = make();
      this.#kept.set(key, promise);
      promise.catch(() => this.#kept.delete(key)); // it may work the next time
    }
    return this.#kept.get(key);
  }

  study() { return this.#once("study", async () => (await this.#ask("api/study")).json()); }

  trial(number, onShare) {
    return this.#once(`trial ${number}`, async () => (await this.#await(`api/trials/${number}`, onShare)).json());
  }

  array(trial, name, type, number) {
    const path = `api/trials/${trial}/arrays/${name}${number === undefined ? "" : `/${number}`}`;
    return this.#once(path, async () => new TYPES[type](await (await this.#ask(path)).arrayBuffer()));
  }

  ids(trial) { return this.#once(`ids ${trial}`, async () => (await this.#ask(`api/trials/${trial}/ids`)).json()); }

  clusters(trial, onShare) {
    return this.#once(`clusters ${trial}`, async () => {
      const found = await (await this.#await(`api/trials/${trial}/clusters`, onShare)).json();
      return { ...found, codes: await this.array(trial, "clusters", "i2") };
    });
  }

  map(trial, method, onShare) {
    if (method === "pca") return this.array(trial, "pca", "f4");
    const path = `api/trials/${trial}/maps/${method}`;
    return this.#once(path, async () => new Float32Array(await (await this.#await(path, onShare)).arrayBuffer()));
  }

  match(trial, other) {
    const path = `api/trials/${trial}/matches/${other}`;
    return this.#once(path, async () => new Int32Array(await (await this.#ask(path)).arrayBuffer()));
  }

  image(trial, point, side) { return `api/trials/${trial}/images/${point}?side=${side}`; }

  async case(trial, point) { return (await this.#ask(`api/trials/${trial}/cases/${point}`)).json(); }

  async notes() { return (await this.#ask("api/notes")).json(); }

  async saveNote(note) {
    const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(note) };
    return (await this.#ask("api/notes", options)).json();
  }
}

export function openSource() {
  return new ServerSource();
}
