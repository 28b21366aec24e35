// Where the data of a study of segmentations come from: its server, or what is in an exported file.

import { EmbeddedSource, ServerSource } from "explorer/source.js";

export class ServedCases extends ServerSource {
  // Address of a picture of a case, null if there is none.
  picture(trial, point, panel, side) { return `api/trials/${trial}/cases/${point}/${panel}?side=${side}`; }

  hasPanel() { return true; }

  // An image says only that it failed; its server says why.
  explain(address) { return this.ask(address); }
}

export class EmbeddedCases extends EmbeddedSource {
  async clusters() {
    if (this.content.clusters.error) throw new Error(this.content.clusters.error);
    return this.content.clusters;
  }

  picture(trial, point, panel) {
    const picture = this.content.pictures[point][panel];
    return picture ? `data:image/jpeg;base64,${picture}` : null;
  }

  hasPanel(point, panel) { return panel in this.content.pictures[point]; }

  async explain() { throw new Error("A picture in this file is damaged; export it again."); }
}
