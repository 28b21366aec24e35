// Where the page's data come from: its server, or what is embedded in an exported file.

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class SourceError extends Error {}

export class ServerSource {
  isServed = true;
  #kept = new Map();

  async ask(path, options) {
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
  async waitFor(path, onShare) {
    for (;;) {
      const answer = await this.ask(path);
      if (answer.status !== 202) return answer;
      onShare?.((await answer.json()).share);
      await pause(250);
    }
  }

  once(key, make) {
    if (!this.#kept.has(key)) {
      const promise = make();
      this.#kept.set(key, promise);
      promise.catch(() => this.#kept.delete(key)); // it may work the next time
    }
    return this.#kept.get(key);
  }

  study() { return this.once("study", async () => (await this.ask("api/study")).json()); }

  trial(number, onShare) {
    return this.once(`trial ${number}`, async () => (await this.waitFor(`api/trials/${number}`, onShare)).json());
  }

  // Groups that a job finds; a kind of study adds the codes of its images.
  clusters(trial, onShare) {
    return this.once(`clusters ${trial}`, async () => (await this.waitFor(`api/trials/${trial}/clusters`, onShare)).json());
  }

  async notes() { return (await this.ask("api/notes")).json(); }

  async saveNote(note) {
    const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(note) };
    return (await this.ask("api/notes", options)).json();
  }
}

export class EmbeddedSource {
  isServed = false;

  constructor(content) { this.content = content; }

  // What is in the file, in words; null if everything is.
  get about() { return this.content.left_out; }

  async study() { return this.content.study; }
  async trial() { return this.content.index; }
  async notes() { return { notes: this.content.notes }; }
  async clusters() { return this.content.clusters; }
}

// Returns the source of this page: one of two kinds.
export function openSource(Served, Embedded) {
  const embedded = document.getElementById("embedded");
  return embedded ? new Embedded(JSON.parse(embedded.textContent)) : new Served();
}
