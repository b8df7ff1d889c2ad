/** The keys, and the list of them that the help shows: both from one table. */

import { dialogOpen, fillHelp, showHelp } from "./dialogs.js";

const MOUSE = {
  title: "Mouse",
  rows: [
    ["Left click", "Click tool: this belongs to the class. Other tools: see the line above the planes"],
    ["Left drag", "Scribble tool: the class is along this stroke"],
    ["Right click", "Click tool: this does not belong to it; also Ctrl, Alt or Shift + left click"],
    ["Right drag", "Scribble tool: it is not along this stroke; also Ctrl, Alt or Shift + drag. Brush: erase"],
    ["Right drag", "Cross-hair, window, distance: window and level"],
    ["Shift + right drag", "Window and level with every tool"],
    ["Wheel", "Slices"],
    ["Ctrl + wheel, pinch", "Zoom"],
    ["Middle, Space + drag", "Move the image"],
    ["Double click", "Enlarge a plane (on its title; with cross-hair, window, distance also in the image)"],
  ],
};

// Each row: keys as `pressed` names them, how the help shows them, what they mean, what they do.
function table(actions, tools) {
  const escape = () => {
    if (tools.cancel() || actions.drop()) return;
    actions.clear();
    actions.dismiss();
  };
  const range = (count, make) => Object.fromEntries(Array.from({ length: count }, (_, n) => make(n)));
  return [
    ["Tools", [
      [{ V: () => actions.setTool("navigate") }, "V", "Cross-hair"],
      [{ P: () => actions.setTool("click") }, "P", "Click"],
      [{ I: () => actions.setTool("scribble") }, "I", "Scribble"],
      [{ X: () => actions.setTool("box") }, "X", "Box"],
      [{ B: () => actions.setTool("brush") }, "B", "Brush"],
      [{ E: () => actions.setTool("eraser") }, "E", "Eraser"],
      [{ W: () => actions.setTool("window") }, "W", "Window and level"],
      [{ M: () => actions.setTool("distance") }, "M", "Distance in mm"],
      [{ D: actions.depth }, "D", "Box, brush and eraser in three dimensions"],
      [{ "[": () => actions.size(-1), "]": () => actions.size(1) }, "[ and ]", "Smaller, larger brush"],
      [{ Escape: escape }, "Esc", "Give up a drag, a stroke or a box; clear distances and messages"],
    ]],
    ["Segmentation", [
      [{ Enter: () => actions.sayHere(true) }, "Enter", "Positive click at the cross-hair"],
      [{ "Shift+Enter": () => actions.sayHere(false) }, "Shift+Enter", "Negative click at the cross-hair"],
      [{
        "Shift+ArrowLeft": () => actions.drawOrPan(-1, 0), "Shift+ArrowRight": () => actions.drawOrPan(1, 0),
        "Shift+ArrowUp": () => actions.drawOrPan(0, -1), "Shift+ArrowDown": () => actions.drawOrPan(0, 1),
      }, "Shift+arrows", "Scribble: draw from the cross-hair; then Enter: the class is there, Shift+Enter: it is not"],
      [{}, "Enter, twice", "Box: at one corner, then with the cross-hair at the opposite one, in any plane"],
      [range(9, (n) => [String(n + 1), () => actions.chooseClass(n)]), "1 to 9", "Choose the class"],
      [{ "Ctrl+Z": actions.undo }, "Ctrl+Z", "Undo"],
      [{ "Ctrl+Y": actions.redo, "Ctrl+Shift+Z": actions.redo }, "Ctrl+Y, Ctrl+Shift+Z", "Redo"],
      [{ R: actions.reset }, "R", "Back to the automatic result (asks first)"],
      [{ "Ctrl+Enter": actions.accept }, "Ctrl+Enter", "Labelling: accept, and on to the next image"],
      [{ J: actions.skip }, "J", "Labelling: put the image off"],
      [{ "Ctrl+S": actions.save }, "Ctrl+S", "Save now and show where"],
      [{ N: () => actions.nextCase(1), "Shift+N": () => actions.nextCase(-1) }, "N, Shift+N", "Next, previous image"],
    ]],
    ["Moving", [
      [{
        ArrowLeft: () => actions.move(-1, 0), ArrowRight: () => actions.move(1, 0),
        ArrowUp: () => actions.move(0, -1), ArrowDown: () => actions.move(0, 1),
      }, "Arrows", "Move the cross-hair by a voxel"],
      [{
        PageUp: () => actions.scroll(undefined, -1), PageDown: () => actions.scroll(undefined, 1),
      }, "Page Up, Page Down", "Slices of the active plane"],
      [{ Home: () => actions.end(-1), End: () => actions.end(1) }, "Home, End", "First, last slice"],
      [{}, "Shift+arrows", "Move the view (not with the scribble tool)"],
      [{ "+": () => actions.zoom(1), "=": () => actions.zoom(1), "-": () => actions.zoom(-1) }, "+ and -", "Zoom"],
      [{ 0: actions.fit }, "0", "Fit all planes"],
      [{
        A: () => actions.activate("axial"), C: () => actions.activate("coronal"), S: () => actions.activate("sagittal"),
      }, "A, C, S", "Axial, coronal, sagittal plane: active and large"],
      [{ F: () => actions.enlarge() }, "F", "The active plane alone, or all again"],
      [{ L: actions.layout }, "L", "One large plane, or all equal"],
    ]],
    ["Display", [
      [range(7, (n) => [`Shift+${n + 1}`, () => actions.preset(n)]), "Shift+1 to 7", "Window presets, as listed"],
      [{ T: () => actions.toggle("shown") }, "T", "Show or hide all labels"],
      [{ H: () => actions.toggleClass(actions.chosen()) }, "H", "Show or hide the chosen class"],
      [{ O: () => actions.toggle("outline") }, "O", "Outlines only, or filled"],
      [{ ",": () => actions.opacity(-0.1), ".": () => actions.opacity(0.1) }, ", and .", "Less, more opacity"],
      [{ G: () => actions.toggle("smooth") }, "G", "Smooth grey image"],
      [{ K: () => actions.toggle("cross") }, "K", "Show or hide the cross-hair"],
      [{ "?": showHelp }, "?", "This list"],
    ]],
  ];
}

