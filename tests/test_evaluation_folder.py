"""Folders of label maps: what is scored, what is named as failed, and what the files say."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from commands import compare_folders, evaluate_folder
from faults import truncate
from phantoms import write_volume
from scipy import ndimage

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation.compare import format_comparison, write_comparison
from sam3dnet.evaluation.detection import Detections, Object, detect, summarise
from sam3dnet.evaluation.folder import Evaluation
from sam3dnet.evaluation.metrics import METRICS
from sam3dnet.evaluation.results import format_evaluation, write_results

SHAPE = (5, 6, 7)
LABELS: dict[str, Any] = {"background": 0, "organ": 1, "lesion": 2}


def write_description(folder: Path, labels: dict[str, Any], **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def write_labels(folder: Path, **cases: dict[Any, int]) -> Path:
    """Write label maps; each says which value which box (z, y, x) has."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in cases.items():
        labels = np.zeros(SHAPE, dtype=np.uint8)
        for box, value in boxes.items():
            labels[tuple(slice(*part) if isinstance(part, tuple) else part for part in box)] = value
        write_volume(labels, folder / f"{name}.nii.gz")
    return folder


ORGAN, LESION, SECOND_LESION = ((1, 4), (1, 5), (1, 6)), (2, (2, 4), (2, 4)), (3, 4, 5)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with the truth of three cases, the last without lesion."""
    folder = tmp_path / "Dataset007_Demo"
    write_description(folder, LABELS)
    lesions = {ORGAN: 1, LESION: 2, SECOND_LESION: 2}
    write_labels(folder / "labelsTs", a=lesions, b={ORGAN: 1, LESION: 2}, c={ORGAN: 1})
    return folder


def evaluate(dataset: Path, predictions: Path, **options: Any) -> Evaluation:
    return evaluate_folder(predictions, dataset / "labelsTs", **{"num_processes": 0, "progress": False, **options})


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Case a misses a lesion, b is perfect, c has nothing at all."""
    return write_labels(tmp_path / "preds", a={ORGAN: 1, LESION: 2}, b={ORGAN: 1, LESION: 2}, c={})


def test_every_case_and_class_is_scored(dataset: Path, predictions: Path) -> None:
    evaluation = evaluate(dataset, predictions)
    assert list(evaluation.cases) == ["a", "b", "c"]
    assert evaluation.values("lesion", "dice") == pytest.approx([8 / 9, 1, 1])
    assert evaluation.values("organ", "dice") == pytest.approx([110 / 111, 1, 0])
    lesions = evaluation.estimates()["lesion"]
    assert (lesions["lesion_recall"].mean, lesions["lesion_recall"].count) == (pytest.approx(2 / 3), 2)
    assert lesions["lesion_precision"].mean == 1
    assert lesions["dice"].count == 3
    assert evaluation.empty_counts("lesion") == {"truth": 0, "prediction": 0, "both": 1}
    assert evaluation.empty_counts("organ") == {"truth": 0, "prediction": 1, "both": 0}
    assert (evaluation.failed, evaluation.surplus) == ({}, [])


@pytest.mark.parametrize("missing_as_empty", [False, True])
def test_what_is_no_file_is_named_for_what_it_is(dataset: Path, predictions: Path, missing_as_empty: bool) -> None:
    link, folder = dataset / "labelsTs" / "d.nii.gz", predictions / "c.nii.gz"
    link.symlink_to("nowhere")
    folder.unlink()
    folder.mkdir()
    evaluation = evaluate(dataset, predictions, missing_as_empty=missing_as_empty)
    assert list(evaluation.cases) == ["a", "b"]
    assert evaluation.failed == {
        "c": f"{folder}: is a folder; expected a label map",
        "d": f"{link}: is a link to nowhere, where there is no file; expected a label map",
    }


def test_processes_give_the_same(dataset: Path, predictions: Path) -> None:
    here = evaluate(dataset, predictions).estimates()
    assert evaluate(dataset, predictions, num_processes=1).estimates() == here


