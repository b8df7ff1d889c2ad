/** What is drawn above the image: cross-hair, letters, scale, prompts, boxes, distances, the brush. */

import { between } from "./voxels.js";

const NEIGHBOURS = 2; // slices in which a prompt is still seen, fainter
const FAINT = 0.35;
const THICKNESS = [4, 6]; // CSS pixels of a scribble, about half a voxel
const DOT = 0.01; // CSS pixels; a line without a length is not drawn
const FONT = '600 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif';
const SMALL = '12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif';
const POSITIVE = "#35c759";
const NEGATIVE = "#ff453a";
const NICE_MM = [1, 2, 5, 10, 20, 50, 100, 200];

/** Draw all marks of a plane. `colours` has a CSS colour for each label. */
export function drawMarks(context, view, now, colours) {
  if (now.cross) drawCross(context, view, now.crosshair);
  drawLetters(context, view);
  drawScale(context, view);
  const classes = new Map(now.classes.map((item) => [item.name, colours.get(item.label)]));
  for (const prompt of now.prompts) drawPrompt(context, view, prompt, classes.get(prompt.class), false);
  for (const item of now.pending) drawPrompt(context, view, item, classes.get(item.class), true);
  if (now.draft) drawDraft(context, view, now);
  const here = now.measures.filter((line) => line.view === view.name && line.slice === view.slice);
  for (const line of here) drawDistance(context, view, line);
  drawSketch(context, view, now, colours);
}

function text(context, words, x, y, font, colour, align, baseline) {
  context.font = font;
  context.textAlign = align;
  context.textBaseline = baseline;
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.strokeStyle = "rgb(0 0 0 / .8)";
  context.strokeText(words, x, y);
  context.fillStyle = colour;
  context.fillText(words, x, y);
}

function drawLetters(context, { width, height, plane }) {
  const { left, right, top, bottom } = plane.letters;
  const colour = "#e8d9a0";
  text(context, left, 7, height / 2, FONT, colour, "left", "middle");
  text(context, right, width - 7, height / 2, FONT, colour, "right", "middle");
  text(context, top, width / 2, 6, FONT, colour, "center", "top");
  text(context, bottom, width / 2, height - 5, FONT, colour, "center", "bottom");
}

function drawScale(context, { width, height, scale }) {
  const mm = NICE_MM.findLast((length) => length * scale <= width / 4);
  if (!mm) return;
  const x = 10, y = height - 10, long = mm * scale;
  context.beginPath();
  context.moveTo(x, y - 4);
  context.lineTo(x, y);
  context.lineTo(x + long, y);
  context.lineTo(x + long, y - 4);
  stroke(context, "#c9ced5", 1.2);
  text(context, `${mm} mm`, x + long + 6, y + 3, SMALL, "#c9ced5", "left", "bottom");
}

function stroke(context, colour, width) {
  context.strokeStyle = "rgb(0 0 0 / .55)";
  context.lineWidth = width + 1.6;
  context.stroke();
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke();
}

