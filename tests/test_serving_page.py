"""The page's modules without a browser, run by Node: what becomes of gestures and changes when their image goes."""

import json
import shutil
import subprocess
from importlib import resources

import pytest

NODE = shutil.which("node")
LONGEST_S = 60
PARTS = """
import { makeActions } from "./actions.js";
import { Changes } from "./changes.js";
import { LabelMap } from "./labels.js";
import { Session } from "./session.js";
import { Store } from "./store.js";
import { Tools } from "./tools.js";

globalThis.window = { addEventListener() {} };
globalThis.document = { addEventListener() {}, hidden: false };
globalThis.history = { replaceState() {} };

const later = () => new Promise((resolve) => setTimeout(resolve, 5));
const map = () => new LabelMap({ meta: { shape: [3, 4, 5] }, data: new Uint8Array(60) });
const volume = { spacing: [1, 1, 1], holds: () => true };
const classes = [{ name: "organ", label: 1 }, { name: "lesion", label: 2 }];
const store = new Store({
  case: "a", volume, labels: map(), ready: true, failed: false, pending: [], undo: 0, redo: 0, prompts: [], cases: [],
  classes, class: 1, hidden: new Set(), tool: "brush", brushMm: 1, ball: false, message: null, online: true,
  changed: null, crosshair: [0, 0, 0], active: "axial", warnings: [], volumes: {}, saved: null, progress: null,
});
const { now } = store;

// answers of the server: a function of the last part of the address and what was sent
const asked = [];
let answers = () => null;
let setAside = false;
const events = (count) => Array.from({ length: count }, (_, at) => ({ number: count - at, at: 0, text: "put off" }));
globalThis.fetch = async (url, options) => {
  const name = new URL(url).pathname.split("/").at(-1);
  const at = name === "click" ? JSON.parse(options.body).at : null;
  asked.push(at ? [name, at] : [name]);
  const refused = answers(name);
  if (refused) return new Response(JSON.stringify({ detail: "no", aside: setAside }), { status: refused });
  if (name === "history") return new Response(JSON.stringify({ history: events(70) }));
  const nothing = { box: null, prompts_bytes: 0, dtype: "uint8" };
  const meta = { ...nothing, undo: asked.length, redo: 0, volumes_ml: {}, saved: null };
  return new Response(new Uint8Array(0), { headers: { "X-Meta": JSON.stringify(meta) } });
};
const session = new Session(store);
session.id = "token";
const changes = new Changes(store, session);

const listeners = {};
const plane = { depth: 2, pixel: [1, 1], voxel: (column, row, slice) => [Math.round(column), Math.round(row), slice] };
const view = {
  name: "axial", plane, slice: 1, sketch: null, invalidate() {}, labelsChanged() {}, columnRow: (x, y) => [x, y],
  voxel: (x, y) => [Math.floor(x), Math.floor(y), 1],
  over: {
    dataset: {}, focus() {}, setPointerCapture() {},
    addEventListener: (kind, call) => (listeners[kind] = call),
  },
};
const actions = makeActions({ store, session, changes, views: [view] });
const tools = new Tools(store, actions, changes, [view]);
const mouse = { preventDefault() {}, pointerId: 1, button: 0, pointerType: "mouse" };
const pointer = (kind, x, y, more = {}) => listeners[kind]({ ...mouse, offsetX: x, offsetY: y, ...more });
const open = (name) => {
  view.plane = null;
  store.set({ case: name, volume: null, labels: null, ready: false });
};
const opened = () => {
  store.set({ volume });
  view.plane = plane;
  store.set({ labels: map(), ready: true });
};
const said = {};
"""

pytestmark = pytest.mark.skipif(NODE is None, reason="there is no Node on this machine")


@pytest.fixture
def run(tmp_path):
    """Run a script beside the page's modules; it puts what it finds into `said`."""
    page = resources.files("sam3dnet.serving") / "page"
    for file in page.iterdir():
        if file.name.endswith(".js"):
            (tmp_path / file.name).write_text(file.read_text("utf-8"), "utf-8")
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def run(script):
        end = "\nconsole.log(JSON.stringify(said));\nprocess.exit(0);\n"
        (tmp_path / "script.js").write_text(PARTS + script + end, "utf-8")
        done = subprocess.run([NODE, "script.js"], cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_S)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("tool", ["brush", "scribble"])
