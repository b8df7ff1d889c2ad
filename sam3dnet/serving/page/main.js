/** Puts the page together. */

import { makeActions } from "./actions.js";
import { annotationActions } from "./annotation.js";
import * as api from "./api.js";
import { Changes } from "./changes.js";
import { listenToKeys } from "./keys.js";
import { colour, cssColour } from "./labels.js";
import { PLANE_NAMES } from "./orientation.js";
import { buildPanels } from "./panels.js";
import { PlaneView } from "./plane_view.js";
import { Session } from "./session.js";
import { Store } from "./store.js";
import { Tools } from "./tools.js";
import { GreyTable } from "./volume.js";
import { presetsOf } from "./windows.js";

const LABELS = 65536;

const store = new Store({
  // the server's
  title: "", classes: [], cases: [], output: "", instance: false,
  // the case's
  case: null, volume: null, channel: 0, labels: null, ready: false, failed: false, progress: null, changed: null,
  prompts: [], pending: [], undo: 0, redo: 0, volumes: {}, saved: null, online: true, message: null,
  warnings: [], annotation: null, events: [], deciding: false,
  // the user's; crosshair is a voxel [i, j, k]
  crosshair: [0, 0, 0], hover: null, class: 0, hidden: new Set(), tool: "click", brushMm: 10, ball: false, deep: false,
  draft: null, measures: [], window: { low: 0, high: 1 }, presets: [], opacity: 0.35, outline: false, shown: true,
  smooth: true, cross: true, layout: "large", before: "large", large: "axial", active: "axial",
});
const { now } = store;
const tables = { grey: new GreyTable(), labels: new Uint32Array(LABELS), colours: new Map() };
const views = PLANE_NAMES.map((name) => new PlaneView(name, store, tables));
const session = new Session(store);
const changes = new Changes(store, session);
const actions = { ...makeActions({ store, session, changes, views }), chosen: () => now.class };
const labelling = Object.assign(annotationActions({ store, session, changes }), { openCase: actions.openCase });
Object.assign(actions, labelling);
const tools = new Tools(store, actions, changes, views);

function each(...parts) {
  for (const view of views) view.invalidate(...parts);
}

// Labels that the server's list of classes lacks are shown too, in grey: an unseen label would be a wrong one.
function colourLabels() {
  tables.labels.fill(0xffc8c8c8);
  tables.labels[0] = 0;
  tables.colours.clear();
  now.classes.forEach(({ label }, index) => {
    const [red, green, blue] = colour(index);
    tables.labels[label] = now.hidden.has(label) ? 0 : (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
    tables.colours.set(label, cssColour(index));
  });
}

let shownCase = null;

function showVolume() {
  const { volume } = now;
  const keep = volume !== null && shownCase === now.case;
  if (volume) {
    shownCase = now.case;
    const { low, high } = { low: volume.meta.window[0], high: volume.meta.window[1] };
    const own = { name: "Image's own", window: { low, high } };
    const presets = presetsOf(volume);
    const known = presets.find(({ window }) => window.low === low && window.high === high);
    store.set({ presets: known ? presets : [...presets, own], window: (known ?? own).window });
    tables.grey.update(volume, now.window);
    if (!keep) now.crosshair = volume.size.map((count) => count >> 1);
  } else {
    shownCase = null;
  }
  for (const view of views) view.setVolume(volume, keep);
  store.touch("crosshair");
}

function arrange() {
  document.getElementById("planes").dataset.layout = now.layout;
  for (const view of views) {
    view.root.dataset.large = String(view.name === now.large);
    view.root.dataset.active = String(view.name === now.active);
  }
}

function watch() {
  store.watch(["classes", "hidden"], () => {
    colourLabels();
    each("labels");
  });
  store.watch(["volume"], showVolume);
  store.watch(["window"], () => {
    if (!now.volume) return;
    tables.grey.update(now.volume, now.window);
    each("grey");
  });
  store.watch(["crosshair"], () => views.forEach((view) => view.follow()));
  store.watch(["labels"], () => each("labels"));
  store.watch(["changed"], () => views.forEach((view) => view.labelsChanged(now.changed)));
  store.watch(["opacity", "outline", "shown", "smooth"], () => each("base"));
  store.watch(["prompts", "pending", "measures", "draft", "cross"], () => each("over"));
  store.watch(["tool", "ready", "brushMm", "class"], () => each("over"));
  store.watch(["tool", "ready"], () => tools.showCursor());
  store.watch(["layout", "large", "active"], arrange);
}

// The address names the image, so that the page can be reloaded; without one, the first image nobody has begun.
function firstCase() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const item =
    now.cases.find(({ name }) => name === wanted) ?? (now.annotation ? now.cases[0] : null) ??
    now.cases.find(({ begun }) => !begun) ?? now.cases[0];
  return item?.name;
}

async function begin() {
  try {
    const { title, classes, cases, output, instance, annotation } = await session.patiently(api.readState);
    store.set({ title, classes, cases, output, instance });
    if (annotation) labelling.tell(annotation);
    const name = firstCase();
    if (name) await actions.openCase(name);
  } catch (problem) {
    session.say("error", problem.message);
  }
}

watch();
buildPanels({ store, session, actions, views });
listenToKeys(actions, tools);
window.addEventListener("beforeunload", (event) => now.pending.length && event.preventDefault());
const begun = begin();

/** For tests: what is shown, and where. */
window.sam3d = {
  /** Resolves when the image that is being opened is segmented and shown. */
  get ready() {
    return begun.then(() => session.opened);
  },
  state: () => ({
    session: session.id, case: now.case, class: now.classes[now.class]?.name ?? null, tool: now.tool,
    crosshair: [...now.crosshair], undo: now.undo, redo: now.redo, saved: now.saved,
    busy: now.pending.length > 0 || !now.ready, pending: now.pending.length, ready: now.ready,
    prompts: now.prompts, online: now.online, message: now.message?.text ?? null, window: { ...now.window },
    warnings: now.warnings, draft: now.draft, annotation: now.annotation, deciding: now.deciding,
  }),
  labelAt: (i, j, k) => now.labels?.at([i, j, k]) ?? null,
  goTo: (i, j, k) => actions.goTo([i, j, k]),
  /** The letters at the edges of a plane: {left, right, top, bottom}. */
  letters: (name) => ({ ...views.find((each) => each.name === name).plane?.letters }),
  /** Page coordinates in CSS pixels of the centre of a voxel on a plane's canvas (whatever slice it shows). */
  planePoint(name, i, j, k) {
    const view = views.find((each) => each.name === name);
    const { left, top } = view.over.getBoundingClientRect();
    const [x, y] = view.placeOf([i, j, k]);
    return { x: left + window.scrollX + x, y: top + window.scrollY + y };
  },
};