function drawCross(context, view, crosshair) {
  const [x, y] = view.placeOf(crosshair);
  const gap = 9;
  const lines = [[0, y, x - gap, y], [x + gap, y, view.width, y], [x, 0, x, y - gap], [x, y + gap, x, view.height]];
  context.beginPath();
  for (const [x0, y0, x1, y1] of lines) {
    if (x1 < x0 || y1 < y0) continue;
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.strokeStyle = "rgb(125 180 255 / .6)";
  context.lineWidth = 1;
  context.stroke();
}

// How strongly to draw what spans the slices from..to: 0 is not at all.
function strength(view, from, to) {
  const off = Math.max(from - view.slice, view.slice - to, 0);
  return off === 0 ? 1 : off <= NEIGHBOURS ? FAINT : 0;
}

function drawPrompt(context, view, prompt, colour, waiting) {
  if (prompt.kind === "box") drawBox(context, view, prompt, colour, waiting);
  if (prompt.kind === "click") drawClick(context, view, prompt, waiting);
  if (prompt.kind === "scribble") drawScribble(context, view, prompt, waiting);
}

function drawClick(context, view, { at, positive }, waiting) {
  const depth = at[view.plane.depth];
  const alpha = strength(view, depth, depth);
  if (!alpha) return;
  const [x, y] = view.placeOf(at);
  context.globalAlpha = alpha * (waiting ? 0.6 : 1);
  context.beginPath();
  context.arc(x, y, 6, 0, 2 * Math.PI);
  context.fillStyle = positive ? POSITIVE : NEGATIVE;
  context.fill();
  context.setLineDash(waiting ? [3, 2] : []);
  context.strokeStyle = waiting ? "#fff" : "rgb(0 0 0 / .8)";
  context.lineWidth = 1.2;
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  context.moveTo(x - 3, y);
  context.lineTo(x + 3, y);
  if (positive) context.moveTo(x, y - 3);
  if (positive) context.lineTo(x, y + 3);
  context.strokeStyle = "#fff";
  context.lineWidth = 1.6;
  context.stroke();
  context.globalAlpha = 1;
}

// A stroke without a polarity is one that is being drawn with the keys.
function drawScribble(context, view, { at, positive }, waiting) {
  const [x, y] = view.place(0, 0);
  const [right, bottom] = view.place(1, 1);
  const width = Math.max(THICKNESS[0], Math.min(THICKNESS[1], Math.min(right - x, bottom - y) / 2));
  context.save();
  context.lineCap = context.lineJoin = "round";
  for (const alpha of [FAINT, 1]) {
    context.globalAlpha = alpha * (waiting ? 0.6 : 1);
    trace(context, view, at, alpha);
    stroke(context, positive === undefined ? "#fff" : positive ? POSITIVE : NEGATIVE, width);
  }
  context.restore();
  if (positive !== undefined) drawClick(context, view, { at: at[0], positive }, waiting);
}

// The lines between voxels that touch, and dots for those that are alone, of the slices that are drawn so strongly.
function trace(context, view, places, alpha) {
  const { depth } = view.plane;
  let before = null;
  context.beginPath();
  for (const at of places) {
    const [x, y] = view.placeOf(at);
    const seen = strength(view, at[depth], at[depth]) === alpha;
    const goesOn = before?.every((index, axis) => Math.abs(index - at[axis]) <= 1);
    if (seen && !goesOn) context.moveTo(x, y);
    if (seen) context.lineTo(x + DOT, y);
    before = seen ? at : null;
  }
}

function drawDraft(context, view, { draft, crosshair }) {
  if (draft.kind === "scribble") drawScribble(context, view, draft, false);
  else drawBox(context, view, draft.kind === "corner" ? between(draft.at, crosshair) : draft, "#fff", true);
}

/** The corners in CSS pixels of a box from voxel low to voxel high, both in it: [left, top, right, bottom]. */
function corners(view, low, high) {
  const columns = [view.plane.column(low), view.plane.column(high)];
  const rows = [view.plane.row(low), view.plane.row(high)];
  return [
    ...view.place(Math.min(...columns), Math.min(...rows)),
    ...view.place(Math.max(...columns) + 1, Math.max(...rows) + 1),
  ];
}

function drawBox(context, view, { low, high }, colour, dashed) {
  const alpha = strength(view, low[view.plane.depth], high[view.plane.depth]);
  if (!alpha) return;
  const [x0, y0, x1, y1] = corners(view, low, high);
  context.globalAlpha = alpha;
  context.setLineDash(dashed ? [5, 4] : []);
  context.beginPath();
  context.rect(x0, y0, x1 - x0, y1 - y0);
  stroke(context, colour ?? "#fff", 2);
  context.setLineDash([]);
  context.globalAlpha = 1;
}

function drawDistance(context, view, { from, to, mm }) {
  const [x0, y0] = view.place(...from);
  const [x1, y1] = view.place(...to);
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  stroke(context, "#ffe066", 1.4);
  for (const [x, y] of [[x0, y0], [x1, y1]]) {
    context.beginPath();
    context.arc(x, y, 3, 0, 2 * Math.PI);
    context.fillStyle = "#ffe066";
    context.fill();
  }
  const words = `${mm.toFixed(1)} mm`;
  if (x1 > view.width - 80) text(context, words, x1 - 9, y1, FONT, "#ffe066", "right", "middle");
  else text(context, words, x1 + 9, y1, FONT, "#ffe066", "left", "middle");
}

function drawSketch(context, view, now, colours) {
  const { sketch, pointer } = view;
  if (sketch?.kind === "box") drawBox(context, view, sketch, "#fff", true);
  if (sketch?.kind === "scribble") drawScribble(context, view, sketch, false);
  if (sketch?.kind === "distance") drawDistance(context, view, sketch);
  if (pointer && now.ready && (now.tool === "brush" || now.tool === "eraser")) drawBrush(context, view, now, colours);
}

function drawBrush(context, { pointer, scale }, { brushMm, tool, classes, class: chosen }, colours) {
  const radius = Math.max(1.5, (brushMm / 2) * scale);
  context.beginPath();
  context.arc(pointer[0], pointer[1], radius, 0, 2 * Math.PI);
  stroke(context, tool === "eraser" ? "#fff" : colours.get(classes[chosen]?.label) ?? "#fff", 1.2);
}
