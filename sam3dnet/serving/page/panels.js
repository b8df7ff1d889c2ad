/** Everything around the planes: tool bar, lists, display, messages and the status line. */

import { possible } from "./actions.js";
import { buildAnnotation } from "./annotation.js";
import { cssColour } from "./labels.js";
import { fromWidth, widthAndLevel } from "./windows.js";

const part = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const INFO_MS = 9000;
const OFFLINE = "The server does not answer. The page tries again every few seconds; nothing that was made is lost.";
const PROMPTING = new Set(["click", "scribble", "box", "brush", "eraser"]);

const HINTS = {
  navigate: "Click or drag to move the cross-hair",
  click: "Left click: belongs to the class. Right click (or Ctrl, Alt, Shift + click): does not",
  scribble: "Drag along the class. Right drag (or Ctrl, Alt, Shift + drag): where it is not",
  box: "Drag around the object in a slice",
  brush: "Drag to paint, right drag to erase. Hidden classes are kept",
  eraser: "Drag to erase labels. Hidden classes are kept",
  window: "Drag sideways for the width, up for brighter",
  distance: "Drag to measure; Esc clears",
};

const DRAFTS = {
  scribble: "Shift + arrows draw on. Enter: belongs to the class. Shift + Enter: does not. Esc gives it up",
  corner: "Move the cross-hair to the opposite corner, in any plane, and press Enter again. Esc gives it up",
  slice: "Now drag in another plane: from where to where the box reaches. Esc gives it up",
};
const BY_KEY = "Or Enter at two opposite corners";