def test_what_is_begun_on_one_image_is_not_done_on_the_next(run, tool):
    found = run(f"""
store.set({{ tool: "{tool}" }});
pointer("pointerdown", 1.5, 1.5);
pointer("pointermove", 2.5, 1.5);
open("b");
pointer("pointerup", 3.5, 1.5);
opened();
pointer("pointermove", 3.5, 2.5);
pointer("pointerup", 3.5, 2.5);
await later();
said.before = asked.map(([name]) => name);
said.stroke = changes.stroke;
said.painted = now.labels.data.some(Boolean);
pointer("pointerdown", 1.5, 1.5);
pointer("pointermove", 2.5, 1.5);
pointer("pointerup", 2.5, 1.5);
await changes.idle;
said.after = asked.map(([name]) => name);
""")
    assert found == {
        "before": [],
        "stroke": None,
        "painted": False,
        "after": ["paint" if tool == "brush" else "scribble"],
    }


def test_a_session_that_opens_another_image_meanwhile_has_nothing_to_paint_on(run):
    found = run("""
store.set({ tool: "brush" });
pointer("pointerdown", 1.5, 1.5);
pointer("pointermove", 2.5, 1.5);
view.plane = null;
session.open("b").catch(() => {});
said.shown = [now.case, now.ready, now.labels];
said.stroke = changes.stroke;
pointer("pointerup", 2.5, 1.5);
await later();
said.sent = asked.map(([name]) => name).filter((name) => name === "paint");
""")
    assert found == {"shown": ["b", False, None], "stroke": None, "sent": []}


def test_a_finger_that_was_down_when_the_image_changed_is_no_half_of_a_pinch(run):
    found = run("""
store.set({ tool: "click" });
pointer("pointerdown", 1.5, 1.5, { pointerType: "touch", pointerId: 7 });
open("b");
opened();
pointer("pointerdown", 2.5, 1.5, { pointerType: "touch", pointerId: 8 });
pointer("pointerup", 2.5, 1.5, { pointerType: "touch", pointerId: 8 });
await changes.idle;
said.asked = asked;
""")
    assert found["asked"] == [["click", [2, 1, 1]]]


def test_a_button_let_go_while_no_image_is_shown_ends_what_it_began(run):
    found = run("""
pointer("pointerdown", 1.5, 1.5);
view.plane = null;
pointer("pointerup", 1.5, 1.5);
view.plane = plane;
pointer("pointermove", 3.5, 2.5);
await changes.idle;
said.asked = asked;
said.stroke = changes.stroke;
""")
    assert found == {"asked": [["paint"]], "stroke": None}


def test_a_change_of_another_image_is_left_out_and_told(run):
    found = run("""
store.set({ ready: false });
changes.click("lesion", [1, 1, 1], true);
store.set({ case: "b", ready: true });
await changes.idle;
said.asked = asked;
said.pending = now.pending.length;
said.message = now.message.text;
""")
    assert found["asked"] == [] and found["pending"] == 0
    assert found["message"] == "A change of a was not sent: b is shown now."


def test_what_is_done_while_a_session_is_opened_again_is_seen_and_sent_when_it_is(run):
    found = run("""
store.set({ ready: false });
changes.paint({ label: 2, box: [[1, 2], [1, 2], [2, 4]], mask: new Uint8Array([1, 1]) });
await changes.idle;
said.before = asked.length;
store.set({ labels: map(), ready: true, changed: null });
said.seen = [...now.labels.data].flatMap((label, at) => (label ? [at] : []));
await changes.idle;
said.asked = asked;
said.pending = now.pending.length;
""")
    assert found == {"before": 0, "seen": [27, 28], "asked": [["paint"]], "pending": 0}


def test_nothing_is_saved_before_all_that_was_done(run):
    found = run("""
const online = globalThis.fetch;
globalThis.fetch = async () => { throw new TypeError("no answer"); };
session.recover = async () => "failed";
changes.click("lesion", [1, 1, 1], true);
await changes.idle;
globalThis.fetch = online;
await actions.save();
said.asked = asked;
said.pending = now.pending.length;
said.message = now.message.text;
""")
    assert found["asked"] == [] and found["pending"] == 1
    assert found["message"] == "The last prompts could not be sent, so nothing was saved."


