/** The life of one opened case: opened, followed until it is segmented, kept alive, and opened again when it ended. */

import * as api from "./api.js";
import { LabelMap } from "./labels.js";
import { Volume } from "./volume.js";

const POLL_MS = 300;
const RETRY_MS = 3000;
const HEARTBEAT_MS = 20000;
const MOST_REOPENINGS = 3;
const AWAY_MS = 300000;
const SAVED = "everything up to there was saved.";
const ASIDE = "what was being done on it is set aside, since the dataset has gone back.";
const ASLEEP = "The session has ended. The image is opened again as soon as you go on;";
const REOPENED = "The session had ended. The image was opened again;";

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The session of the case that is shown. Only one is open at a time. */
export class Session {
  #store;
  #turn = 0;
  #reopened = 0;
  #recovering = null;
  #opened = null;
  #warned = 0;
  #used = performance.now();
  #asleep = false;
  id = null;

  /** @param {Store} store where image, labels and messages go. */
  constructor(store) {
    this.#store = store;
    setInterval(() => this.#beat(), HEARTBEAT_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.#beat());
    for (const kind of ["pointerdown", "keydown", "wheel"]) {
      window.addEventListener(kind, () => this.#wake(), { capture: true, passive: true });
    }
    window.addEventListener("pagehide", () => this.id && api.closeLast(this.id));
    window.addEventListener("pageshow", (event) => event.persisted && this.id && this.recover());
  }

  /** Resolves once the case that is being opened is segmented and shown (or has failed). */
  get opened() {
    return this.#opened;
  }

  /** Open a case in place of the one that is shown. */
  open(name) {
    this.#reopened = this.#warned = 0;
    const fresh = { volume: null, labels: null, channel: 0, measures: [], draft: null, hover: null, warnings: [] };
    this.#store.set({ ...fresh, ready: false, failed: false, case: name, message: null, prompts: [], undo: 0, redo: 0, volumes: {}, saved: null });
    return this.#begin(name);
  }

  /** Open the case that is shown once more, keeping the image and the view. */
  reopen() {
    return this.#begin(this.#store.now.case);
  }

  #begin(name) {
    const turn = ++this.#turn;
    const old = this.id;
    this.id = null;
    if (old) api.close(old).catch(() => {}); // one that ended already is no news
    this.#store.set({ ready: false, failed: false, progress: { share: 0, waiting: 0 } });
    this.#opened = this.#run(name, () => turn !== this.#turn);
    return this.#opened;
  }

  async #run(name, stale) {
    try {
      const { session } = await this.#patiently(() => api.open(name), stale);
      if (stale()) return void api.close(session).catch(() => {});
      this.id = session;
      await this.#follow(session, stale);
      this.#reopened = 0;
    } catch (problem) {
      if (stale()) return;
      if (problem.gone && ++this.#reopened <= MOST_REOPENINGS) return void (await this.reopen());
      this.#store.set({ progress: null, failed: true });
      this.say("error", problem.message, true);
    }
  }

  async #follow(id, stale) {
    const { now } = this.#store;
    let image = now.volume ? Promise.resolve() : null;
    for (;;) {
      const progress = await this.#patiently(() => api.progress(id), stale);
      if (stale()) return;
      this.#warn(progress.warnings);
      if (progress.error) throw new api.ServerError(500, progress.error);
      this.#store.set({ progress: { ...now.progress, ...progress } });
      if (!image && (progress.image || progress.ready)) {
        image = this.#readImage(id, now.channel, stale, (read) => {
          if (!stale()) this.#store.set({ progress: { ...now.progress, read } });
        });
        image.catch(() => {}); // told where it is awaited
      }
      if (progress.ready) break;
      await sleep(POLL_MS);
    }
    await image;
    if (!stale()) await this.#readLabels(id, stale);
  }

  // A case that is opened once more has the same warnings, which the user has seen.
  #warn(warnings) {
    const fresh = warnings.slice(this.#warned);
    this.#warned += fresh.length;
    if (fresh.length) this.#store.set({ warnings: [...this.#store.now.warnings, ...fresh] });
  }

  async #readImage(id, channel, stale, onShare) {
    const answer = await this.#patiently(() => api.readImage(id, channel, onShare), stale);
    if (!stale()) this.#store.set({ volume: new Volume(answer), channel });
  }

  async #readLabels(id, stale) {
    const answer = await this.#patiently(() => api.readLabels(id), stale);
    if (stale()) return;
    this.tell(answer.meta);
    this.#store.set({ labels: new LabelMap(answer), ready: true, progress: null, changed: null });
    this.#store.touch("changed");
  }

  /** Show another channel of the image. */
  async showChannel(channel) {
    const turn = this.#turn;
    try {
      await this.#readImage(this.id, channel, () => turn !== this.#turn);
    } catch (problem) {
      if (turn !== this.#turn) return;
      this.#store.touch("channel"); // the list goes back to the one that is shown
      this.refused(problem);
      if (problem.gone) await this.recover();
    }
  }

  /** Take over what the server says along with labels: undo, redo, prompts, volumes and the file. */
  tell({ undo, redo, prompts, volumes_ml: volumes, saved, message }) {
    this.#store.set({ undo, redo, prompts, volumes, saved });
    const { cases, case: name } = this.#store.now;
    const item = cases.find((each) => each.name === name);
    if (item && !item.begun && (undo > 0 || prompts.length)) {
      item.begun = true;
      this.#store.touch("cases");
    }
    if (message) this.say("info", message);
  }

  /** Say something to the user; `again` offers to open the case again. */
  say(kind, text, again = false) {
    this.#store.set({ message: { kind, text, again } });
  }

  /** Say why a request failed; a case that another window has now is not open here until it is opened again. */
  refused(problem, again = Boolean(problem.taken)) {
    if (problem.taken) this.#store.set({ ready: false, failed: true, progress: null });
    this.say("error", problem.message, again);
  }

  /**
   * Get back to a session that works after a request failed.
   * @returns {Promise<"same"|"reopened"|"failed">} "same": it goes on, its labels have been read again.
   */
  recover() {
    this.#recovering ??= this.#recover().finally(() => (this.#recovering = null));
    return this.#recovering;
  }

  async #recover() {
    const turn = this.#turn;
    const stale = () => turn !== this.#turn;
    try {
      await this.#patiently(() => api.heartbeat(this.id), stale);
      if (this.#store.now.ready && !stale()) await this.#readLabels(this.id, stale);
      return "same";
    } catch (problem) {
      if (stale()) return "failed";
      if (!problem.gone) {
        this.refused(problem, true);
        return "failed";
      }
      await this.reopen();
      if (!this.#store.now.ready) return "failed";
      this.say("info", `${REOPENED} ${problem.aside ? ASIDE : SAVED}`);
      return "reopened";
    }
  }

  #wake() {
    this.#used = performance.now();
    if (!this.#asleep) return;
    this.#asleep = false;
    this.recover();
  }

  // A page that nobody uses must not take a place at the server again and again: once the session has ended it waits
  // until it is visible, and until there is somebody.
  async #beat() {
    if (!this.id || !this.#store.now.ready) return;
    const id = this.id;
    try {
      await api.heartbeat(id);
    } catch (problem) {
      // a change that is under way finds out by itself
      if (id !== this.id || document.hidden || this.#store.now.pending.length) return;
      this.#asleep = Boolean(problem.gone) && performance.now() - this.#used > AWAY_MS;
      if (this.#asleep) this.say("info", `${ASLEEP} ${problem.aside ? ASIDE : SAVED}`, true);
      else await this.recover();
    }
  }

  /** Ask again every few seconds while the server does not answer, and say so. */
  async patiently(ask) {
    return this.#patiently(ask, () => false);
  }

  async #patiently(ask, stale) {
    for (;;) {
      try {
        const answer = await ask();
        this.#store.set({ online: true });
        return answer;
      } catch (problem) {
        if (!(problem instanceof api.OfflineError)) {
          this.#store.set({ online: true });
          throw problem;
        }
        if (stale()) throw problem;
        this.#store.set({ online: false });
        await sleep(RETRY_MS);
        if (stale()) throw problem;
      }
    }
  }
}