// The name of what was pressed. Digits go by their place (French keyboards have them shifted), but brackets that are
// typed with a digit's key and AltGr go by what they are.
function pressed(event) {
  const { key, code } = event;
  if ("[]?".includes(key)) return key;
  const ctrl = event.ctrlKey || event.metaKey;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];
  const symbol = key.length === 1 && key.toUpperCase() === key.toLowerCase() && !digit;
  const name = digit ?? (key.length === 1 ? key.toUpperCase() : key);
  return `${ctrl ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}${event.shiftKey && !symbol ? "Shift+" : ""}${name}`;
}

// Keys that the focused control has for itself.
function ownKey(target, key) {
  if (target.matches("input[type=number]")) return key !== "Escape";
  if (target.matches("select")) return !/^(Escape|Ctrl\+.*)$/.test(key);
  if (target.matches("input[type=range]")) return /^(Arrow|Page|Home|End)/.test(key);
  if (target.matches("button")) return /^(Shift\+)?Enter$/.test(key);
  return false;
}

/** Listen to the keys for the whole page, and fill the help. */
export function listenToKeys(actions, tools) {
  const sections = table(actions, tools);
  const calls = new Map(sections.flatMap(([, rows]) => rows.flatMap(([keys]) => Object.entries(keys))));
  const shown = (rows) => rows.map(([, show, meaning]) => [show, meaning]);
  fillHelp([MOUSE, ...sections.map(([title, rows]) => ({ title, rows: shown(rows) }))]);
  const space = (held) => {
    tools.space = held;
    tools.showCursor();
  };
  document.addEventListener("keydown", (event) => {
    if (dialogOpen() || event.isComposing) return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (event.key === " " && !target.matches("button, input, select")) {
      event.preventDefault();
      return space(true);
    }
    const key = pressed(event);
    const call = calls.get(key);
    if (!call || ownKey(target, key)) return;
    event.preventDefault();
    if (!event.repeat || /Arrow|Page|[[\],.+=-]$/.test(key)) call();
  });
  document.addEventListener("keyup", (event) => event.key === " " && space(false));
  window.addEventListener("blur", () => space(false));
}
