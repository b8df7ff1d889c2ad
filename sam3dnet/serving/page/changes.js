/** Prompts and other changes of the segmentation: sent one after the other, in the order in which they were made. */

import * as api from "./api.js";

const ADDING = new Set(["click", "scribble", "box", "paint"]);

/** The changes that are still to be sent. What was painted shows at once and is kept over answers to earlier ones. */
export class Changes {
  #store;
  #session;
  #running = null;
  #items = [];
  /** The stroke that is being painted, or null. */
  stroke = null;

  constructor(store, session) {
    this.#store = store;
    this.#session = session;
    store.watch(["ready", "labels"], ({ ready, labels }) => ready && labels && this.#goOn());
  }

  /** A click for a class at voxel [i, j, k]. */
  click(name, at, positive) {
    this.#add({ kind: "click", class: name, at, positive, send: (id) => api.click(id, name, at, positive) });
  }

  /** A stroke for a class over voxels [i, j, k]. */
  scribble(name, at, positive) {
    this.#add({ kind: "scribble", class: name, at, positive, send: (id) => api.scribble(id, name, at, positive) });
  }

  /** A box for a class from voxel low to voxel high, both in it. */
  box(name, low, high) {
    this.#add({ kind: "box", class: name, low, high, send: (id) => api.box(id, name, low, high) });
  }

  /** What was painted: a label, a box [[k0, k1], [j0, j1], [i0, i1]] and its mask. */
  paint({ label, box, mask }) {
    this.#add({ kind: "paint", label, box, mask, send: (id) => api.paint(id, label, box, mask) });
  }

  /** "undo", "redo" or "reset". */
  step(kind) {
    this.#add({ kind, send: (id) => api.step(id, kind) });
  }

  /** Resolves when all has been answered, or sending has stopped at a failure. */
  get idle() {
    return this.#running ?? Promise.resolve();
  }

  /** Go on sending after a failure, where the case is ready; else that happens once it is. */
  resume() {
    if (!this.#running && this.#items.length && this.#store.now.ready) {
      this.#running = this.#run().finally(() => {
        this.#running = null;
        this.#tell();
      });
    }
  }

  /** Forget what has not been sent. */
  clear() {
    this.#items = [];
    this.#tell();
  }

  // Labels that were read anew know nothing of what is still to be sent.
  #goOn() {
    if (!this.#items.length && !this.stroke) return;
    this.#repaint();
    this.#store.touch("changed");
    this.resume();
  }

  #add(item) {
    this.#items.push({ ...item, case: this.#store.now.case });
    this.#tell();
    this.resume();
  }

  #tell() {
    this.#store.set({ pending: [...this.#items] });
  }

  async #run() {
    while (this.#items.length && this.#store.now.ready) {
      const item = this.#items[0];
      const { undo, case: shown } = this.#store.now;
      if (item.case !== shown) {
        this.#items.shift();
        this.#session.say("error", `A change of ${item.case} was not sent: ${shown} is shown now.`);
        this.#tell();
        continue;
      }
      try {
        const change = await item.send(this.#session.id);
        this.#items.shift();
        this.#apply(change);
      } catch (problem) {
        if (!(await this.#failed(item, problem, undo))) return;
      }
      this.#tell();
    }
  }

  #apply({ meta, data }) {
    const { labels } = this.#store.now;
    if (meta.box) {
      labels.put(meta.box, data);
      this.#repaint();
      this.#store.set({ changed: meta.box });
    }
    this.#session.tell(meta);
  }

  #repaint() {
    const { labels, case: shown } = this.#store.now;
    for (const item of this.#items) {
      if (item.kind === "paint" && item.case === shown) labels.paint(item.box, item.mask, item.label);
    }
    this.stroke?.repaint(labels);
  }

  // Whether to go on. Where the answer was lost, the number of undo steps tells whether the change was made.
  async #failed(item, problem, undo) {
    const lost = problem instanceof api.OfflineError;
    if (problem.taken) {
      if (!ADDING.has(item.kind)) this.#items.shift();
      this.#session.refused(problem);
      return false;
    }
    if (!lost && !problem.gone) {
      this.#items.shift();
      this.#session.say("error", problem.message);
      if (item.kind !== "paint" && problem.status < 500) return true; // refused: nothing has changed, here or there
    }
    if (lost) this.#store.set({ online: false });
    const outcome = await this.#session.recover();
    if (outcome === "failed") return false;
    const made = outcome === "same" && this.#store.now.undo !== undo;
    if (lost && made) this.#items.shift();
    if (outcome === "reopened" && !ADDING.has(item.kind)) this.#items.shift();
    this.#repaint();
    this.#store.touch("changed");
    return true;
  }
}
