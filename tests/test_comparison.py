"""The comparison: stages that are not repeated, names of methods, the split, and a table that mixes nothing."""

import csv
import io
import json
import os
import sys
from dataclasses import replace

import pytest
from phantoms import make_raw_dataset

from sam3dnet.cli.compare import compare, main
from sam3dnet.comparison import run
from sam3dnet.comparison.competitors import Settings, find_competitor, planning_options
from sam3dnet.comparison.run import _what_is_planned, compare_methods, merge
from sam3dnet.comparison.stages import StageError, Stages
from sam3dnet.comparison.table import Row, as_csv, as_markdown, cells, columns
from sam3dnet.errors import DatasetError, PlanError, Sam3dError
from sam3dnet.preprocessing.folders import Folders

DATASET = "Dataset906_Compared"
SCORES = {"organ": {"dice": 0.9, "nsd": 0.8}, "lesion": {"dice": 0.5, "nsd": 0.4}}
LESS = {"organ": {"dice": 0.7, "nsd": 0.6}, "lesion": {"dice": 0.1, "nsd": 0.2}}


def test_a_finished_stage_is_not_repeated_and_a_changed_one_is(tmp_path):
    stages = Stages(tmp_path / "stages")
    command = [sys.executable, "-c", f"open({str(tmp_path / 'count')!r}, 'a').write('x')"]
    first = stages.run("one", {"minutes": (1, 2)}, command)
    assert first == stages.run("one", {"minutes": (1, 2)}, command)
    assert (tmp_path / "count").read_text() == "x"
    assert first["machine"]["versions"]["sam3dnet"]
    assert first["load"]["returncode"] == 0
    stages.run("one", {"minutes": (1, 3)}, command)
    assert (tmp_path / "count").read_text() == "xx"


def test_a_stage_that_fails_leaves_no_record_and_shows_its_log(tmp_path):
    stages = Stages(tmp_path)
    with pytest.raises(StageError, match=r"stage two ended with status 3; see .*two\.log:\nthe reason"):
        stages.run("two", {}, [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])
    assert stages.finished("two", {}) is None


def settings(tmp_path, **options):
    defaults = {"dataset": DATASET, "work": tmp_path, "minutes": 8.0, "fold": 0, "device": "cpu"}
    return Settings(**{**defaults, **options})


def test_names_of_methods_are_understood(tmp_path):
    published = find_competitor("3dsam-adapter:as-published:automatic")
    assert published.plans_name == "SAM3DPlans_3dsam-adapter_as-published_automatic"
    assert planning_options(published.choice)[-3:] == ["--fidelity", "as-published", "--no-prompts"]
    assert find_competitor("sam3d:lora").choice.tuning == "lora"
    own = find_competitor("network", "a.b:Net")
    assert own.plans_name == "SAM3DPlans_Net"
    assert "a.b:Net" in own.prepare_command(settings(tmp_path))
    folder = find_competitor("nnunet-resenc").model_folder(settings(tmp_path)).name
    assert folder == "nnUNetTrainerClock__nnUNetResEncUNetMPlans__3d_fullres"
    with pytest.raises(PlanError, match="some of nnunet, nnunet-resenc, sam3d"):
        find_competitor("nnformer")


def test_every_method_is_given_the_same_time_and_device(tmp_path):
    asked = settings(tmp_path, plan_options=("--encoder", "tiny"))
    for name in ("sam3d", "refsam3d"):
        competitor = find_competitor(name)
        train = competitor.train_command(asked)
        assert train[train.index("--minutes") + 1] == "8.0"
        assert train[train.index("--plans") + 1] == competitor.plans_name
        assert competitor.prepare_command(asked)[-2:] == ["--encoder", "tiny"]
    assert run._environment(asked)["nnUNet_clock_minutes"] == "8.0"


def rows():
    return [
        Row("ours", SCORES, {"1 click, whole volume": SCORES}, 10, 1_000, 300.4, 1.5, 99, "note"),
        Row("sam-points", None, {"1 point a slice": LESS}),
        Row("plain", LESS),
    ]


