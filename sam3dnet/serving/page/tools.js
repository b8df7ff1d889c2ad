/** What the mouse, a pen or fingers do on a plane. */

import { Stroke } from "./brush.js";
import { Pencil } from "./scribble.js";
import { between } from "./voxels.js";
import { dragged } from "./windows.js";

const STILL = 5; // CSS pixels that a click may move
const WHEEL_ZOOM = 0.0016;
const WHEEL_STEP = 40; // CSS pixels of scrolling for a slice; touch pads send many small steps
const SPREAD = 0.3; // of the radius, between two stamps of the brush

/** Turns pointer events on the planes into what the chosen tool does. */
export class Tools {
  #store;
  #actions;
  #changes;
  #views;
  #gesture = null;
  #fingers = new Map();
  #rolled = 0;
  /** Whether the space bar is held: then dragging moves the image. */
  space = false;

  constructor(store, actions, changes, views) {
    this.#store = store;
    this.#actions = actions;
    this.#changes = changes;
    this.#views = views;
    for (const view of views) this.#listen(view);
    store.watch(["case", "volume"], ({ volume }) => volume || this.drop());
  }

  #listen(view) {
    const { over } = view;
    const on = (kind, call, always = false) =>
      over.addEventListener(kind, (event) => (always || view.plane) && call.call(this, view, event), {
        passive: false,
      });
    on("pointerdown", this.#down);
    on("pointermove", this.#move);
    on("pointerup", this.#up, true); // also while no image is shown: what was begun must end
    on("pointercancel", this.#cancel, true);
    on("pointerleave", this.#leave);
    on("wheel", this.#wheel);
    on("dblclick", this.#double);
    over.addEventListener("contextmenu", (event) => event.preventDefault());
    over.addEventListener("focus", () => this.#store.set({ active: view.name }));
  }

  /** Give up what is being dragged. @returns {boolean} whether there was anything. */
  cancel() {
    const had = this.#gesture !== null;
    this.#gesture?.cancel?.();
    this.#gesture = null;
    return had;
  }

  /** Give up what is being dragged and send nothing of it, since its image is no longer shown. */
  drop() {
    const gesture = this.#gesture;
    this.#gesture = null;
    this.#fingers.clear();
    (gesture?.drop ?? gesture?.cancel)?.();
  }

  #down(view, event) {
    event.preventDefault();
    view.over.focus({ preventScroll: true });
    this.#store.set({ active: view.name });
    view.over.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") this.#fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (this.#fingers.size === 2) return void this.#pinch(view);
    if (!this.#gesture) this.#gesture = this.#begin(view, event);
  }

  #move(view, event) {
    const at = [event.offsetX, event.offsetY];
    view.pointer = event.pointerType === "touch" ? null : at;
    if (this.#fingers.has(event.pointerId)) this.#fingers.set(event.pointerId, at);
    this.#gesture?.move?.(at, event);
    this.#store.set({ hover: view.voxel(...at) });
    const { tool } = this.#store.now;
    if (tool === "brush" || tool === "eraser") view.invalidate("over");
  }

  #up(view, event) {
    this.#fingers.delete(event.pointerId);
    const gesture = this.#gesture;
    this.#gesture = null;
    gesture?.end?.([event.offsetX, event.offsetY], event);
  }

  #cancel(view, event) {
    this.#fingers.delete(event.pointerId);
    this.cancel();
  }

  #leave(view) {
    view.pointer = null;
    this.#store.set({ hover: null });
    view.invalidate("over");
  }

  #wheel(view, event) {
    event.preventDefault();
    this.#store.set({ active: view.name });
    const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
    if (event.ctrlKey || event.metaKey) {
      return void view.zoom(Math.exp(-pixels * WHEEL_ZOOM), event.offsetX, event.offsetY);
    }
    this.#rolled += pixels;
    let slices = Math.trunc(this.#rolled / WHEEL_STEP);
    if (Math.abs(pixels) >= 100) slices = Math.sign(pixels); // a notch of a wheel, however far the system scrolls
    if (slices) this.#rolled = 0;
    if (slices) this.#actions.scroll(view.name, slices);
    this.#store.set({ hover: view.voxel(event.offsetX, event.offsetY) });
  }

  // With the click tool two quick clicks are two prompts, and with the brush two dabs.
  #double(view) {
    if (["navigate", "window", "distance"].includes(this.#store.now.tool)) this.#actions.enlarge(view.name);
  }

  #pinch(view) {
    this.cancel();
    const fingers = () => {
      const [[x0, y0], [x1, y1]] = [...this.#fingers.values()];
      return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, apart: Math.hypot(x1 - x0, y1 - y0) };
    };
    let before = fingers();
    this.#gesture = {
      move: () => {
        if (this.#fingers.size !== 2) return;
        const after = fingers();
        view.pan(after.x - before.x, after.y - before.y);
        view.zoom(after.apart / Math.max(before.apart, 1), after.x, after.y);
        before = after;
      },
    };
  }

  #begin(view, event) {
    const { button } = event;
    const start = [event.offsetX, event.offsetY];
    const { tool } = this.#store.now;
    if (button === 1 || (button === 0 && this.space)) return this.#pan(view, start);
    const modified = event.shiftKey || event.altKey;
    const plain = !modified && !event.ctrlKey && !event.metaKey;
    const free = ["navigate", "window", "distance"].includes(tool);
    if (button === 2 && (free || modified)) return this.#window(start);
    if (button === 0 && tool === "window") return this.#window(start);
    if (button === 0 && tool === "navigate") return this.#navigate(view, start);
    if (button === 0 && tool === "distance") return this.#distance(view, start);
    if (free || button > 2 || !this.#actions.mayPrompt()) return null;
    if (tool === "click") return this.#click(view, start, button === 0 && plain);
    if (tool === "scribble") return this.#scribble(view, start, button === 0 && plain);
    if (tool === "box" && button === 0) return this.#box(view, start, event.shiftKey);
    if (tool === "brush" && button === 0) return this.#paint(view, start, false);
    if (tool === "brush" && button === 2) return this.#paint(view, start, true);
    if (tool === "eraser" && button === 0) return this.#paint(view, start, true);
    return null;
  }

  #pan(view, start) {
    let last = start;
    view.over.dataset.cursor = "grab";
    const done = () => this.showCursor();
    return {
      move: (at) => {
        view.pan(at[0] - last[0], at[1] - last[1]);
        last = at;
      },
      end: done,
      cancel: done,
    };
  }

  #window(start) {
    const { window } = this.#store.now;
    return { move: (at) => this.#store.set({ window: dragged(window, at[0] - start[0], at[1] - start[1]) }) };
  }

  #navigate(view, start) {
    const move = (at) => this.#actions.goTo(view.voxel(...at, true));
    move(start);
    return { move };
  }

  #click(view, start, positive) {
    return {
      end: (at) => {
        if (Math.hypot(at[0] - start[0], at[1] - start[1]) > STILL) return;
        const voxel = view.voxel(...start);
        if (voxel) this.#actions.click(voxel, positive);
      },
    };
  }

  #scribble(view, start, positive) {
    const pencil = new Pencil(view.plane, view.slice);
    const clear = () => {
      view.sketch = null;
      view.invalidate("over");
    };
    const move = (at) => {
      pencil.to(view.columnRow(...at));
      view.sketch = { kind: "scribble", at: pencil.places, positive };
      view.invalidate("over");
    };
    move(start);
    const end = (at) => {
      move(at);
      clear();
      this.#actions.scribble(pencil.places, positive);
    };
    return { move, end, cancel: clear };
  }