def test_an_image_that_another_window_has_is_opened_again_and_what_was_done_is_sent(run):
    found = run("""
answers = () => 409;
changes.click("lesion", [1, 2, 1], true);
changes.step("undo");
await changes.idle;
said.taken = { ready: now.ready, failed: now.failed, again: now.message.again, asked: asked.map(([name]) => name) };
let chosen = 0;
session.reopen = async () => {
  chosen += 1;
  answers = () => null;
  store.set({ failed: false, labels: map(), ready: true });
};
await actions.openCase("a");
await changes.idle;
said.chosen = chosen;
said.asked = asked;
""")
    assert found["taken"] == {"ready": False, "failed": True, "again": True, "asked": ["click"]}
    assert found["chosen"] == 1 and found["asked"][1] == ["click", [1, 2, 1]]


def test_a_heartbeat_that_is_refused_for_another_window_offers_to_open_the_image_again(run):
    found = run("""
answers = () => 409;
said.outcome = await session.recover();
said.state = [now.ready, now.failed, now.message.again];
let chosen = null;
session.open = async (name) => (chosen = name);
await actions.openCase("a");
said.chosen = chosen;
""")
    assert found == {"outcome": "failed", "state": [False, True, True], "chosen": "a"}


@pytest.mark.parametrize(
    ("aside", "said"),
    [("false", "everything up to there was saved."), ("true", "what was being done on it is set aside, since")],
)
def test_a_session_that_has_ended_says_what_became_of_what_was_done(run, aside, said):
    found = run(f"""
setAside = {aside};
answers = () => 410;
session.reopen = async () => store.set({{ ready: true }});
said.outcome = await session.recover();
said.text = now.message.text;
""")
    assert found["outcome"] == "reopened"
    assert found["text"].startswith(f"The session had ended. The image was opened again; {said}")


FIRST = {"folder": "/models/Dataset1/first", "training": None}
SECOND = {"folder": "/models/0002/model", "training": 2}
LOG = "the training failed; its log, /models/0003/log.txt, ends:\nepoch 1\nOutOfMemoryError: CUDA out of memory.\n"


def outcome(training=3, used=False, failed=False, why="left out: agrees to 0.1"):
    return {"training": training, "used": used, "failed": failed, "why": why}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "first proposes."),
        ({"model": {"folder": None, "training": None}}, "No model proposes yet."),
        ({"model": SECOND, "last": outcome(2, used=True)}, "Model 2 proposes."),
        ({"model": SECOND, "last": outcome()}, "Training 3 was no gain. Model 2 proposes."),
        (
            {"model": SECOND, "last": outcome(failed=True, why=LOG)},
            "Training 3 failed: its log, /models/0003/log.txt, ends: OutOfMemoryError: CUDA out of memory. "
            "Model 2 proposes.",
        ),
        (
            {"last": outcome(1, failed=True, why="left out: b is no longer there")},
            "Training 1 failed: b is no longer there. first proposes.",
        ),
        (
            {"problem": "/models/0003/model cannot be loaded: no memory", "model": SECOND},
            "Not as the history has it: /models/0003/model cannot be loaded: no memory. Model 2 proposes.",
        ),
        ({"since_training": 2}, "first proposes. Next training after 3 more images"),
        ({"training": 4, "last": outcome()}, "Training 4 runs, 3 minutes"),
        ({"ranking": True, "since_training": 2}, "Looking which images are the least sure"),
    ],
)
def test_what_is_said_of_trainings_and_the_model(run, changed, text):
    annotation = {
        "training": None, "minutes": 3, "ranking": False, "last": None, "model": FIRST, "problem": None, "every": 5,
        "since_training": 0,
    } | changed  # fmt: skip
    found = run(f"""
const {{ trainingText }} = await import("./annotation.js");
said.text = trainingText({json.dumps(annotation)});
""")
    assert found["text"] == text


def test_the_history_has_all_events(run):
    found = run("""
const { annotationActions } = await import("./annotation.js");
const dialog = { open: false, showModal() { this.open = true; } };
document.getElementById = () => dialog;
const annotated = annotationActions({ store, session, changes });
const told = (count) => ({ waiting: [], labelled: [], events: count, history: events(count).slice(0, 50) });
annotated.tell(told(70));
said.before = asked.length;
await annotated.history();
said.numbers = now.events.map(({ number }) => number);
dialog.open = false;
store.set({ annotation: null });
annotated.tell(told(3));
await annotated.history();
said.few = now.events.length;
said.asked = asked.map(([name]) => name);
""")
    assert found == {"before": 0, "numbers": [*range(70, 0, -1)], "few": 3, "asked": ["history"]}
