/** The requests to the server: one function each, and the two ways in which they fail. */

const ROOT = new URL("./api/", import.meta.url);
const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };
const TAKEN = 409;
const GONE = 410;

/** The server answered, and said no; the message is its sentence for the user. */
export class ServerError extends Error {
  constructor(status, detail, aside = false) {
    super(detail);
    this.status = status;
    /** Whether the session has ended because all went back, and what was being done in it is set aside. */
    this.aside = aside;
  }

  /** Whether the session has ended, so that the case has to be opened again. */
  get gone() {
    return this.status === GONE;
  }

  /** Whether another window has the case now. */
  get taken() {
    return this.status === TAKEN;
  }
}

/** No answer came. */
export class OfflineError extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

async function refusal(response) {
  try {
    const { detail, aside } = await response.json();
    return new ServerError(response.status, String(detail), Boolean(aside));
  } catch {
    return new ServerError(response.status, `The server refused this (status ${response.status}).`);
  }
}

async function online(work) {
  try {
    return await work();
  } catch (problem) {
    if (problem instanceof RangeError || problem instanceof ServerError) throw problem;
    throw new OfflineError();
  }
}

async function send(path, options = {}) {
  const response = await online(() => fetch(new URL(path, ROOT), { cache: "no-store", ...options }));
  if (!response.ok) throw await refusal(response);
  return response;
}

async function json(path, options) {
  const response = await send(path, options);
  return online(() => response.json());
}

function posted(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

function meta(response) {
  return JSON.parse(response.headers.get("X-Meta"));
}

// The prompts, which stand after the voxels from a byte on; an image has none.
function prompts(buffer, from) {
  return from < buffer.byteLength ? JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, from))) : [];
}

// Read as it arrives into one buffer of the final size: a CT of 300 MB would otherwise be held twice.
async function voxels(response, onShare) {
  const header = meta(response);
  const kind = KINDS[header.dtype];
  if (!kind) throw new ServerError(500, `The image has voxels of a kind that this page cannot show (${header.dtype}).`);
  const count = header.shape.reduce((a, b) => a * b, 1);
  const size = count * kind.BYTES_PER_ELEMENT;
  const bytes = new Uint8Array(size + (header.prompts_bytes ?? 0));
  const reader = response.body.getReader();
  let filled = 0;
  for (;;) {
    const { done, value } = await online(() => reader.read());
    if (done) break;
    bytes.set(value, filled);
    filled += value.length;
    onShare(filled / bytes.length);
  }
  if (filled !== bytes.length) throw new OfflineError();
  return { meta: { ...header, prompts: prompts(bytes.buffer, size) }, data: new kind(bytes.buffer, 0, count) };
}

async function change(path, options) {
  const response = await send(path, options);
  const header = meta(response);
  const body = await online(() => response.arrayBuffer());
  const size = body.byteLength - header.prompts_bytes;
  const kind = KINDS[header.dtype];
  const data = header.box ? new kind(body, 0, size / kind.BYTES_PER_ELEMENT) : null;
  return { meta: { ...header, prompts: prompts(body, size) }, data };
}

const of = (session) => `session=${encodeURIComponent(session)}`;

/** The model's title and classes, and the images there are. */
export const readState = () => json("state");
/** Begin a session for a case: {session}. */
export const open = (name) => json("open", posted({ case: name }));
/** How far reading and segmenting are: {share, waiting, image, ready, error, warnings}. */
export const progress = (session) => json(`progress?${of(session)}`);
/** Tell the server that the page is still there. */
export const heartbeat = (session) => json("heartbeat", posted({ session }));
/** Write the segmentation now: {saved, folder}. */
export const save = (session) => json("save", posted({ session }));
/** How the labelling stands. */
export const annotation = () => json("annotation");
/** All that happened to the dataset, the last first: {history}. */
export const history = () => json("history");
/** Take the case of a session into the dataset; answers how the labelling stands, as the next three do. */
export const accept = (session) => json("accept", posted({ session }));
/** Put the case of a session off. */
export const skip = (session) => json("skip", posted({ session }));
/** Begin a training. */
export const train = () => json("train", posted({}));
/** Make everything as it was after an event. */
export const goBack = (number) => json("back", posted({ number }));
/** End a session. */
export const close = (session) => json("close", posted({ session }));

/** One channel of the image: {meta, data}, data flat with i fastest. onShare is told 0..1 as it arrives. */
export async function readImage(session, channel, onShare = () => {}) {
  return voxels(await send(`image?${of(session)}&channel=${channel}`), onShare);
}

/** The label map: {meta, data}, data flat with i fastest. */
export async function readLabels(session) {
  return voxels(await send(`labels?${of(session)}`), () => {});
}

/** A positive or negative click for a class at voxel [i, j, k]; answers a change {meta, data}. */
export const click = (session, name, at, positive) => change("click", posted({ session, class: name, at, positive }));
/** A stroke for a class over voxels [i, j, k], along which it is or is not; answers a change. */
export const scribble = (session, name, at, positive) =>
  change("scribble", posted({ session, class: name, at, positive }));
/** A box for a class; low and high are voxels [i, j, k] that both belong to it; answers a change. */
export const box = (session, name, low, high) => change("box", posted({ session, class: name, low, high }));
/** "undo", "redo" or "reset"; answers a change. */
export const step = (session, kind) => change(kind, posted({ session }));

/** Painted voxels: box is [[k0, k1], [j0, j1], [i0, i1]] half-open, mask 1 where painted; answers a change. */
export const paint = (session, label, box, mask) =>
  change(`paint?${of(session)}`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream", "X-Meta": JSON.stringify({ label, box }) },
    body: mask,
  });

/** End a session while the page goes away, when no request can be waited for. */
export function closeLast(session) {
  navigator.sendBeacon(new URL("close", ROOT), new Blob([JSON.stringify({ session })], { type: "application/json" }));
}