function create(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function press(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

function number(value) {
  return Number(Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(4)).toString();
}

function byName(item) {
  return item ? item.name : "";
}

function caseItems(now, actions) {
  part("image-count").textContent = now.cases.length ? `(${now.cases.length})` : "";
  part("cases").replaceChildren(...now.cases.map((item) => {
    const button = create("button", "", "");
    button.type = "button";
    button.dataset.case = item.name;
    const mark = item.labelled ? "labelled" : item.begun ? "begun" : "";
    button.title = mark ? `${item.name} (${mark})` : item.name;
    if (item.name === now.case) button.setAttribute("aria-current", "true");
    button.append(create("span", "name", item.name));
    if (mark) button.append(create("span", mark, mark));
    button.addEventListener("click", () => actions.openCase(item.name));
    const row = create("li", "", "");
    row.append(button);
    return row;
  }));
  part("cases").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

function markCase(now) {
  for (const button of all("#cases button")) {
    if (button.dataset.case === now.case) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  part("cases").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

function classItems(now, actions) {
  part("classes").replaceChildren(...now.classes.map((item, index) => {
    const row = part("class-template").content.cloneNode(true);
    const visible = row.querySelector(".visible");
    const choose = row.querySelector(".choose");
    visible.dataset.visible = item.name;
    visible.setAttribute("aria-label", `Show ${item.name}`);
    visible.title = `Show or hide ${item.name} (H for the chosen class)`;
    visible.addEventListener("click", () => actions.toggleClass(index));
    choose.dataset.class = item.name;
    choose.title = index < 9 ? `${item.name} (${index + 1})` : item.name;
    choose.addEventListener("click", () => actions.chooseClass(index));
    row.querySelector(".swatch").style.background = cssColour(index);
    row.querySelector(".name").textContent = item.name;
    const key = row.querySelector("kbd");
    if (index < 9) key.textContent = String(index + 1);
    else key.remove();
    return row;
  }));
}

function classStates(now) {
  all("#classes .choose").forEach((button, index) => press(button, index === now.class));
  all("#classes .visible").forEach((button, index) => press(button, !now.hidden.has(now.classes[index].label)));
  all("#classes .volume").forEach((cell, index) => {
    const ml = now.volumes?.[now.classes[index].name];
    cell.textContent = ml === undefined ? "" : `${ml >= 100 ? ml.toFixed(0) : ml.toFixed(1)} ml`;
  });
}

function progressText({ waiting, share, image, ready, read }, hasVolume) {
  const percent = (part) => `${Math.round(part * 100)} %`;
  if (ready && hasVolume) return "Reading the segmentation";
  if (read !== undefined && !hasVolume) return `Reading the image, ${percent(read)}`;
  if (waiting > 0) return `Waiting, ${waiting} before you`;
  if (!image && !hasVolume && share === 0) return "Opening the image";
  return `Segmenting, ${percent(share)}`;
}

function showProgress(now) {
  const { progress } = now;
  part("progress").hidden = !progress || now.failed;
  if (!progress) return;
  const text = progressText(progress, now.volume !== null);
  if (part("progress-text").textContent !== text) part("progress-text").textContent = text;
  if (progress.waiting > 0) part("progress-bar").removeAttribute("value");
  else part("progress-bar").value = progress.read !== undefined && !now.volume ? progress.read : progress.share;
}

function showSaved(now) {
  const [kind, text] =
    !now.online ? ["error", "The server does not answer. Trying again every few seconds"]
    : now.pending.length > 1 ? ["busy", `Saving... (${now.pending.length} changes)`]
    : now.pending.length ? ["busy", "Saving..."]
    : now.failed ? ["error", "Not open"]
    : !now.ready ? ["", ""]
    : now.saved ? ["saved", `Saved: ${now.saved}`]
    : ["", "Nothing to save yet"];
  const field = part("saved");
  if (field.textContent !== text) field.textContent = text;
  field.dataset.kind = kind;
  field.title = now.output ? `Folder: ${now.output}` : "";
}

function showVoxel(now) {
  const { volume, labels, hover } = now;
  const at = hover ?? (volume ? now.crosshair : null);
  if (!volume || !at) return void (part("voxel").textContent = "");
  const value = volume.at(at);
  const label = labels ? labels.at(at) : 0;
  const name = label ? byName(now.classes.find((item) => item.label === label)) || `label ${label}` : "no label";
  const unit = volume.meta.is_ct ? " HU" : "";
  part("voxel").textContent = `(${at.join(", ")})    ${number(value)}${unit}    ${labels ? name : ""}`;
}

function showNote(now) {
  const notes = [];
  if (now.volume?.meta.oblique) notes.push("oblique: planes along the file's axes");
  if (now.instance) notes.push("only the objects that prompts name are segmented");
  part("note").textContent = notes.join("; ");
  part("note").title = notes.join("; ");
}

function showMessage(now, actions) {
  const { message, online, warnings } = now;
  const warning = warnings.length ? { kind: "warning", text: warnings[0], again: false } : null;
  const shown = online ? message ?? warning : { kind: "error", text: OFFLINE, again: false };
  part("banner").hidden = !shown;
  if (!shown) return;
  part("banner").dataset.kind = shown.kind;
  part("banner-text").textContent = shown.text;
  part("banner-again").hidden = !shown.again;
  part("banner-close").hidden = !online;
  if (shown.kind === "info" && !shown.again) setTimeout(() => now.message === message && actions.dismiss(), INFO_MS);
}

function showOptions(now) {
  const paints = now.tool === "brush" || now.tool === "eraser";
  const deep = now.tool === "box" ? now.deep : now.ball;
  part("size-field").hidden = !paints;
  part("depth").hidden = !paints && now.tool !== "box";
  press(part("depth"), deep);
  part("depth").textContent = now.tool === "box" ? "3D box" : "3D brush";
  part("clear-distances").hidden = now.tool !== "distance";
  part("clear-distances").disabled = !now.measures.length;
  part("brush-size").value = now.brushMm;
  part("brush-size-value").textContent = `${now.brushMm} mm`;
  part("hint").textContent =
    now.draft ? DRAFTS[now.draft.kind]
    : now.tool === "box" && now.deep ? `${HINTS.box}, then drag its depth in another plane. ${BY_KEY}`
    : now.tool === "box" ? `${HINTS.box}. With Shift: a 3D box. ${BY_KEY}`
    : HINTS[now.tool];
  part("hint").title = part("hint").textContent;
}

function showDisplay(now) {
  part("opacity").value = Math.round(now.opacity * 100);
  part("opacity").disabled = now.outline || !now.shown;
  part("opacity-value").textContent = `${Math.round(now.opacity * 100)} %`;
  for (const button of all("[data-toggle]")) press(button, now[button.dataset.toggle]);
  press(part("layout"), now.layout === "equal");
  part("layout").textContent = now.layout === "equal" ? "Equal" : now.layout === "single" ? "Single" : "1 + 2";
}

function showWindow(now) {
  const fields = [part("preset"), part("window-width"), part("window-level")];
  for (const field of fields) field.disabled = !now.volume;
  part("fit").disabled = part("layout").disabled = !now.volume;
  if (!now.volume) return;
  const { width, level } = widthAndLevel(now.window);
  part("window-width").value = number(width);
  part("window-level").value = number(level);
  const same = now.presets.findIndex(({ window }) => window.low === now.window.low && window.high === now.window.high);
  part("preset").value = same;
}

function fillPresets(now) {
  const custom = new Option("Custom", "-1");
  custom.hidden = true;
  part("preset").replaceChildren(...now.presets.map(({ name }, index) => new Option(name, index)), custom);
}

function showChannels(now) {
  const channels = now.volume?.meta.channels ?? [];
  part("channel-field").hidden = channels.length < 2;
  part("channel").replaceChildren(...channels.map((name, index) => new Option(name, index)));
  part("channel").value = now.channel;
}

function showButtons(now) {
  const can = possible(now);
  for (const kind of ["undo", "redo", "reset"]) part(kind).disabled = !can[kind];
  part("save").disabled = !now.ready;
  for (const button of all("[data-tool]")) {
    press(button, button.dataset.tool === now.tool);
    button.disabled = PROMPTING.has(button.dataset.tool) ? !now.ready : !now.volume;
  }
}

// A button or slider that was used with the mouse gives the keys back to the planes.
function giveKeysBack(views, store) {
  const back = () => views.find((view) => view.name === store.now.active).over.focus({ preventScroll: true });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (event.detail > 0 && button && !button.closest("dialog") && !document.querySelector("dialog[open]")) back();
  });
  for (const input of all("input[type=range], select")) {
    let byPointer = false;
    input.addEventListener("pointerdown", () => (byPointer = true));
    input.addEventListener("keydown", () => (byPointer = false));
    input.addEventListener("change", () => byPointer && back());
  }
}

function listen(store, session, actions, views) {
  const onClick = (kind, call) => {
    for (const button of all(`[data-${kind}]`)) button.addEventListener("click", () => call(button.dataset[kind]));
  };
  onClick("tool", actions.setTool);
  onClick("action", (name) => actions[name]());
  onClick("toggle", actions.toggle);
  part("opacity").addEventListener("input", (event) => store.set({ opacity: event.target.value / 100 }));
  part("brush-size").addEventListener("input", (event) => store.set({ brushMm: Number(event.target.value) }));
  part("preset").addEventListener("change", (event) => actions.preset(event.target.value));
  part("channel").addEventListener("change", (event) => session.showChannel(Number(event.target.value)));
  for (const id of ["window-width", "window-level"]) {
    part(id).addEventListener("change", () => {
      const [width, level] = [part("window-width"), part("window-level")].map((field) => field.valueAsNumber);
      if (width > 0 && Number.isFinite(level)) store.set({ window: fromWidth(width, level) });
      else store.touch("window");
    });
  }
  for (const view of views) {
    view.enlarge.addEventListener("click", () => actions.enlarge(view.name));
    view.head.addEventListener("dblclick", (event) => {
      if (!event.target.closest("button, input")) actions.enlarge(view.name);
    });
    view.slider.addEventListener("input", () => actions.toSlice(view.name, Number(view.slider.value)));
  }
}

/** Build and keep up to date all that is around the planes. */
export function buildPanels({ store, session, actions, views }) {
  listen(store, session, actions, views);
  buildAnnotation(store, actions);
  giveKeysBack(views, store);
  store.watch(["title"], (now) => {
    part("model-title").textContent = part("model-title").title = now.title;
    document.title = now.title ? `${now.title} - sam3dnet` : "sam3dnet";
  });
  store.watch(["cases"], (now) => caseItems(now, actions));
  store.watch(["case"], markCase);
  store.watch(["classes"], (now) => classItems(now, actions));
  store.watch(["classes", "class", "hidden", "volumes"], classStates);
  store.watch(["progress", "volume", "failed"], showProgress);
  store.watch(["online", "pending", "ready", "saved", "failed", "output"], showSaved);
  store.watch(["hover", "crosshair", "volume", "labels", "changed"], showVoxel);
  store.watch(["volume", "instance"], showNote);
  store.watch(["message", "online", "warnings"], (now) => showMessage(now, actions));
  store.watch(["tool", "deep", "ball", "brushMm", "draft", "measures"], showOptions);
  store.watch(["opacity", "outline", "shown", "smooth", "cross", "layout"], showDisplay);
  store.watch(["presets"], fillPresets);
  store.watch(["window", "presets", "volume"], showWindow);
  store.watch(["volume", "channel"], showChannels);
  store.watch(["ready", "pending", "undo", "redo", "prompts", "cases", "tool", "volume"], showButtons);
  store.watch(["case", "cases", "title"], (now) => {
    part("empty").hidden = now.case !== null || !now.title;
    part("empty").textContent = now.cases.length ? "Choose an image at the left" : "There are no images in the folder";
  });
}