def test_automatic_and_prompted_figures_never_share_a_column():
    titles = columns(rows())
    assert titles[1:4] == ["organ, automatic", "lesion, automatic", "mean, automatic"]
    by_method = {row.method: dict(zip(titles, cells(row, rows()), strict=True)) for row in rows()}
    assert by_method["sam-points"]["organ, automatic"] == "-"
    assert by_method["sam-points"]["organ, 1 point a slice"] == "70.00 / 60.00"
    assert by_method["plain"]["organ, 1 click, whole volume"] == "-"
    assert by_method["ours"]["mean, automatic"] == "70.00 / 60.00"
    assert by_method["ours"]["parameters"] == "1,000"
    assert len(as_markdown(rows()).splitlines()) == 7


def test_the_csv_holds_a_number_a_cell():
    read = list(csv.DictReader(io.StringIO(as_csv(rows()))))
    assert read[0]["dice organ automatic"] == "0.9"
    assert read[1]["nsd lesion 1 point a slice"] == "0.2"
    assert read[1]["dice organ automatic"] == ""


def test_folds_are_averaged():
    one = Row("a", SCORES, {"1 click": SCORES}, 5, 6, 100.0, 1.0, 10)
    two = Row("a", LESS, {"1 click": LESS}, 5, 6, 300.0, 3.0, 20)
    merged = merge([one, two])
    assert merged.automatic["organ"]["dice"] == pytest.approx(0.8)
    assert merged.prompted["1 click"]["lesion"]["nsd"] == pytest.approx(0.3)
    assert (merged.peak_mib, merged.seconds_per_case, merged.iterations) == (200.0, 2.0, 15)
    assert merge([one]) is one


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Stages that run nothing: what would run is noted, and measuring writes made-up scores."""
    make_raw_dataset(tmp_path / "raw" / DATASET)
    ran = []

    def pretend(self, name, keys, command, mark_file=None, variables=None):
        ran.append(name)
        if name.startswith("refsam3d") and name.endswith("train"):
            raise StageError("stage failed; see its log:\nmore")
        if name.endswith(("-measure", "-click")):
            (self.folder / f"{name}d.json" if name.endswith("e") else self.folder / f"{name}ed.json").write_text(
                json.dumps(
                    {
                        "scores": SCORES,
                        "prompted": {"1 click, whole volume": LESS},
                        "tuned_parameters": 1,
                        "parameters": 2,
                        "seconds_per_case": 0.5,
                        "iterations": 7,
                        "patch_size": [8, 16, 16],
                        "batch_size": 2,
                    }
                )
            )
        return {
            "keys": dict(keys),
            "load": {"peak_mib": 20.0, "until_mark": {"peak_mib": 11.0}},
            "machine": {"date": "today"},
        }

    (tmp_path / "work" / "stages").mkdir(parents=True)
    monkeypatch.setattr(Stages, "run", pretend)
    return tmp_path, ran


def test_each_method_goes_through_all_stages_and_one_that_fails_stops_no_other(pretended):
    folder, ran = pretended
    asked = settings(folder / "work", clicks=(1,))
    shown = []
    names = ["nnunet", "refsam3d", "3dsam-adapter:as-published"]
    found = compare_methods(names, asked, folder / "raw" / DATASET, show=shown.append)
    assert [row.method for row in found] == names
    assert ran[:3] == ["nnunet-prepare", "nnunet-fold0-train", "nnunet-fold0-measure"]
    assert "nnunet-fold0-click" not in ran
    assert ran[-1] == "3dsam-adapter_as-published-fold0-click"
    assert found[1].note == "failed: stage failed; see its log:"
    assert found[2].prompted == {"1 click, whole volume": LESS}
    assert len(shown) == 3
    saved = json.loads((folder / "work" / "comparison.json").read_text())
    assert [row["method"] for row in saved["methods"]] == names
    assert saved["seed"] == 0
    assert saved["machine"]["versions"]["torch"]
    assert (folder / "work" / "comparison.md").read_text() == shown[-1] + "\n"


def test_what_an_interrupted_training_left_is_removed(pretended):
    folder, _ = pretended
    asked = settings(folder / "work")
    left = find_competitor("sam3d").model_folder(asked) / "fold_0"
    left.mkdir(parents=True)
    compare_methods(["sam3d"], asked, folder / "raw" / DATASET, show=lambda _: None)
    assert not left.exists()


def test_folds_are_of_patients_and_a_single_case_has_none(pretended):
    folder, _ = pretended
    raw = folder / "raw" / DATASET
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        files = sorted((raw / kind).iterdir())
        for number, file in enumerate(files):
            file.rename(raw / kind / f"p{number // 2}_{'ab'[number % 2]}{ending}")
    asked = settings(folder / "work")
    compare_methods(["nnunet"], asked, raw, show=lambda _: None)
    for fold in json.loads((asked.preprocessed / "splits_final.json").read_text()):
        trained, validated = ({name.partition("_")[0] for name in fold[part]} for part in ("train", "val"))
        assert trained and validated and not trained & validated
    for kind in ("imagesTr", "labelsTr"):
        for file in sorted((raw / kind).iterdir())[1:]:
            file.unlink()
    with pytest.raises(DatasetError, match="has 1 cases, too few for folds"):
        compare_methods(["nnunet"], settings(folder / "other"), raw, show=lambda _: None)


@pytest.mark.parametrize(("device", "cores", "loaders"), [("cpu", 1, "0"), ("cpu", 8, "7"), ("cuda", 16, "12")])
def test_stock_nnunet_has_as_many_loaders_as_ours(tmp_path, monkeypatch, device, cores, loaders):
    from sam3dnet.comparison import competitors
    from sam3dnet.training import asked as training

    for module in (competitors, training):
        monkeypatch.setattr(module, "cores_of_job", lambda: cores)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    stock, asked = find_competitor("nnunet"), replace(settings(tmp_path), device=device)
    assert stock.variables(asked)["nnUNet_n_proc_DA"] == loaders
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", variables := {})
        training.share_cores(device, None)
        assert variables["nnUNet_n_proc_DA"] == loaders
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    assert stock.variables(asked)["nnUNet_n_proc_DA"] == "5"


def test_a_plan_of_another_device_or_network_is_another_one(tmp_path):
    asked = settings(tmp_path)
    networks = [find_competitor("network", network=name) for name in ("monai.networks.nets:UNet", "a:B")]
    plans = [_what_is_planned(one, asked) for one in networks]
    assert plans[0] != plans[1]
    on_card = replace(asked, device="cuda")
    assert _what_is_planned(networks[0], on_card) != plans[0]
    assert _what_is_planned(find_competitor("nnunet"), on_card) == _what_is_planned(find_competitor("nnunet"), asked)


def test_the_split_is_nnunets_own_and_written_once(pretended):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    folder, _ = pretended
    asked = settings(folder / "work")
    compare_methods(["nnunet"], asked, folder / "raw" / DATASET, show=lambda _: None)
    splits_file = asked.preprocessed / "splits_final.json"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (asked.raw / "labelsTr").iterdir())
    assert json.loads(splits_file.read_text()) == json.loads(
        json.dumps(generate_crossval_split(names, seed=12345, n_splits=5))
    )
    splits_file.write_text("[]")
    compare_methods(["nnunet"], asked, folder / "raw" / DATASET, show=lambda _: None)
    assert splits_file.read_text() == "[]"
    with pytest.raises(Sam3dError, match="holds a comparison of"):
        compare_methods(["nnunet"], asked, folder, show=lambda _: None)


def test_the_command_s_options_reach_the_comparison(pretended, monkeypatch):
    folder, _ = pretended
    places = Folders(*(folder / f"nnUNet_{name}" for name in ("raw", "preprocessed", "results")))
    for place in (places.raw, places.preprocessed, places.results):
        place.mkdir()
    (places.raw / DATASET).symlink_to(folder / "raw" / DATASET)
    monkeypatch.setattr("sam3dnet.preprocessing.folders.activate_folders", lambda root: places)
    given = {}
    monkeypatch.setattr(run, "compare_methods", lambda *args, **options: given.update(args=args, **options) or [])
    options = {"root": folder, "output": folder / "out", "device": "cpu", "prompts": "none,3,1", "seed": 5}
    compare(dataset="906", methods="sam3d,unetr", minutes=2.0, network="a:B", folds=[0, 1], **options)
    names, asked, raw = given["args"]
    assert names == ["sam3d", "unetr", "network"]
    assert (asked.clicks, asked.minutes, asked.seed, asked.dataset) == ((1, 3), 2.0, 5, DATASET)
    assert raw == places.raw / DATASET
    assert given["folds"] == [0, 1]
    assert main(["-d", "906", "--root", str(folder), "--prompts", "none,many"]) == 2
