/** What the user can do, for buttons, keys and tools alike. */

import * as api from "./api.js";
import { ask, showHelp } from "./dialogs.js";
import { PLANE_NAMES } from "./orientation.js";
import { between, joined } from "./voxels.js";

const ZOOM_STEP = 1.25;
const PAN_STEP = 40; // CSS pixels
const SIZE_STEP = 1.15;
const SIZES_MM = [1, 100];
const UNSAVED = "The last prompts could not be sent, so nothing was saved.";
const RESET = "All prompts and all that was painted in this image are dropped; the automatic result comes back.";

/** Whether something can be undone, redone or reset, sent prompts included. */
export function possible({ ready, pending, undo, redo, prompts, cases, case: name }) {
  const shown = cases.find((item) => item.name === name);
  const begun = undo > 0 || prompts.length > 0 || Boolean(shown?.begun || shown?.labelled);
  const adding = pending.some((item) => !["undo", "redo", "reset"].includes(item.kind));
  return { undo: ready && (undo > 0 || adding), redo: ready && redo > 0 && !adding, reset: ready && (begun || adding) };
}

/**
 * The actions of the page.
 * @param {{store, session, changes, views: PlaneView[]}} parts
 */
export function makeActions({ store, session, changes, views }) {
  const { now } = store;
  const view = (name = now.active) => views.find((each) => each.name === name);
  const note = (text) => session.say("info", text);
  const sendBox = (low, high) => {
    const { name, label } = now.classes[now.class];
    store.set({ draft: null });
    actions.unhide(label);
    changes.box(name, low, high);
  };

  const actions = {
    /** Whether prompts can be given now; says why if not. */
    mayPrompt() {
      if (now.ready) return true;
      if (now.case && !now.failed) note("The automatic segmentation is still being computed.");
      return false;
    },

    async openCase(name) {
      if (name === now.case && !now.failed) return;
      if (name === now.case && now.pending.length) return void (await actions.again()); // which sends them
      if (now.pending.length) {
        note(`The last prompts are being finished before ${name} is opened.`);
        if (!now.ready && !now.failed) await session.opened; // it is being opened again, then they are sent
      }
      await changes.idle;
      const unsent = now.pending.length;
      changes.clear();
      history.replaceState(null, "", `#${encodeURIComponent(name)}`);
      const opened = session.open(name);
      if (unsent) session.say("error", `${unsent} of the last prompts could not be sent.`);
      await opened;
    },
    nextCase(step) {
      const at = now.cases.findIndex((item) => item.name === now.case) + step;
      if (now.cases[at]) actions.openCase(now.cases[at].name);
    },
    async again() {
      store.set({ message: null });
      await session.reopen();
      changes.resume();
    },
    dismiss: () => store.set(now.message ? { message: null } : { warnings: now.warnings.slice(1) }),

    setTool: (tool) => store.set({ tool, draft: null }),
    chooseClass(index) {
      if (!now.classes[index]) return;
      store.set({ class: index, draft: null });
    },
    unhide(label) {
      if (now.hidden.has(label)) actions.toggleClass(now.classes.findIndex((item) => item.label === label));
      store.set({ shown: true });
    },
    toggleClass(index) {
      if (!now.classes[index]) return;
      const { label } = now.classes[index];
      const hidden = new Set(now.hidden);
      if (!hidden.delete(label)) hidden.add(label);
      store.set({ hidden });
    },
    toggle: (key) => store.set({ [key]: !now[key] }),
    opacity: (step) => store.set({ opacity: Math.round(Math.max(0, Math.min(1, now.opacity + step)) * 20) / 20 }),
    size(direction) {
      const step = Math.max(now.brushMm * (SIZE_STEP - 1), 1);
      const mm = now.brushMm + direction * step;
      store.set({ brushMm: Math.round(Math.max(SIZES_MM[0], Math.min(SIZES_MM[1], mm))) });
    },
    depth() {
      if (now.tool === "box") store.set({ deep: !now.deep, draft: null });
      if (now.tool === "brush" || now.tool === "eraser") store.set({ ball: !now.ball });
    },
    preset(index) {
      if (now.presets[index]) store.set({ window: now.presets[index].window });
    },

    goTo(at) {
      const elsewhere = at.some((index, axis) => index !== now.crosshair[axis]);
      if (elsewhere && now.volume?.holds(at)) store.set({ crosshair: at });
    },
    scroll(name, slices) {
      if (!now.volume) return;
      const { plane } = view(name);
      const at = [...now.crosshair];
      at[plane.depth] = Math.max(0, Math.min(plane.slices - 1, at[plane.depth] + slices * plane.onward));
      actions.goTo(at);
    },
    toSlice(name, slice) {
      const at = [...now.crosshair];
      at[view(name).plane.depth] = slice;
      actions.goTo(at);
    },
    end(direction) {
      if (!now.volume) return;
      const { plane } = view();
      actions.scroll(now.active, direction * plane.slices);
    },
    move(columns, rows) {
      if (!now.volume) return;
      const { plane, slice } = view();
      actions.goTo(plane.voxel(plane.column(now.crosshair) + columns, plane.row(now.crosshair) + rows, slice));
    },
    /** Draw a stroke from the cross-hair on, which moves by a voxel; with other tools the view moves. */
    drawOrPan(columns, rows) {
      if (now.tool !== "scribble") return void actions.pan(-columns, -rows);
      if (!now.volume || !actions.mayPrompt()) return;
      const from = now.crosshair;
      actions.move(columns, rows);
      store.set({ draft: { kind: "scribble", at: joined(now.draft?.at ?? [], from, now.crosshair) } });
    },
    pan: (dx, dy) => now.volume && view().pan(dx * PAN_STEP, dy * PAN_STEP),
    zoom: (direction) => now.volume && view().zoom(ZOOM_STEP ** direction),
    fit: () => now.volume && views.forEach((each) => each.fit()),

    /** Make a plane the active one; it becomes the large one where only one is large. */
    activate(name) {
      store.set({ active: name, large: name });
      view(name).over.focus({ preventScroll: true });
    },
    /** Show one plane alone, or all of them again. */
    enlarge(name = now.active) {
      const alone = now.layout === "single" && now.large === name;
      if (!alone && now.layout !== "single") store.set({ before: now.layout });
      store.set({ active: name, large: name, layout: alone ? now.before : "single" });
    },
    layout: () => store.set({ layout: now.layout === "large" ? "equal" : "large" }),
    nextPlane(step) {
      const at = (PLANE_NAMES.indexOf(now.active) + step + PLANE_NAMES.length) % PLANE_NAMES.length;
      actions.activate(PLANE_NAMES[at]);
    },

    click(at, positive) {
      if (!now.volume || !actions.mayPrompt()) return;
      const { name, label } = now.classes[now.class];
      actions.unhide(label);
      actions.goTo(at);
      changes.click(name, at, positive);
    },
    /** A stroke over voxels [i, j, k], along which the class is or is not. */
    scribble(places, positive) {
      if (!places.length) return;
      const { name, label } = now.classes[now.class];
      actions.unhide(label);
      actions.goTo(places.at(-1));
      changes.scribble(name, places, positive);
    },
    /** A box in a slice; a deep one waits for a drag in another plane that tells how far it reaches. */
    box(from, { low, high }, shift) {
      const { draft } = now;
      if (draft?.kind === "slice" && draft.depth !== from.plane.depth) {
        const whole = { low: [...draft.low], high: [...draft.high] };
        whole.low[draft.depth] = low[draft.depth];
        whole.high[draft.depth] = high[draft.depth];
        sendBox(whole.low, whole.high);
      } else if (now.deep || shift) {
        store.set({ draft: { kind: "slice", low, high, depth: from.plane.depth } });
        actions.goTo(low.map((n, axis) => Math.round((n + high[axis]) / 2)));
      } else {
        sendBox(low, high);
      }
    },
    /** At the cross-hair: the end of a stroke, a corner of a box, or with other tools a click. */
    sayHere(positive) {
      if (!now.volume || !actions.mayPrompt()) return;
      const { tool, draft } = now;
      const at = [...now.crosshair];
      if (tool === "scribble") {
        store.set({ draft: null });
        actions.scribble(draft?.at ?? [at], positive);
      } else if (tool !== "box") {
        actions.click(at, positive);
      } else if (draft?.kind === "corner") {
        const { low, high } = between(draft.at, at);
        sendBox(low, high);
      } else {
        store.set({ draft: { kind: "corner", at } });
      }
    },
    /** Give up a stroke or a box that is not finished. @returns {boolean} whether there was one. */
    drop() {
      const had = now.draft !== null;
      store.set({ draft: null });
      return had;
    },

    undo: () => possible(now).undo && changes.step("undo"),
    redo: () => possible(now).redo && changes.step("redo"),
    async reset() {
      if (!possible(now).reset) return;
      const sure = await ask("Reset the segmentation?", RESET, "Reset");
      if (sure) changes.step("reset");
    },
    async save() {
      if (!now.ready) return;
      await changes.idle;
      if (now.pending.length) return session.say("error", UNSAVED);
      try {
        const { saved, folder } = await api.save(session.id);
        store.set({ saved });
        note(`Saved: ${folder.replace(/[/\\]$/, "")}/${saved}`);
      } catch (problem) {
        session.refused(problem);
        if (problem.gone || problem instanceof api.OfflineError) await session.recover();
      }
    },
    help: showHelp,

    clear: () => store.set({ measures: [] }),
  };
  return actions;
}
