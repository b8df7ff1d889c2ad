/** One plane on the screen: a canvas for image and labels below one for the marks, redrawn where something changed. */

import { LabelSlice } from "./labels.js";
import { drawMarks } from "./marks.js";
import { Plane } from "./orientation.js";

const NEAREST_ZOOM = 0.5;
const FARTHEST_ZOOM = 40;
const MARGIN = 0.98; // of the view that a fitted slice fills
const TITLES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" };
const KEYS = { axial: "A", coronal: "C", sagittal: "S" };

const waiting = new Set();

function drawWaiting() {
  const views = [...waiting];
  waiting.clear();
  for (const view of views) view.draw();
}

// A canvas of one pixel for each voxel of a slice, whose ImageData is kept.
class Layer {
  canvas = document.createElement("canvas");
  #context = this.canvas.getContext("2d");

  resize(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.image = new ImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  show() {
    this.#context.putImageData(this.image, 0, 0);
  }
}

/** One of the three planes. Positions on it are CSS pixels from its top left corner, or columns and rows of voxels. */
export class PlaneView {
  #store;
  #tables;
  #grey = new Layer();
  #label = new Layer();
  #labels = new LabelSlice();
  #outlines = new Map();
  #dirty = new Set();
  #shown = -1;
  #zoom = 1;
  #centre = [0, 0];
  #ratio = 1;
  /** What is being dragged, for the marks: null or {kind, ...}. */
  sketch = null;
  /** Where the pointer is, in CSS pixels, or null. */
  pointer = null;
  plane = null;
  width = 0;
  height = 0;

