"""The benchmark of cascades: its cases need context, both ways take the same time, its table says what was scored."""

import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import cascade

SHAPE = (40, 50, 48)


def test_the_organ_has_a_twin_and_lesions_are_small():
    for seed in range(4):
        image, labels = cascade.make_case(np.random.default_rng(seed), SHAPE)
        assert image.shape == labels.shape == SHAPE
        organ = labels == cascade.ORGAN
        bright = (image > 70) & (image < 150) & (labels == 0)
        halves = [bright[: SHAPE[0] // 2].sum(), bright[SHAPE[0] // 2 :].sum()]
        side = int(organ[: SHAPE[0] // 2].sum() < organ[SHAPE[0] // 2 :].sum())
        assert halves[1 - side] > 2 * halves[side]  # the twin is where the organ is not
        assert 0 < (labels == cascade.LESION).sum() < organ.sum() / 4


def test_it_starts_and_both_ways_take_the_same_time(tmp_path, monkeypatch, capsys):
    commands = {}

    def run(_self, name, _keys, command):
        commands[name] = command

    monkeypatch.setattr(cascade.Stages, "run", run)
    monkeypatch.setattr(cascade, "rows_of", lambda place: [])
    shape = [str(size) for size in SHAPE]
    cascade.main(["--work", str(tmp_path), "--cases", "3", "--minutes", "6", "--shape", *shape])
    assert next(iter(commands)) == "plan"
    minutes = {name: float(c[c.index("--minutes") + 1]) for name, c in commands.items() if name != "plan"}
    assert sum(m for name, m in minutes.items() if name.startswith("3d_fullres")) == 12
    assert sum(m for name, m in minutes.items() if not name.startswith("3d_fullres")) == 12
    place = cascade.Place(tmp_path)
    folds = json.loads((tmp_path / "nnUNet_preprocessed" / cascade.DATASET / "splits_final.json").read_text())
    assert sorted(name for fold in folds for name in fold["val"]) == ["twins_00", "twins_01", "twins_02"]
    assert sitk.ReadImage(str(place.raw / "imagesTr" / "twins_02_0000.nii.gz")).GetSize() == SHAPE[::-1]
    assert "| configuration |" in capsys.readouterr().out


def test_dice_is_averaged_over_the_cases_of_all_folds(tmp_path, monkeypatch):
    place = cascade.Place(tmp_path)
    for number, configuration in enumerate((cascade.FULLRES, cascade.LOWRES, cascade.CASCADE)):
        for fold in range(cascade.FOLDS):
            folder = place.fold(configuration, fold) / "validation"
            folder.mkdir(parents=True)
            dice = {1: 0.2 * number + 0.1 * fold, 2: float("nan") if fold else 0.5}
            metrics = {str(label): {"Dice": value} for label, value in dice.items()}
            (folder / "summary.json").write_text(json.dumps({"metric_per_case": [{"metrics": metrics}]}))
    monkeypatch.setattr(cascade, "_iterations", lambda fold: 7)
    lines = cascade.table(cascade.rows_of(place), 20).splitlines()
    assert lines[-1] == "| 3d_cascade_fullres | 10 + 10 | 7, 7 | 0.450 | 0.500 |"
    assert lines[2].startswith("| 3d_fullres | 20 |")
