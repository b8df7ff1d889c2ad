"""What a server adds to a session: the real client of nnInteractive beside PromptSession, and many clients at once.

    python benchmarks/serving.py --model MODEL_FOLDER --images imagesTs --labels labelsTs --class-name tumour --json OUT
    python benchmarks/serving.py --model MODEL_FOLDER --images imagesTs --labels labelsTs --class-name tumour \\
        --clients 8 --minutes 5 --json OUT

The server is a process of its own. Without --clients every image is segmented and clicked at the same places, in turn
by the client and in this process, and every mask is compared; features are computed ahead in neither. With --clients
that many viewers and browsers ask at once, at random, for the time given; the mask of each answer is compared with that
of a session of its own in this process, and what the page saved with what it shows.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import SimpleITK as sitk
from measuring import as_markdown, begin, finish, make_parser, shown_seconds
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as Client

from sam3dnet.check.measuring import spread
from sam3dnet.interactive.session import PromptSession
from sam3dnet.model import Model, load_model

STEPS = ("set image", "first click", "further click", "undo")
BROWSERS = 4  # of how many clients one is a browser
SEED = 0
PAUSE_S = 0.3  # in which threads of the other process that wait for work give up their core


@contextmanager
def server(arguments: argparse.Namespace, output: Path) -> Iterator[str]:
    """Run sam3d_serve until the end of the block, and give its address."""
    script = "import sys; from sam3dnet.cli.serve import main; sys.exit(main())"
    line = [sys.executable, "-c", script, str(arguments.model), "--port", "0", "--device", arguments.device]
    line += ["--no-mirroring", "--max-sessions", "32"]
    if not arguments.no_folder:
        line += ["--images", str(arguments.images), "--viewer", "-o", str(output)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        address = ""
        for text in process.stdout:
            found = re.search(r"http://[\d.]+:\d+", text)
            if found:
                address = found.group()
            if text.startswith("Ctrl-C"):
                break
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        try:
            yield address
        finally:
            process.terminate()
            process.wait(30)


def compare(arguments: argparse.Namespace, address: str, model: Model) -> list[dict[str, Any]]:
    """Time each step by the client and in this process, in turn; the masks must be the same."""
    seconds: dict[tuple[str, str], list[float]] = {}
    session = model.session()
    files = sorted(arguments.images.glob("*_0000*"))[: arguments.repetitions]
    with Client(f"{address}/{arguments.class_name}") as client:
        for file in files:
            image = sitk.ReadImage(str(file))
            array = sitk.GetArrayFromImage(image)[None]
            spacing = image.GetSpacing()[::-1]
            buffer = np.zeros(array.shape[1:], np.uint8)

            def timed(step: str, by: str, act: Any) -> Any:
                time.sleep(PAUSE_S)
                begun = time.perf_counter()
                result = act()
                seconds.setdefault((step, by), []).append(time.perf_counter() - begun)
                return result

            timed("set image", "client", lambda a=array, s=spacing: client.set_image(a, {"spacing": s}))
            time.sleep(arguments.rest)  # features are computed ahead meanwhile
            timed("set image", "session", lambda a=array[0], s=spacing: session.set_image(a, s))
            client.set_target_buffer(buffer)
            client._predict()
            truth = sitk.GetArrayFromImage(sitk.ReadImage(str(label_of(file, arguments.labels)))) == arguments.label
            while session.look_ahead():
                pass
            mask = session.mask(arguments.class_name)
            for number in range(1 + arguments.further):
                places = np.argwhere(mask != truth)
                if not len(places):
                    break
                place = [int(at) for at in places[len(places) // 2]]
                positive = bool(truth[tuple(place)])
                step = "further click" if number else "first click"
                timed(step, "client", lambda p=place, s=positive: client.add_point_interaction(p, s))
                mask = timed(
                    step, "session", lambda p=place, s=positive: session.click(p[::-1], s, arguments.class_name)
                )
                require_same(buffer, mask, f"{file.name}, click {number}")
            timed("undo", "client", client.undo)
            require_same(buffer, timed("undo", "session", session.undo), f"{file.name}, undo")
    return [
        {"step": step, "by": by, "count": len(seconds[step, by]), **spread(seconds[step, by])}
        for step in STEPS
        for by in ("session", "client")
    ]


def label_of(file: Path, labels: Path) -> Path:
    """Give the label map of an image."""
    return labels / re.sub(r"_0000(?=\.)", "", file.name)


def require_same(came: np.ndarray, expected: np.ndarray, what: str) -> None:
    """See that two masks are the same."""
    if not np.array_equal(came.astype(bool), expected.astype(bool)):
        raise SystemExit(
            f"{what}: the masks differ in {int((came.astype(bool) != expected.astype(bool)).sum())} voxels"
        )


class User(ABC):
    """Somebody who asks at random, and compares each answer with a session of their own.

    Attributes:
        seconds: Of each answer, by what was asked.
        wrong: What was not as it should be.
    """

    def __init__(self, number: int, arguments: argparse.Namespace, address: str, model: Model, turn: threading.Lock):
        self._random = random.Random(SEED + number)
        self._arguments, self._address, self._model, self._turn = arguments, address, model, turn
        self.seconds: dict[str, list[float]] = {}
        self.wrong: list[str] = []

    def work(self, until: float) -> None:
        """Ask until the time is over."""
        try:
            while time.monotonic() < until:
                self._one_image(until)
        except Exception as problem:
            self.wrong.append(f"{type(problem).__name__}: {problem}")

    def _timed(self, what: str, act: Any) -> Any:
        begun = time.perf_counter()
        result = act()
        self.seconds.setdefault(what, []).append(time.perf_counter() - begun)
        return result

    def _expect(self, act: Any) -> Any:
        with self._turn:  # the cores are the server's
            return act()

    def _check(self, came: np.ndarray, expected: np.ndarray, what: str) -> None:
        if not np.array_equal(came, expected):
            self.wrong.append(f"{what}: {int((came != expected).sum())} voxels differ")

    @abstractmethod
    def _one_image(self, until: float) -> None:
        """Open an image, ask about it some times, and leave it."""

    def _file(self) -> Path:
        return self._random.choice(sorted(self._arguments.images.glob("*_0000*"))[:2])

    def _place(self, shape: Sequence[int]) -> list[int]:
        return [self._random.randrange(size) for size in shape]


class ViewerUser(User):
    """Somebody in napari, 3D Slicer or MITK."""

    def _one_image(self, until: float) -> None:
        image = sitk.ReadImage(str(self._file()))
        array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
        name = self._random.choice(self._model.class_names)
        session: PromptSession = self._model.session()
        self._expect(lambda: session.set_image(array, spacing))
        with Client(f"{self._address}/{name}", read_timeout=300.0) as client:
            self._timed("set image", lambda: client.set_image(array[None], {"spacing": spacing}))
            buffer = np.zeros(array.shape, np.uint8)
            client.set_target_buffer(buffer)
            for _ in range(self._random.randrange(3, 9)):
                if time.monotonic() > until:
                    return
                kind = self._random.choice(["click", "click", "click", "box", "undo", "reset"])
                self._ask(kind, client, session, name, array.shape, buffer)
                if kind != "reset":
                    self._check(buffer > 0, self._expect(lambda: session.mask(name)), kind)

    def _ask(self, kind: str, client: Client, session: PromptSession, name: str, shape: Any, buffer: Any) -> None:
        if kind == "click":
            place, positive = self._place(shape), self._random.random() < 0.5
            self._timed("click", lambda: client.add_point_interaction(place, positive))
            self._expect(lambda: session.click(place[::-1], positive, name))
        elif kind == "box":
            low = [max(0, size // 2 - self._random.randrange(1, 8)) for size in shape]
            high = [min(size - 1, one + self._random.randrange(2, 12)) for one, size in zip(low, shape, strict=True)]
            sides = [[one, other + 1] for one, other in zip(low, high, strict=True)]
            self._timed("box", lambda: client.add_bbox_interaction(sides, True))
            self._expect(lambda: session.box(low[::-1], high[::-1], name))
        elif kind == "undo":
            if self._timed("undo", client.undo):
                self._expect(session.undo)
            else:
                client._predict()
        else:
            client.reset_interactions()
            session.reset()
            client._predict()


class BrowserUser(User):
    """Somebody with the page in a browser; each has an image alone, for a case has one window."""

    def __init__(self, *arguments: Any, case: Path, output: Path):
        super().__init__(*arguments)
        self._case, self._output = case, output

    def _one_image(self, until: float) -> None:
        name = re.sub(r"_0000\..*", "", self._case.name)
        with httpx.Client(base_url=f"{self._address}/viewer/api", timeout=300, trust_env=False) as http:
            session = http.post("/open", json={"case": name}).raise_for_status().json()["session"]
            while not http.get("/progress", params={"session": session}).raise_for_status().json()["ready"]:
                time.sleep(0.2)
            labels, shape = _labels(http, session)
            for _ in range(8):
                if time.monotonic() > until:
                    break
                said = {"class": self._random.choice(self._model.class_names), "positive": self._random.random() < 0.5}
                at = self._place(shape)[::-1]
                kind = self._random.choice(["click", "click", "undo", "redo"])
                content = {"session": session, **({"at": at, **said} if kind == "click" else {})}
                response = self._timed(f"page, {kind}", lambda k=kind, c=content: http.post(f"/{k}", json=c))
                meta = json.loads(response.raise_for_status().headers["X-Meta"])
                if meta["box"] is not None:
                    box = tuple(slice(*side) for side in meta["box"])
                    labels[box] = _values(response.content, meta).reshape(labels[box].shape)
                saved = sitk.GetArrayFromImage(sitk.ReadImage(str(self._output / meta["saved"])))
                self._check(saved, labels, f"what the page saved after {kind}")
            http.post("/close", json={"session": session}).raise_for_status()


def _labels(http: httpx.Client, session: str) -> tuple[np.ndarray, list[int]]:
    response = http.get("/labels", params={"session": session}).raise_for_status()
    meta = json.loads(response.headers["X-Meta"])
    return _values(response.content, meta).reshape(meta["shape"]).copy(), meta["shape"]


def _values(content: bytes, meta: dict[str, Any]) -> np.ndarray:
    """Give the labels of an answer, after which its prompts stand."""
    return np.frombuffer(content[: len(content) - meta["prompts_bytes"]], np.dtype(meta["dtype"]))


def crowd(arguments: argparse.Namespace, address: str, model: Model, output: Path) -> list[dict[str, Any]]:
    """Have many users ask at once; give the seconds of their answers, and what was wrong."""
    turn, until = threading.Lock(), time.monotonic() + 60 * arguments.minutes
    cases = sorted(arguments.images.glob("*_0000*"))
    users: list[User] = []
    for number in range(arguments.clients):
        common = (number, arguments, address, model, turn)
        is_browser = number % BROWSERS == BROWSERS - 1
        users.append(
            BrowserUser(*common, case=cases[number // BROWSERS], output=output) if is_browser else ViewerUser(*common)
        )
    threads = [threading.Thread(target=user.work, args=(until,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = []
    for what in sorted({what for user in users for what in user.seconds}):
        seconds = [second for user in users for second in user.seconds.get(what, [])]
        rows.append(
            {
                "step": what,
                "by": f"{arguments.clients} clients",
                "count": len(seconds),
                "p95_s": float(np.quantile(seconds, 0.95)),
                **spread(seconds),
            }
        )
    wrong = [what for user in users for what in user.wrong]
    for what in wrong:
        print("wrong:", what)
    return [*rows, {"step": "wrong answers or lost saves", "by": f"{arguments.clients} clients", "count": len(wrong)}]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the results."""
    lines: list[list[str]] = [["step", "by", "answers", "seconds", "95th percentile", "adds"]]
    session = {row["step"]: row for row in rows if row["by"] == "session"}
    for row in rows:
        beside = session.get(row["step"])
        adds = ""
        if row["by"] == "client" and beside is not None:
            more = row["median_s"] - beside["median_s"]
            adds = f"{1000 * more:.0f} ms, {100 * more / beside['median_s']:.0f} %"
        last = f"{row['p95_s']:.3g}" if "p95_s" in row else ""
        lines.append([row["step"], row["by"], str(row["count"]), shown_seconds(row), last, adds])
    return as_markdown(lines)


def main() -> None:
    """Measure."""
    parser = make_parser(__doc__, repetitions=8)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of their label maps")
    parser.add_argument("--class-name", default="tumour")
    parser.add_argument("--label", type=int, default=2, help="value of the class in the label maps")
    parser.add_argument("--further", type=int, default=5, help="clicks after the first")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds before the first click")
    parser.add_argument("--no-folder", action="store_true", help="the server takes arrays as they come; no page")
    parser.add_argument("--clients", type=int, default=0, help="users at once, of whom every fourth has a browser")
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    begin(arguments)
    os.environ["NO_PROXY"] = "127.0.0.1"
    model = load_model(arguments.model, device=arguments.device, mirror=False)
    with tempfile.TemporaryDirectory() as name, server(arguments, Path(name)) as address:
        several = arguments.clients > 0
        rows = crowd(arguments, address, model, Path(name)) if several else compare(arguments, address, model)
    print(table(rows))
    finish(arguments, "serving", rows)


if __name__ == "__main__":
    main()