  /**
   * @param {string} name "axial", "coronal" or "sagittal".
   * @param {Store} store
   * @param {{grey: GreyTable, labels: Uint32Array, colours: Map}} tables shared by the planes.
   */
  constructor(name, store, tables) {
    this.name = name;
    this.#store = store;
    this.#tables = tables;
    const part = document.getElementById("plane-template").content.cloneNode(true);
    this.root = part.querySelector(".plane");
    this.head = part.querySelector(".plane-head");
    this.slider = part.querySelector("input");
    this.enlarge = part.querySelector(".enlarge");
    this.over = part.querySelector(".over");
    this.#base = part.querySelector(".base");
    this.#output = part.querySelector("output");
    this.root.dataset.plane = name;
    part.querySelector("h2").textContent = TITLES[name];
    this.slider.setAttribute("aria-label", `${TITLES[name]} slice`);
    this.slider.title = "Slice (mouse wheel, Page Up, Page Down)";
    this.enlarge.setAttribute("aria-label", `Enlarge the ${name} plane`);
    this.enlarge.title = `Enlarge (F), or make it the large one (${KEYS[name]})`;
    this.enlarge.dataset.enlarge = name;
    this.over.setAttribute("aria-label", `${TITLES[name]} plane`);
    this.over.dataset.canvas = name;
    document.getElementById("planes").append(part);
    new ResizeObserver(() => this.#resize()).observe(this.over);
    window.addEventListener("resize", () => window.devicePixelRatio === this.#ratio || this.#resize());
  }

  #base;
  #output;

  /** Take another volume, seen whole; null shows none. `keep` keeps zoom and place (another channel). */
  setVolume(volume, keep) {
    this.plane = volume ? new Plane(this.name, volume.size, volume.spacing, volume.axes) : null;
    this.#shown = -1;
    this.slider.disabled = this.enlarge.disabled = !volume;
    if (volume) {
      this.slider.max = this.plane.slices - 1;
      this.#grey.resize(this.plane.width, this.plane.height);
      this.#label.resize(this.plane.width, this.plane.height);
      if (!keep) this.fit();
    } else {
      this.#output.textContent = "";
    }
    this.invalidate("grey", "labels");
  }

  /** The slice that is shown. */
  get slice() {
    return this.#store.now.crosshair[this.plane.depth];
  }

  /** CSS pixels for a mm. */
  get scale() {
    const { width, height, pixel } = this.plane;
    return MARGIN * this.#zoom * Math.min(this.width / (width * pixel[0]), this.height / (height * pixel[1]));
  }

  /** The place in CSS pixels of a column and row; whole numbers are the edges between voxels. */
  place(column, row) {
    const { pixel } = this.plane;
    const { scale } = this;
    return [
      this.width / 2 + (column * pixel[0] - this.#centre[0]) * scale,
      this.height / 2 + (row * pixel[1] - this.#centre[1]) * scale,
    ];
  }

  /** The column and row, with fractions, at a place in CSS pixels; outside of the slice too. */
  columnRow(x, y) {
    const { pixel } = this.plane;
    const { scale } = this;
    return [
      ((x - this.width / 2) / scale + this.#centre[0]) / pixel[0],
      ((y - this.height / 2) / scale + this.#centre[1]) / pixel[1],
    ];
  }

  /** The voxel [i, j, k] at a place in CSS pixels; null outside, the nearest one if `clamp`. */
  voxel(x, y, clamp = false) {
    let [column, row] = this.columnRow(x, y).map(Math.floor);
    const { width, height } = this.plane;
    if (clamp) {
      column = Math.max(0, Math.min(width - 1, column));
      row = Math.max(0, Math.min(height - 1, row));
    }
    if (column < 0 || row < 0 || column >= width || row >= height) return null;
    return this.plane.voxel(column, row, this.slice);
  }

  /** Where the centre of a voxel [i, j, k] is, in CSS pixels. */
  placeOf(at) {
    return this.place(this.plane.column(at) + 0.5, this.plane.row(at) + 0.5);
  }

  /** Show the whole slice. */
  fit() {
    const { width, height, pixel } = this.plane;
    this.#zoom = 1;
    this.#centre = [(width * pixel[0]) / 2, (height * pixel[1]) / 2];
    this.invalidate("base");
  }

  /** Zoom by a factor about a place in CSS pixels, the middle without one. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.scale;
    this.#zoom = Math.max(NEAREST_ZOOM, Math.min(FARTHEST_ZOOM, this.#zoom * factor));
    const change = 1 / before - 1 / this.scale;
    this.#centre = [this.#centre[0] + (x - this.width / 2) * change, this.#centre[1] + (y - this.height / 2) * change];
    this.#hold();
  }

  /** Move the image by CSS pixels. */
  pan(dx, dy) {
    this.#centre = [this.#centre[0] - dx / this.scale, this.#centre[1] - dy / this.scale];
    this.#hold();
  }

  // The middle of the view stays within the slice, so that it cannot be lost.
  #hold() {
    const { width, height, pixel } = this.plane;
    const ends = [width * pixel[0], height * pixel[1]];
    this.#centre = this.#centre.map((mm, axis) => Math.max(0, Math.min(ends[axis], mm)));
    this.invalidate("base");
  }

  /** Follow the cross-hair: to its slice, and to its place if that is out of sight. */
  follow() {
    if (!this.plane) return;
    if (this.slice !== this.#shown) this.invalidate("grey", "labels");
    const { crosshair } = this.#store.now;
    const [x, y] = this.placeOf(crosshair);
    if (this.width && (x < 0 || y < 0 || x > this.width || y > this.height)) {
      this.pan(this.width / 2 - x, this.height / 2 - y);
    }
    this.invalidate("over");
  }

  /** Draw again with the next frame: "grey", "labels", "base" (place, zoom) or "over" (marks). */
  invalidate(...parts) {
    for (const part of parts) this.#dirty.add(part);
    if (!waiting.size) requestAnimationFrame(drawWaiting);
    waiting.add(this);
  }

  /** Draw labels again if a box [[k0, k1], [j0, j1], [i0, i1]] (null: anything) reaches into the slice. */
  labelsChanged(box) {
    if (!this.plane) return;
    const range = box?.[2 - this.plane.depth];
    if (!range || (this.slice >= range[0] && this.slice < range[1])) this.invalidate("labels");
  }

  #resize() {
    this.#ratio = window.devicePixelRatio || 1;
    this.width = this.over.clientWidth;
    this.height = this.over.clientHeight;
    for (const canvas of [this.#base, this.over]) {
      canvas.width = Math.max(1, Math.round(this.width * this.#ratio));
      canvas.height = Math.max(1, Math.round(this.height * this.#ratio));
    }
    this.#dirty.add("base");
    this.draw(); // before the browser shows the emptied canvases
  }

  /** Draw what is due. */
  draw() {
    if (!this.width || !this.height) return; // hidden: drawn when it is shown
    const dirty = this.#dirty;
    this.#dirty = new Set();
    if (!this.plane) return this.#clear();
    if (dirty.has("grey")) this.#readGrey();
    if (dirty.has("labels")) this.#readLabels();
    if (dirty.has("grey") || dirty.has("labels") || dirty.has("base")) this.#drawBase();
    this.#drawOver();
  }

  #clear() {
    for (const canvas of [this.#base, this.over]) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  }

  #readGrey() {
    this.#shown = this.slice;
    this.#tables.grey.draw(this.#store.now.volume, this.plane, this.slice, this.#grey.pixels);
    this.#grey.show();
    this.slider.value = this.slice;
    this.#output.textContent = `${"ijk"[this.plane.depth]} ${this.slice} / ${this.plane.slices - 1}`;
  }

  #readLabels() {
    const { labels } = this.#store.now;
    this.#outlines = new Map();
    if (!labels) return;
    const had = this.#labels.extent;
    this.#labels.read(labels, this.plane, this.slice);
    if (!had && !this.#labels.extent) return;
    this.#labels.draw(this.#tables.labels, this.#label.pixels);
    this.#label.show();
    this.#outlines = this.#labels.outlines(this.#tables.labels);
  }

  #drawBase() {
    const { now } = this.#store;
    const context = this.#base.getContext("2d", { alpha: false });
    const r = this.#ratio;
    const [x0, y0] = this.place(0, 0);
    const [x1, y1] = this.place(this.plane.width, this.plane.height);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#050506";
    context.fillRect(0, 0, this.#base.width, this.#base.height);
    context.imageSmoothingEnabled = now.smooth;
    context.drawImage(this.#grey.canvas, x0 * r, y0 * r, (x1 - x0) * r, (y1 - y0) * r);
    if (!now.labels || !now.shown || !this.#labels.extent) return;
    if (!now.outline) {
      context.imageSmoothingEnabled = false;
      context.globalAlpha = now.opacity;
      context.drawImage(this.#label.canvas, x0 * r, y0 * r, (x1 - x0) * r, (y1 - y0) * r);
      context.globalAlpha = 1;
    }
    this.#drawOutlines(context, r, x0, y0, (x1 - x0) / this.plane.width, (y1 - y0) / this.plane.height);
  }

  #drawOutlines(context, r, x0, y0, columnWidth, rowHeight) {
    const toPixels = new DOMMatrix([columnWidth * r, 0, 0, rowHeight * r, x0 * r, y0 * r]);
    context.lineWidth = (this.#store.now.outline ? 1.5 : 1) * r;
    context.lineCap = "square";
    for (const [label, path] of this.#outlines) {
      const scaled = new Path2D();
      scaled.addPath(path, toPixels);
      context.strokeStyle = this.#tables.colours.get(label) ?? "#ddd";
      context.stroke(scaled);
    }
  }

  #drawOver() {
    const context = this.over.getContext("2d");
    context.setTransform(this.#ratio, 0, 0, this.#ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    drawMarks(context, this, this.#store.now, this.#tables.colours);
  }
}
