"""The report: one HTML file whose pictures and tables are read back from it."""

import base64
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from commands import write_report
from phantoms import write_volume
from plans import make_plans

from sam3dnet.cli import report as command
from sam3dnet.evaluation.report import telling_cases
from sam3dnet.inference.calibration import Validated
from sam3dnet.inference.postprocessing import Postprocessing, write_postprocessing
from sam3dnet.interactive.planes import PREDICTION_COLOUR, TRUTH_COLOUR, three_planes
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.training.epoch_log import Epoch, append_epoch, in_words, keep_epochs_before, read_log

SHAPE, SPACING_MM = (5, 12, 9), (3.0, 0.7, 1.1)
DATASET = "Dataset908_Report"
LABELS = {"background": 0, "organ <1>": 1, "lesion": 2}
DECISIONS = [
    {"name": "spacing", "value": [2.4, 0.9, 0.8], "reason": "median & 10th percentile", "source": "nnU-Net"},
    {"name": "encoder", "value": "tiny", "reason": "no weights at hand", "source": "sam3dnet"},
]


class Reader(HTMLParser):
    """Collects tables by id (rows of cells), pictures with their captions, and every address outside the file."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[tuple[str, bytes]] = []
        self.outside: list[str] = []
        self.text: list[str] = []
        self._rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self._rows = self.tables.setdefault(str(given["id"]), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True
        elif tag == "img":
            kind, _, data = str(given["src"]).partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.append((str(given["alt"]), base64.b64decode(data, validate=True)))
        self.outside += [str(given[key]) for key in ("href", "src") if key in given and tag != "img"]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._in_cell:
            self._rows[-1][-1] += data


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader


def make_labels(lesion_width: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2:10, 1:8] = 1
    labels[2:4, 4:8, 2 : 2 + lesion_width] = 2
    return labels


def sam3d_plans() -> dict[str, Any]:
    plans = make_plans(DATASET, ["CTNormalization"])
    plans["configurations"]["3d_fullres"] |= {
        "median_image_size_in_voxels": [5, 12, 9],
        "architecture": {
            "network_class_name": "sam3dnet.network.sam3d.SAM3D",
            "arch_kwargs": {
                "strides": [[1, 1, 1], [1, 2, 2]],
                "token_stride": [1, 2, 2],
                "encoder": "tiny",
                "pretrained": False,
            },
            "_kw_requires_import": [],
        },
    }
    return plans | {"sam3d": {"version": 1, "decisions": DECISIONS}}


def make_folders(root: Path) -> Folders:
    """Make a trained fold with four validation cases, whose predicted lesions are 1, 2, 3 and 4 of 4 voxels wide."""
    found = Folders(root / "nnUNet_raw", root / "nnUNet_preprocessed", root / "nnUNet_results")
    raw = found.raw / DATASET
    fold = found.results / DATASET / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres" / "fold_0"
    validation = fold / "validation"
    kept = found.preprocessed / DATASET / "gt_segmentations"
    for folder in (raw / "imagesTr", raw / "labelsTr", kept, validation):
        folder.mkdir(parents=True)
    description = json.dumps({"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"})
    for place in (raw, fold.parent):
        (place / "dataset.json").write_text(description)
    (fold.parent / "plans.json").write_text(json.dumps(sam3d_plans()))
    (fold / "checkpoint_final.pth").touch()
    rng = np.random.default_rng(0)
    for name, width in {"a": 2, "b": 1, "c": 4, "d": 3, "in_training": 0}.items():
        truth = make_labels(4)
        image = (100 * truth + rng.normal(0, 5, SHAPE)).astype(np.int16)
        write_volume(image, raw / "imagesTr" / f"{name}_0000.nii.gz", SPACING_MM)
        for place in (raw / "labelsTr", kept):
            write_volume(truth, place / f"{name}.nii.gz", SPACING_MM)
        if width:
            write_volume(make_labels(width), validation / f"{name}.nii.gz", SPACING_MM)
    splits = [{"train": ["in_training"], "val": ["a", "b", "c", "d"]}]
    (found.preprocessed / DATASET / "splits_final.json").write_text(json.dumps(splits))
    entries = [
        {"epoch": i, "iterations": 5 * i, "seconds": 60.0 * i, "train_loss": -i / 4, "val_loss": -i / 5}
        | {"learning_rate": 0.001, "pseudo_dice": [0.2 * i, 0.1 * i]}
        for i in range(3)
    ]
    (fold / "training_log.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    return found


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_folders(tmp_path_factory.mktemp("report")), dataset="908", num_processes=0)


def test_report_is_one_file_in_the_folder_of_the_fold(report: Path) -> None:
    assert report.name == "report.html"
    assert report.parent.name == "fold_0"
    reader = read(report)
    assert reader.outside == []
    assert "http" not in "".join(reader.text)
    assert "".join(reader.text).count("Dataset908_Report, fold 0") == 2


def test_tables(report: Path) -> None:
    tables = read(report).tables
    assert tables["decisions"] == [
        ["decision", "value", "reason", "source"],
        ["spacing", "2.4 x 0.9 x 0.8", "median & 10th percentile", "nnU-Net"],
        ["encoder", "tiny", "no weights at hand", "sam3dnet"],
    ]
    assert tables["metrics"][0] == ["class", "metric", "mean", "95 % interval", "median", "cases"]
    rows = {(row[0], row[1]): row[2:] for row in tables["metrics"][1:]}
    dice = [2 * width / (width + 4) for width in (1, 2, 3, 4)]
    mean, interval, median, cases = rows[("lesion", "Dice")]
    assert (mean, median, cases) == (f"{np.mean(dice):.3f}", f"{np.median(dice):.3f}", "4")
    assert " to " in interval
    assert rows[("organ <1>", "Dice")][3] == "4"
    assert [row[:2] for row in tables["cases"][1:]] == [[c, k] for c in "abcd" for k in ("organ <1>", "lesion")]


def test_pictures_show_something(report: Path) -> None:
    pictures = read(report).pictures
    captions = [caption for caption, _ in pictures]
    assert captions[0] == "Training curves: 3 epochs, 10 iterations, 2 minutes"
    assert captions[1].startswith("Box plots of every class")
    lesions = [caption.partition(", Dice")[0] for caption in captions if caption.startswith("lesion")]
    assert lesions == ["lesion, worst case: b", "lesion, median case: d", "lesion, best case: c"]
    assert len(pictures) == 2 + 2 * 3
    for _, png in pictures:
        pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
        assert pixels.shape[0] > 200
        assert pixels.shape[1] > 500
        assert len(np.unique(pixels[::4, ::4, 0])) > 10


def has_colour(png: bytes, colour: str) -> bool:
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(pixels - wanted).max(-1) < 0.15).any())


@pytest.mark.parametrize("seen", [("truth",), ("prediction",), ("truth", "prediction"), ()])
def test_truth_and_prediction_are_outlined(seen: tuple[str, ...]) -> None:
    image = np.random.default_rng(0).normal(size=SHAPE)
    truth, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    truth[1:3, 2:6, 0:4] = "truth" in seen
    prediction[1:4, 4:9, 2:6] = "prediction" in seen
    png = three_planes(image, truth, prediction, SPACING_MM)
    assert has_colour(png, TRUTH_COLOUR) == ("truth" in seen)
    assert has_colour(png, PREDICTION_COLOUR) == ("prediction" in seen)


def test_an_unfinished_fold_is_reported_as_far_as_it_is(folders: Folders) -> None:
    fold = next(folders.results.rglob("fold_0"))
    shutil.rmtree(fold / "validation")
    (fold / "training_log.jsonl").unlink()
    reader = read(write_report(folders, output=fold.parent / "here" / "r.html", num_processes=0))
    text = "".join(reader.text)
    assert "There is no training_log.jsonl in this fold" in text
    assert "No case of this fold has been predicted yet" in text
    assert list(reader.tables) == ["decisions"]


def test_fold_all_is_reported_on_the_cases_that_it_has_seen(folders: Folders) -> None:
    fold = next(folders.results.rglob("fold_0"))
    assert "seen in training" not in "".join(read(write_report(folders, num_processes=0)).text)
    fold.rename(fold.with_name("fold_all"))
    reader = read(write_report(folders, fold="all", num_processes=0))
    text = "".join(reader.text)
    assert "these have been seen in training" in text and "has been predicted yet" not in text
    assert {row[0] for row in reader.tables["cases"][1:]} == set("abcd")
    assert "Without result: in_training: no prediction" in text


def test_a_case_that_cannot_be_scored_is_named(folders: Folders) -> None:
    (next(folders.results.rglob("validation")) / "b.nii.gz").unlink()
    text = "".join(read(write_report(folders, num_processes=0)).text)
    assert "Without result: b: no prediction in" in text
    assert "in_training" not in text


def test_scores_are_of_label_maps_before_the_postprocessing_that_is_named(folders: Folders) -> None:
    assert "as the network gives them" not in "".join(read(write_report(folders, num_processes=0)).text)
    model = next(folders.results.rglob("fold_0")).parent
    described = json.loads((model / "dataset.json").read_text())
    write_postprocessing(model, Postprocessing(((1,),)), described, {})
    text = "".join(read(write_report(folders, num_processes=0)).text)
    assert "as the network gives them. sam3d_predict keeps the largest component of" in text


def test_what_confidences_are_worth_is_told_where_it_was_measured(folders: Folders) -> None:
    assert "Confidence" not in "".join(read(write_report(folders, num_processes=0)).text)
    one = {"expected_dice": 0.9, "true_dice": 0.7, "objects": [{"certainty": 0.9, "volume_ml": 1.0, "real": True}]}
    validated = Validated.of_cases({name: {"classes": {"lesion": one}} for name in "abcd"})
    validated.write(next(folders.results.rglob("fold_0")))
    text = "".join(read(write_report(folders, num_processes=0)).text)
    assert "Confidence: the Dice of a class is foretold to 0.0" in text and "(0.200 before calibration)" in text


def test_log_of_an_interrupted_training(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    values = {"iterations": 5, "learning_rate": 1e-3, "train_loss": 1.0, "val_loss": float("nan"), "pseudo_dice": [0.5]}
    for number, seconds in ((0, 1.0), (1, 2.0), (1, 3.0)):
        append_epoch(file, Epoch(epoch=number, seconds=seconds, **values))
    with file.open("a") as log:
        log.write('{"epo')
    assert [entry.seconds for entry in read_log(file)] == [1.0, 3.0]
    keep_epochs_before(1, file)
    (kept,) = read_log(file)
    assert kept.seconds == 1.0
    assert kept.val_loss is None  # JSON knows no NaN
    json.loads(file.read_text(), parse_constant=pytest.fail)
    assert len(file.read_text().splitlines()) == 1


def test_an_epoch_in_words_names_the_classes() -> None:
    scores: dict[str, Any] = {"pseudo_dice": (0.25, None), "prompted_dice": (0.5, 0.75)}
    epoch = Epoch(epoch=3, iterations=750, seconds=9, learning_rate=1e-3, train_loss=-0.5, val_loss=None, **scores)
    assert in_words(epoch, ["liver", "tumour"]) == (
        "epoch 3: 750 iterations, loss -0.5000, validation loss nothing to score, Dice on validation patches liver "
        "0.250, tumour nothing to score; with prompts liver 0.500, tumour 0.750"
    )


def test_few_cases_are_shown_once(folders: Folders) -> None:
    from commands import evaluate_folder

    validation, labels = next(folders.results.rglob("validation")), folders.raw / DATASET / "labelsTr"
    for name in ("b", "c", "d"):
        (validation / f"{name}.nii.gz").unlink()
    one = evaluate_folder(validation, labels, num_processes=0, progress=False)
    assert list(telling_cases(one, "lesion")) == ["worst"]


def test_command_passes_its_options(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"nnUNet_raw": folders.raw, "nnUNet_preprocessed": folders.preprocessed, "nnUNet_results": folders.results}
    assert all(path.parent == tmp_path for path in places.values())
    output = tmp_path / "r.html"
    line = ["-d", "908", "-f", "fold0", "-o", str(output), "--tolerance", "1.5", "--num-processes", "0"]
    assert command.main([*line, "--root", str(tmp_path)]) == 0
    assert f"Report: {output}" in capsys.readouterr().out
    assert "NSD at 1.5 mm (as given)" in output.read_text()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_pictures_and_tables(report: Path, tmp_path: Path) -> None:
    line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    script = "[...document.images].every(i => i.complete && i.naturalWidth > 500)"
    page = tmp_path / "page.html"
    text = report.read_text(encoding="utf-8")
    title = f"'pictures: ' + ({script}) + ' ' + document.images.length"
    check = f"<script>onload = () => {{ document.title = {title} }}</script>"
    page.write_text(text.replace("</body>", f"{check}</body>"), encoding="utf-8")
    run = subprocess.run([*line, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    assert "<title>pictures: true 8</title>" in run.stdout
    assert run.stdout.count("<table") == 3
