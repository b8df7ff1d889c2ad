/** A dataset that is labelled: accept, put off, train, and the way back. Nothing of it is seen where none is. */

import * as api from "./api.js";
import { ask } from "./dialogs.js";

const POLL_MS = 3000;
const GO_BACK =
  "Label maps, images and the model become what they were. What came later is kept: this list leads there, too.";

const part = (id) => document.getElementById(id);
const many = (count, one, more = `${one}s`) => `${count} ${count === 1 ? one : more}`;

/** What the last training came to; nothing where its model is used. */
function lastText({ training, used, failed, why }) {
  if (used) return "";
  if (!failed) return `Training ${training} was no gain.`;
  const lines = why.trim().replace(/\.$/, "").split("\n");
  const told = lines.length > 1 ? `${lines[0]} ${lines.at(-1)}` : lines[0]; // of a log, the end
  return `Training ${training} failed: ${told.replace(/^(the training failed; |left out: )/, "")}.`;
}

function modelText({ folder, training }) {
  if (training !== null) return `Model ${training} proposes.`;
  return folder === null ? "No model proposes yet." : `${folder.split(/[/\\]/).at(-1)} proposes.`;
}

/** What is going on, in a few words. */
export function trainingText({ training, minutes, ranking, last, model, problem, every, since_training: since }) {
  const said = [problem ? `Not as the history has it: ${problem}.` : ""];
  if (training !== null) {
    said.push(`Training ${training} runs, ${minutes} minutes`);
  } else {
    said.push(last ? lastText(last) : "", ranking ? "Looking which images are the least sure" : modelText(model));
    const isDue = !ranking && every > 0 && since > 0;
    if (isDue) said.push(`Next training after ${many(every - since, "more image")}`);
  }
  return said.filter(Boolean).join(" ");
}

/** The images in the order in which they come, then those that are labelled. */
function inOrder(cases, { waiting, labelled }) {
  const place = new Map(waiting.map((name, index) => [name, index]));
  const done = new Set(labelled);
  const marked = cases.map((item) => ({ ...item, labelled: done.has(item.name) }));
  const last = waiting.length;
  const at = ({ name }) => place.get(name) ?? last;
  return marked.sort((a, b) => at(a) - at(b) || (a.name < b.name ? -1 : 1));
}

/** What the user can do with a dataset that is labelled. */
export function annotationActions({ store, session, changes }) {
  const { now } = store;

  /** Take over what the server says. */
  function tell(annotation) {
    if (JSON.stringify(annotation) === JSON.stringify(now.annotation)) return; // lists keep their place
    store.set({ annotation, cases: inOrder(now.cases, annotation) });
    if (part("history-dialog").open) readEvents();
  }

  /** Read all events; the server sends along the newest only. */
  async function readEvents() {
    const { annotation } = now;
    const isAll = annotation.history.length === annotation.events;
    const events = isAll ? annotation.history : (await api.history().catch(() => null))?.history;
    if (events) store.set({ events });
    part("history-title").textContent = events ? "History" : "History, the newest alone: the server does not answer";
  }

  /** Ask the server for something that nothing else may be asked beside. */
  async function exclusively(what, then) {
    if (!now.annotation || now.deciding) return;
    store.set({ deciding: true });
    try {
      tell(await what());
      await then?.();
    } catch (problem) {
      session.refused(problem);
      if (problem.gone) await session.recover();
    } finally {
      store.set({ deciding: false });
    }
  }

  const actions = {
    tell,
    accept: () => now.ready && exclusively(async () => {
      await changes.idle;
      if (now.pending.length) throw new Error("The last prompts could not be sent, so nothing was accepted.");
      return api.accept(session.id);
    }, actions.openNext),
    skip: () => now.case && session.id && exclusively(() => api.skip(session.id), actions.openNext),
    train: () => exclusively(api.train),
    history() {
      if (!now.annotation) return;
      store.set({ events: now.annotation.history });
      part("history-dialog").showModal();
      return readEvents();
    },
    async goBack(number) {
      part("history-dialog").close();
      if (!(await ask(`Back to event ${number}?`, GO_BACK, "Go back"))) return;
      await changes.idle;
      await exclusively(() => api.goBack(number), () => session.reopen());
    },
    /** Open what comes next, best an image that nobody has open; the image that is shown stays, if there is no other. */
    async openNext() {
      const { waiting, open } = now.annotation;
      const others = waiting.filter((name) => name !== now.case);
      const next = others.find((name) => !open.includes(name)) ?? others[0];
      if (next) await actions.openCase(next);
      else session.say("info", "No other image waits.");
    },
  };

  setInterval(async () => {
    if (!now.annotation || now.deciding || document.hidden) return;
    const annotation = await api.annotation().catch(() => null); // whoever works hears of it elsewhere
    if (annotation && !now.deciding) tell(annotation);
  }, POLL_MS);
  return actions;
}

function showEvents({ events }, actions) {
  part("history-list").replaceChildren(...events.map(({ number, at, text }) => {
    const row = document.createElement("li");
    const said = document.createElement("span");
    said.textContent = `${number}  ${new Date(at).toLocaleString()}  ${text}`;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.event = number;
    button.textContent = "Back to here";
    button.title = `Make everything as it was after event ${number}`;
    button.addEventListener("click", () => actions.goBack(number));
    row.append(said, button);
    return row;
  }));
}

/** Build and keep up to date the part of the panel. */
export function buildAnnotation(store, actions) {
  part("history-close").onclick = () => part("history-dialog").close();
  store.watch(["annotation"], (now) => {
    const { annotation } = now;
    part("annotation").hidden = !annotation;
    if (!annotation) return;
    const { waiting, labelled } = annotation;
    part("annotation-count").textContent = `(${labelled.length} labelled, ${waiting.length} left)`;
    const text = trainingText(annotation);
    if (part("annotation-training").textContent !== text) part("annotation-training").textContent = text;
    part("annotation-training").title = [annotation.last?.why, annotation.model.folder].filter(Boolean).join("\n");
  });
  store.watch(["events"], (now) => showEvents(now, actions));
  store.watch(["annotation", "ready", "pending", "deciding", "case"], (now) => {
    part("accept").disabled = !now.ready || now.deciding;
    part("skip").disabled = !now.case || now.deciding || !now.annotation?.waiting.includes(now.case);
    part("train").disabled = now.deciding || (now.annotation?.training ?? null) !== null;
  });
}