  #box(view, start, deep) {
    const from = view.voxel(...start, true);
    const spans = (at) => between(from, view.voxel(...at, true));
    const clear = () => {
      view.sketch = null;
      view.invalidate("over");
    };
    return {
      move: (at) => {
        view.sketch = { kind: "box", ...spans(at) };
        view.invalidate("over");
      },
      end: (at) => {
        clear();
        if (Math.hypot(at[0] - start[0], at[1] - start[1]) > STILL) this.#actions.box(view, spans(at), deep);
      },
      cancel: clear,
    };
  }

  #distance(view, start) {
    const from = view.columnRow(...start);
    const { slice, plane, name } = view;
    const line = (at) => {
      const to = view.columnRow(...at);
      const mm = Math.hypot((to[0] - from[0]) * plane.pixel[0], (to[1] - from[1]) * plane.pixel[1]);
      return { kind: "distance", view: name, slice, from, to, mm };
    };
    const clear = () => {
      view.sketch = null;
      view.invalidate("over");
    };
    return {
      move: (at) => {
        view.sketch = line(at);
        view.invalidate("over");
      },
      end: (at) => {
        clear();
        const still = Math.hypot(at[0] - start[0], at[1] - start[1]) <= STILL;
        if (!still) this.#store.set({ measures: [...this.#store.now.measures, line(at)] });
      },
      cancel: clear,
    };
  }

  #paint(view, start, erases) {
    const { now } = this.#store;
    const { plane } = view;
    const spacing = now.volume.spacing;
    const chosen = now.classes[now.class];
    if (!erases) this.#actions.unhide(chosen.label);
    const stroke = new Stroke(now.labels, erases ? 0 : chosen.label, new Set(now.hidden));
    const radii = spacing.map((mm, axis) => (axis === plane.depth && !now.ball ? 0 : now.brushMm / 2 / mm));
    const { slice } = view;
    this.#changes.stroke = stroke;
    let last = null;
    const stamp = (column, row) => {
      const centre = plane.voxel(column - 0.5, row - 0.5, slice);
      const box = stroke.stamp(centre, radii);
      if (box) for (const each of this.#views) each.labelsChanged(box);
    };
    const move = (at) => {
      const next = view.columnRow(...at);
      const steps = last ? Math.ceil(this.#stamps(plane, last, next, now.brushMm)) : 1;
      for (let n = 1; n <= steps; n++) {
        const share = n / steps;
        stamp(...(last ? last.map((from, axis) => from + (next[axis] - from) * share) : next));
      }
      last = next;
    };
    const end = () => {
      this.#changes.stroke = null;
      const painted = stroke.finish();
      if (painted) this.#changes.paint(painted);
    };
    const drop = () => {
      this.#changes.stroke = null;
    };
    move(start);
    return { move, end, cancel: end, drop }; // what is painted is seen already, so that cancelling keeps it
  }

  #stamps(plane, from, to, brushMm) {
    const mm = Math.hypot((to[0] - from[0]) * plane.pixel[0], (to[1] - from[1]) * plane.pixel[1]);
    return mm / Math.max((brushMm / 2) * SPREAD, Math.min(...plane.pixel));
  }

  /** Fit the pointer's shape to the tool. */
  showCursor() {
    const { tool, ready } = this.#store.now;
    const shape = this.space ? "grab" : ready && (tool === "brush" || tool === "eraser") ? "none" : "";
    for (const view of this.#views) view.over.dataset.cursor = shape;
  }
}