def test_text_tells_what_is_empty_and_how_surfaces_were_measured(dataset: Path, predictions: Path) -> None:
    write_labels(predictions, d={})
    text = format_evaluation(evaluate(dataset, predictions, tolerance=1.25))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "lesion Dice 0.963 0.889 to 1.000 1.000 3" in lines
    assert "lesion lesion recall 0.667 0.500 to 1.000 0.750 2" in lines
    assert any("NSD at 1.25 mm (as given). MONAI " in line and "use_subvoxels=True" in line for line in lines)
    assert "organ: empty in only the prediction: 1 (of 3 cases, all of them counted)" in lines
    assert "lesion: empty in both: 1 (of 3 cases, all of them counted)" in lines
    assert "Without truth, left out: d" in lines


def test_json_and_csv(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    evaluation = evaluate(dataset, predictions)
    json_file, csv_file = write_results(evaluation, tmp_path / "results")
    content = json.loads(json_file.read_text())
    assert content["summary"]["lesion"]["dice"]["mean"] == pytest.approx(26 / 27)
    assert content["summary"]["organ"]["empty"] == {"truth": 0, "prediction": 1, "both": 0}
    assert content["settings"]["tolerance_mm"] == 2.0
    with csv_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["class"]) for row in rows] == [(c, k) for c in "abc" for k in ("organ", "lesion")]
    assert float(rows[1]["dice"]) == pytest.approx(8 / 9)
    assert (rows[5]["lesion_recall"], rows[5]["empty"], rows[5]["dice"]) == ("", "both", "1.0")
    assert {metric.key for metric in METRICS} <= rows[0].keys()


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        (LABELS, {}),
        ({"background": 0, "organ": [1, 2], "lesion": 2}, {"regions_class_order": [1, 2]}),
        ({"background": 0, "organ": 1, "lesion": 2, "ignore": 3}, {}),
    ],
    ids=["labels", "regions", "ignore"],
)
def test_nnunet_reads_its_own_figures(labels: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> None:
    """Fields and values of nnU-Net's summary.json, for labels, regions and with an ignore label."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    dataset = tmp_path / "Dataset007_Demo"
    write_description(dataset, labels, **more)
    ignored = {(4, (0, 6), (0, 7)): 3} if "ignore" in labels else {}
    write_labels(dataset / "labelsTs", a={ORGAN: 1, LESION: 2, **ignored}, b={ORGAN: 1}, c={ORGAN: 1, LESION: 2})
    moved = ((2, 5), (1, 5), (1, 6))
    predictions = write_labels(tmp_path / "preds", a={moved: 1, LESION: 2}, b={ORGAN: 1}, c={ORGAN: 1})
    written, _ = write_results(evaluate(dataset, predictions), tmp_path / "results")
    summary = load_summary_json(str(written))
    keys: list[Any] = [(1, 2), 2] if "regions_class_order" in more else [1, 2]
    expected = [
        compute_metrics(
            str(dataset / "labelsTs" / f"{case}.nii.gz"),
            str(predictions / f"{case}.nii.gz"),
            SimpleITKIO(),
            keys,
            labels.get("ignore"),
        )
        for case in "abc"
    ]
    for ours, theirs in zip(summary["metric_per_case"], expected, strict=True):
        assert ours["reference_file"] == theirs["reference_file"]
        assert ours["prediction_file"] == theirs["prediction_file"]
        for key in keys:
            assert ours["metrics"][key] == pytest.approx(theirs["metrics"][key], nan_ok=True)
    for key in keys:
        for name, mean in summary["mean"][key].items():
            assert mean == pytest.approx(np.nanmean([case["metrics"][key][name] for case in expected]))
    dices = [summary["mean"][key]["Dice"] for key in keys]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(dices))


def test_regions_are_the_union_of_their_labels(dataset: Path, predictions: Path) -> None:
    write_description(predictions, {"background": 0, "all": [1, 2], "lesion": 2}, regions_class_order=[1, 2])
    evaluation = evaluate(dataset, predictions)
    assert evaluation.values("all", "dice") == pytest.approx([1 - 1 / 121, 1, 0], abs=0.01)
    assert evaluation.scoring.label_keys == {"all": "(1, 2)", "lesion": "2"}


def test_ignored_voxels_are_left_out(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    labels = {**LABELS, "ignore": 7}
    write_description(dataset, labels)
    write_labels(dataset / "labelsTs", a={ORGAN: 1, LESION: 2, SECOND_LESION: 7})
    write_labels(predictions, a={ORGAN: 1, LESION: 2, SECOND_LESION: 2})
    score = evaluate(dataset, predictions).cases["a"].scores["lesion"]
    assert (score.dice, score.nsd, score.lesions_predicted) == (1, 1, 1)
    assert score.true_negative == math.prod(SHAPE) - 4 - 1


def test_missing_predictions_are_named_or_counted_as_empty(dataset: Path, predictions: Path) -> None:
    (predictions / "b.nii.gz").unlink()
    evaluation = evaluate(dataset, predictions)
    assert list(evaluation.cases) == ["a", "c"]
    assert list(evaluation.failed) == ["b"]
    assert "--missing-as-empty" in evaluation.failed["b"]
    counted = evaluate(dataset, predictions, missing_as_empty=True)
    assert counted.failed == {}
    assert counted.values("lesion", "dice") == pytest.approx([8 / 9, 0, 1])


def test_what_cannot_be_scored_costs_its_case_alone(dataset: Path, predictions: Path) -> None:
    write_volume(np.zeros((5, 6, 8), np.uint8), predictions / "a.nii.gz")
    write_volume(np.zeros(SHAPE, np.uint8), predictions / "b.nii.gz", spacing_mm=(3.0, 0.8, 1.1))
    write_labels(dataset / "labelsTs", d={ORGAN: 1}, e={ORGAN: 1})
    write_volume(np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8), predictions / "d.nii.gz")
    truncate(predictions / "d.nii.gz", 0.8)
    write_volume(np.full(SHAPE, 0.5, np.float32), predictions / "e.nii.gz")
    evaluation = evaluate(dataset, predictions)
    assert list(evaluation.cases) == ["c"]
    assert list(evaluation.failed) == ["a", "b", "d", "e"]
    assert "shape" in evaluation.failed["a"]
    assert "(5, 6, 8)" in evaluation.failed["a"]
    assert "spacing" in evaluation.failed["b"]
    assert "d.nii.gz" in evaluation.failed["d"]
    assert "fractions" in evaluation.failed["e"]


def test_values_that_are_no_class_are_told(dataset: Path, predictions: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_labels(predictions, a={ORGAN: 1, LESION: 9})
    evaluate(dataset, predictions)
    assert "a: the prediction holds 9, which dataset.json does not name" in caplog.text


def test_labels_stored_as_floats_are_read(dataset: Path, predictions: Path) -> None:
    labels = np.zeros(SHAPE, np.float32)
    labels[1:4, 1:5, 1:6] = 1
    write_volume(labels, predictions / "c.nii.gz")
    assert evaluate(dataset, predictions).cases["c"].scores["organ"].dice == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": -1.0}, "tolerance -1.0 mm: expected"),
        ({"tolerance": math.nan}, "tolerance nan mm: expected"),
        ({"lesion_iou": 1.5}, "lesion IoU 1.5: expected a share"),
        ({"dataset_json": Path("nowhere.json")}, "there is no nowhere.json; give the file with --dataset-json"),
    ],
)
def test_options_out_of_range(dataset: Path, predictions: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        evaluate(dataset, predictions, **change)


def test_folders_without_truth_prediction_or_description(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    empty = tmp_path / "other" / "labels"
    empty.mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no such folder; expected the folder of the predictions"):
        evaluate(dataset, tmp_path / "nothing")
    with pytest.raises(DatasetError, match="the classes are not known"):
        evaluate_folder(predictions, empty, progress=False)
    write_description(empty.parent, LABELS)
    with pytest.raises(DatasetError, match=r"holds no file ending in \.nii\.gz"):
        evaluate_folder(predictions, empty, progress=False)
    with pytest.raises(DatasetError, match="none of 3 cases can be evaluated: a: no prediction"):
        evaluate(dataset, empty)


@pytest.mark.parametrize(
    ("folder", "mm", "source"),
    [("Dataset007_Demo", 2.0, "default"), ("Dataset039_KiTS19", 5.0, "Gong et al. 2024")],
)
def test_tolerance_of_the_task(folder: str, mm: float, source: str, tmp_path: Path) -> None:
    write_description(tmp_path / folder, LABELS)
    labels = write_labels(tmp_path / folder / "labelsTs", a={ORGAN: 1})
    evaluation = evaluate_folder(labels, labels, num_processes=0, progress=False)
    assert evaluation.tolerance.mm == evaluation.scoring.tolerance_mm == mm
    assert source in evaluation.tolerance.source
    assert evaluate_folder(labels, labels, tolerance=3.5, num_processes=0, progress=False).tolerance.mm == 3.5


def test_comparison_is_paired_over_the_cases_in_both(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    second = write_labels(tmp_path / "B", a={ORGAN: 1, LESION: 2, SECOND_LESION: 2}, c={ORGAN: 1})
    write_description(second, {"background": 0, "other": 1})
    comparison = compare_folders(predictions, second, dataset / "labelsTs", num_processes=0, progress=False)
    assert comparison.cases == ("a", "c")
    assert list(comparison.left_out) == ["b"]
    dice = comparison.difference("lesion", METRICS[0])
    assert (dice.count, dice.mean) == (2, pytest.approx(1 / 18))
    volume = next(metric for metric in METRICS if metric.key == "volume_error_ml")
    assert comparison.difference("organ", volume).mean < 0
    lines = [" ".join(line.split()) for line in format_comparison(comparison).splitlines()]
    assert "lesion Dice 0.944 1.000 0.056 0.000 to 0.111 - 2" in lines
    assert "Left out: b" in lines
    json_file, csv_file = write_comparison(comparison, tmp_path / "out")
    content = json.loads(json_file.read_text())
    assert content["summary"]["lesion"]["dice"]["mean"] == pytest.approx(1 / 18)
    assert content["second"]["summary"]["lesion"]["dice"]["mean"] == 1
    assert content["cases_in_both"] == ["a", "c"]
    with csv_file.open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert (row["case"], row["class"], row["metric"]) == ("a", "organ", "dice")
    assert float(row["second"]) - float(row["first"]) == pytest.approx(float(row["difference"]))


def test_comparison_without_common_cases(dataset: Path, tmp_path: Path) -> None:
    first, second = write_labels(tmp_path / "A", a={ORGAN: 1}), write_labels(tmp_path / "B", b={ORGAN: 1})
    with pytest.raises(DatasetError, match="no evaluated case in common"):
        compare_folders(first, second, dataset / "labelsTs", num_processes=0, progress=False)


def write_confidences(folder: Path, **cases: dict[str, list[tuple[float, tuple[int, int, int]]]]) -> None:
    """Say by case and class how sure objects are, each with a voxel (z, y, x)."""
    for name, classes in cases.items():
        image = sitk.ReadImage(str(folder / f"{name}.nii.gz"))
        labels_ZYX, voxel_ml = sitk.GetArrayFromImage(image), float(np.prod(image.GetSpacing())) / 1000

        def said(sure: float, at: tuple[int, int, int], labels_ZYX: Any = labels_ZYX, ml: float = voxel_ml) -> Any:
            voxels = 1
            if all(index < size for index, size in zip(at, labels_ZYX.shape, strict=True)):
                objects_ZYX, _ = ndimage.label(labels_ZYX == labels_ZYX[at], np.ones((3, 3, 3)))
                voxels = int((objects_ZYX == objects_ZYX[at]).sum())
            return {"confidence": sure, "volume_ml": voxels * ml, "at": at[::-1]}

        content = {
            "format": "sam3dnet-confidence/1",
            "classes": {one: {"objects": [said(*each) for each in objects]} for one, objects in classes.items()},
        }
        (folder / f"{name}_confidence.json").write_text(json.dumps(content), encoding="utf-8")


def test_lesions_are_found_at_so_many_false_ones(dataset: Path, tmp_path: Path) -> None:
    """Three true lesions: one found surely, one less so than two false objects, one not at all."""
    predictions = write_labels(
        tmp_path / "preds", a={LESION: 2, (4, 5, 6): 2}, b={LESION: 2, (0, 0, 0): 2, (4, 5, 6): 2}, c={}
    )
    assert "false objects" not in format_evaluation(evaluate(dataset, predictions))
    sure, place = [(0.9, (2, 2, 2))], (2, 3, 3)
    write_confidences(
        predictions,
        a={"lesion": [*sure, (0.2, (4, 5, 6))], "organ": []},
        b={"lesion": [(0.6, (0, 0, 0)), (0.5, place), (0.4, (4, 5, 6))], "organ": []},
        c={"lesion": [], "organ": []},
    )
    evaluation = evaluate(dataset, predictions)
    lesion = evaluation.detection()["lesion"]
    at = {one["at_most"]: (one["sensitivity"], one["least_confidence"]) for one in lesion["false_a_case"]}
    assert at == {0.25: (pytest.approx(1 / 3), 0.9), 1.0: (pytest.approx(2 / 3), 0.5), 4.0: (pytest.approx(2 / 3), 0.5)}
    assert [(one["lesions"], one["sensitivity"]) for one in lesion["by_size"]] == [(1, 0), (1, 1), (1, 1)]
    assert [one["from_ml"] < one["to_ml"] + 1e-9 for one in lesion["by_size"]] == [True] * 3
    text = format_evaluation(evaluation)
    cells = next(line.split() for line in text.splitlines() if line.startswith("lesion ") and line.split()[1] == "3")
    assert cells == ["lesion", "3", "0.333", "0.667", "0.667", "0.000", "1.000", "1.000"]
    write_results(evaluation, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["detection"]["lesion"]["lesions"] == 3


@pytest.mark.parametrize("at", [(4, 5, 5), (9, 9, 9)], ids=["beside the object", "outside of the image"])
def test_confidences_of_another_label_map_are_told_and_not_used(
    dataset: Path, predictions: Path, at: tuple[int, int, int], caplog: Any
) -> None:
    places = {"organ": [(0.9, (1, 1, 1))], "lesion": [(0.9, (2, 2, 2))]}
    write_confidences(predictions, a=places, b=places | {"lesion": [(0.9, at)]}, c={"organ": [], "lesion": []})
    evaluation = evaluate(dataset, predictions)
    assert list(evaluation.detection()) == ["organ"] and len(evaluation.cases) == 3
    assert "b: its confidences of lesion are those of another label map" in caplog.text


def test_where_false_objects_are_as_sure_as_can_be_nothing_counts() -> None:
    cases = [Detections((0.5, 0.7), (1.0, 0.9), (1.0, 1.0)), Detections((), (), (1.0,))]
    summary = summarise(cases)
    assert summary is not None
    found = [(at["least_confidence"], at["sensitivity"]) for at in summary["false_a_case"]]
    assert found == [(None, 0.0), (None, 0.0), (0.9, 1.0)]  # three false ones are within four a case alone
    assert [size["sensitivity"] for size in summary["by_size"]] == [0.0, 0.0]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_an_object_of_which_most_was_erased_is_another_one(dataset: Path, predictions: Path, caplog: Any) -> None:
    places = {"organ": [(0.9, (1, 1, 1))], "lesion": [(0.9, (2, 2, 2))]}
    write_confidences(predictions, a=places, b=places, c={"organ": [], "lesion": []})
    assert list(evaluate(dataset, predictions).detection()) == ["organ", "lesion"]
    write_labels(predictions, b={((1, 2), (1, 2), (1, 2)): 1, LESION: 2})
    assert list(evaluate(dataset, predictions).detection()) == ["lesion"]
    assert "b: its confidences of organ are those of another label map" in caplog.text


@pytest.mark.parametrize("content", ["{", '{"classes": {"lesion": 1}}', None], ids=["cut", "other", "missing"])
def test_damaged_or_missing_confidences_cost_the_table_alone(
    dataset: Path, predictions: Path, content: str | None, caplog: Any
) -> None:
    places = {"organ": [(0.9, (1, 1, 1))], "lesion": [(0.9, (2, 2, 2))]}
    write_confidences(predictions, a=places, b=places, c={"organ": [], "lesion": []})
    (predictions / "b_confidence.json").unlink()
    if content is not None:
        (predictions / "b_confidence.json").write_text(content, encoding="utf-8")
    evaluation = evaluate(dataset, predictions)
    assert list(evaluation.cases) == ["a", "b", "c"] and not evaluation.failed and not evaluation.detection()
    assert "not counted by confidence, which is missing or damaged of b" in format_evaluation(evaluation)
    assert ("b_confidence.json" in caplog.text and "--confidence" in caplog.text) == (content is not None)


def test_volumes_are_those_of_the_predictions_own_grid(dataset: Path, predictions: Path) -> None:
    """The truth may be off by what no voxel notices, which is more than volumes are rounded by."""
    places = {"organ": [(0.9, (1, 1, 1))], "lesion": [(0.9, (2, 2, 2))]}
    for name in "abc":
        image = sitk.ReadImage(str(predictions / f"{name}.nii.gz"))
        image.SetSpacing([size * 1.01 for size in image.GetSpacing()])
        sitk.WriteImage(image, str(predictions / f"{name}.nii.gz"))
    write_confidences(predictions, a=places, b=places, c={"organ": [], "lesion": []})
    evaluation = evaluate(dataset, predictions)
    assert not evaluation.failed and list(evaluation.detection()) == ["organ", "lesion"]


def test_of_a_missing_prediction_nothing_is_found(dataset: Path, predictions: Path) -> None:
    places = {"organ": [(0.9, (1, 1, 1))], "lesion": [(0.9, (2, 2, 2))]}
    write_confidences(predictions, a=places, c={"organ": [], "lesion": []})
    (predictions / "b.nii.gz").unlink()
    lesion = evaluate(dataset, predictions, missing_as_empty=True).detection()["lesion"]
    assert (lesion["lesions"], lesion["false_a_case"][0]["sensitivity"]) == (3, pytest.approx(1 / 3))


def test_objects_that_nobody_annotated_are_not_false() -> None:
    prediction = np.zeros(SHAPE, bool)
    prediction[0, 0, :2] = prediction[4, 0, :2] = True
    marks, ignored = np.zeros(SHAPE, np.int32), np.zeros(SHAPE, bool)
    marks[0, 0, 0], marks[4, 0, 1] = 2, 1
    ignored[0] = True
    arguments: dict[str, Any] = {"voxel_ml": 1.0, "predicted_voxel_ml": None, "min_iou": 0.1}
    truth = np.zeros(SHAPE, bool)
    said = [Object(confidence=sure, volume_ml=2, at=(0, 0, 0)) for sure in (0.3, 0.8)]
    assert detect(prediction, truth, marks, said, **arguments).false == (0.8, 0.3)  # type: ignore[union-attr]
    left = detect(prediction, truth, marks, said, ignored_ZYX=ignored, **arguments)
    assert left is not None and left.false == (0.3,)
    larger = [said[0], Object(confidence=0.8, volume_ml=3, at=(0, 0, 0))]
    assert detect(prediction, truth, marks, larger, **arguments) is None
    assert detect(prediction, truth, marks, said, **arguments | {"predicted_voxel_ml": 1.0}) is not None
    assert detect(prediction, truth, marks, said, **arguments | {"predicted_voxel_ml": 2.0}) is None
