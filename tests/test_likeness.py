"""A plan after that of a trained model."""

import json

import pytest
import torch
from commands import train_fold
from phantoms import LABELS, make_raw_dataset

from sam3dnet.cli import plan_and_preprocess
from sam3dnet.errors import PlanError
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning import planner
from sam3dnet.planning.likeness import likeness_of, without_what_is_taken
from sam3dnet.planning.methods import Text
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.settings.planning import PlanningSettings

FIRST, SECOND = "Dataset978_First", "Dataset979_Second"
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2}
SAID = {"channel_names": {"0": "CT"}, "labels": LABELS}
NETWORK = ("spacing", "patch_size", "architecture", "normalization_schemes", "use_mask_for_norm")


@pytest.fixture(scope="module")
def planned():
    """A plan of one dataset, another dataset of other spacing, shape, channels and classes, and what plans."""
    folders = activate_folders(None)
    make_raw_dataset(folders.raw / FIRST)
    make_raw_dataset(
        folders.raw / SECOND,
        channel_names=("MR", "CT"),
        labels={**LABELS, "more": 3},
        shape=(20, 24, 18),
        spacing_mm=(1.0, 2.0, 1.5),
        seed=4,
    )

    def plan(name, **options):
        file = plan_dataset(
            *(name, folders),
            **{"cost": training_cost, "seconds": training_seconds, "device": "cpu", "progress": False, **options},
        )
        return json.loads(file.read_text())

    return folders, plan, plan(FIRST, encoder="tiny")


def test_spacing_crop_and_network_are_the_models(planned):
    folders, plan, first = planned
    like = likeness_of(first, json.loads((folders.raw / FIRST / "dataset.json").read_text()))
    second = plan(SECOND, like=like)
    theirs, ours = (one["configurations"]["3d_fullres"] for one in (first, second))
    assert {key: ours[key] for key in NETWORK[:3]} == {key: theirs[key] for key in NETWORK[:3]}
    assert list(second["configurations"]) == ["3d_fullres"]
    assert second["transpose_forward"] == first["transpose_forward"]
    assert ours["normalization_schemes"] == ["ZScoreNormalization", *theirs["normalization_schemes"]]
    assert ours["use_mask_for_norm"][1:] == theirs["use_mask_for_norm"]
    known, found = (one["foreground_intensity_properties_per_channel"] for one in (first, second))
    assert found["1"] == known["0"] and found["0"] != known["0"]
    reasons = {one["name"]: one["reason"] for one in second["sam3d"]["decisions"]}
    assert all(reasons[name] == f"as in the model of {FIRST}" for name in ("spacing", "encoder", "patch_size"))
    own = plan(SECOND, encoder="tiny")["configurations"]["3d_fullres"]
    assert own["spacing"] != theirs["spacing"]


def test_the_plan_says_how_the_models_network_was_built(planned):
    folders, plan, first = planned
    said = json.loads((folders.raw / FIRST / "dataset.json").read_text())
    other = json.loads(json.dumps(first))
    other["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {"prompts": False, "tuning": "lora"}
    second = plan(SECOND, like=likeness_of(other, said))
    assert second["plans_name"] == "SAM3DPlans_lora"
    told = {one["name"]: (one["value"], one["reason"]) for one in second["sam3d"]["decisions"]}
    assert told["prompts"] == (False, f"as in the model of {FIRST}")
    assert told["tuning"] == ("lora", f"as in the model of {FIRST}")
    kwargs = second["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["prompts"] is False and kwargs["tuning"] == "lora"


def with_network(plans, network_class, **arguments):
    """Give a plan another network."""
    other = json.loads(json.dumps(plans))
    architecture = other["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = f"sam3dnet.network.published.{network_class}"
    for name in ("prompts", "fitted_windows", "kernels", "features"):  # those of ours
        architecture["arch_kwargs"].pop(name, None)
    architecture["arch_kwargs"] |= arguments
    return other


def with_text(plans):
    """Give a plan that reads text: a phrase for background, organ and lesion, of one word and a sentence."""
    text = [[[0.5, 0.25], [0.0, float(number)]] for number in range(3)]
    other = with_network(plans, "refsam3d.RefSAM3D", text=text)
    phrases = {"name": "text", "value": ["all else", "perform it", "the lesion"]}
    other["sam3d"] |= {"text_model": "ViT-B-16", "decisions": [phrases]}
    return other, text


def test_regions_are_those_of_the_dataset(planned):
    folders, plan, first = planned
    constant = {"cost": lambda *_: 1000, "seconds": lambda *_: 0.1}
    adapter = {"fidelity": "corrected", "prompts": True}

    def regions_of(name, model, said):
        content = plan(name, like=likeness_of(model, said), **constant)
        return content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["regions"]

    of_regions = {**SAID, "labels": REGIONS, "regions_class_order": [1, 2]}
    named = "adapter3dsam.Adapter3DSAM"
    assert regions_of(SECOND, with_network(first, named, regions=True, **adapter), of_regions) is False
    folder = make_raw_dataset(
        folders.raw / "Dataset981_OfRegions", num_cases=2, labels=REGIONS, regions_class_order=[1, 2]
    )
    assert regions_of(folder.name, with_network(first, named, regions=False, **adapter), SAID) is True
    assert regions_of(folder.name, with_network(first, named, **adapter), SAID) is True


def test_the_text_of_a_model_is_taken_for_the_same_classes_alone(planned):
    _, _, first = planned
    model, text = with_text(first)
    like = likeness_of(model, SAID)
    in_another_order = {"lesion": 2, "background": 0, "organ": 1}  # of the file; the outputs are the same
    choice = like.choice_for({"labels": in_another_order})
    assert choice.name == "refsam3d" and choice.text.phrases == ("all else", "perform it", "the lesion")
    assert choice.text.model == "ViT-B-16" and choice.text.embeddings == text
    for labels in (
        {"background": 0, "organ": 1, "kidney": 2},
        {"background": 0, "organ": 2, "lesion": 1},
        {**LABELS, "kidney": 3},
        {"background": 0, "organ": 1},
    ):
        with pytest.raises(
            PlanError, match=r"its phrases are of its outputs, background, organ, lesion; the .*--clip-w"
        ):
            like.choice_for({"labels": labels})
    own = Text(("else", "kidney"), "ViT-B-16", [[[1.0, 2.0]], [[3.0, 4.0]]])
    choice = like.choice_for({"labels": {"background": 0, "kidney": 1}}, own)
    assert choice.text == own
    kwargs = like.fit(choice.network_options(False), lambda kwargs: 7).arch_kwargs
    assert kwargs["text"] == own.embeddings and "regions" not in kwargs
    with pytest.raises(PlanError, match=r"as ViT-B-16 embeds it, not ViT-L-14; give --clip-model ViT-B-16"):
        like.choice_for({"labels": LABELS}, Text(("a",), "ViT-L-14", [[[1.0]]]))
    with pytest.raises(PlanError, match=r"it reads no text; leave out --clip-weights"):
        likeness_of(first, SAID).choice_for({"labels": LABELS}, own)
    assert likeness_of(with_network(first, "refsam3d.RefSAM3D"), SAID).choice_for({"labels": {}}).text is None


@pytest.fixture
def asked_for(monkeypatch):
    """Run the command up to the planning, and give the choice that it is asked for, or what is said."""

    def run(line, capsys):
        with monkeypatch.context() as patched:

            def plan(_name, **options):
                seen.append(options["choice"])
                raise PlanError("that is all")

            seen = []
            patched.setattr(planner, "plan_dataset", plan)
            assert plan_and_preprocess.main([*line, "--device", "cpu", "--skip-verification"]) == 2
        return seen[0] if seen else capsys.readouterr().err

    return run


def test_phrases_of_the_own_classes_are_embedded_for_a_model_that_reads_text(
    planned, asked_for, tmp_path, monkeypatch, capsys
):
    from sam3dnet.network.published import text_encoder

    folders, _, first = planned
    asked = []
    monkeypatch.setattr(
        text_encoder, "embed_phrases", lambda *given: asked.append(given) or torch.full((len(given[0]), 1, 2), 0.5)
    )
    for name, plans in (("text", with_text(first)[0]), ("none", first)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plans.json").write_text(json.dumps(plans))
        (tmp_path / name / "dataset.json").write_text((folders.raw / FIRST / "dataset.json").read_text())
    (tmp_path / "phrases.json").write_text(json.dumps({"more": "and more"}))
    line = ["-d", SECOND, "--like", str(tmp_path / "text"), "--method", "refsam3d"]
    assert "the dataset's are background, organ, lesion, more; give --clip-weights" in asked_for(line, capsys)
    choice = asked_for([*line, "--clip-weights", "w", "--phrases", str(tmp_path / "phrases.json")], capsys)
    assert asked == [(list(choice.text.phrases), "w", "ViT-B-16")]
    assert choice.text.phrases[1:] == ("perform organ segmentation", "perform lesion segmentation", "and more")
    assert choice.text.embeddings == [[[0.5, 0.5]]] * 4
    line = [*line, "--clip-weights", "w"]
    assert "give --clip-model ViT-B-16" in asked_for([*line, "--clip-model", "ViT-L-14"], capsys)
    line = ["-d", SECOND, "--like", str(tmp_path / "none"), "--clip-weights", "w"]
    assert "it reads no text; leave out --clip-weights" in asked_for(line, capsys)
    assert len(asked) == 1
    with pytest.raises(PlanError, match=r"--phrases, --clip-model: phrases are embedded by --clip-weights alone"):
        PlanningSettings(datasets=[1], like="978", phrases="phrases.json", clip_model="ViT-L-14")


def test_a_model_of_another_plan_is_found(planned, asked_for, tmp_path, capsys):
    _, _, first = planned
    make_raw_dataset(tmp_path / "nnUNet_raw" / SECOND, num_cases=1)

    def trained(plans_name, plans, configuration="3d_fullres"):
        folder = tmp_path / "nnUNet_results" / FIRST / f"nnUNetTrainerSAM3D__{plans_name}__{configuration}"
        (folder / "fold_0").mkdir(parents=True)
        (folder / "fold_0" / "checkpoint_final.pth").touch()
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps({**SAID, "numTraining": 1, "file_ending": ".nii.gz"}))

    line = ["-d", SECOND, "--like", "978", "--root", str(tmp_path)]
    assert "expected a trained model for dataset 978; there is none" in asked_for(line, capsys)
    trained("SAM3DPlans", first, "3d_lowres")
    assert "978: its only model is nnUNetTrainerSAM3D__SAM3DPlans__3d_lowres" in asked_for(line, capsys)
    tuned = json.loads(json.dumps(first))
    tuned["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["tuning"] = "lora"
    trained("SAM3DPlans_lora", tuned)
    assert asked_for(line, capsys).plans_name == "SAM3DPlans_lora"
    trained("SAM3DPlans_refsam3d", with_text(first)[0])
    assert "trained are" in (said := asked_for(line, capsys)) and "lora" in said and "refsam3d" in said
    choice = asked_for([*line, "--method", "refsam3d"], capsys)
    assert choice.plans_name == "SAM3DPlans_refsam3d" and choice.text.phrases[1] == "perform it"
    trained("SAM3DPlans", first)
    assert asked_for(line, capsys).plans_name == "SAM3DPlans"
    assert asked_for([*line, "--method", "refsam3d"], capsys).name == "refsam3d"
    assert "978 is a model of method sam3d, asked for is 3dmedsam; give --method sam3d, or" in asked_for(
        [*line, "--method", "3dmedsam"], capsys
    )


def test_channels_of_one_name_are_matched_in_their_order(planned):
    _, _, first = planned
    model = json.loads(json.dumps(first))
    model["configurations"]["3d_fullres"] |= {
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization", "NoNormalization"],
        "use_mask_for_norm": [False, True, False],
    }
    model["foreground_intensity_properties_per_channel"] = {str(n): {"mean": n + 0.5} for n in range(3)}
    like = likeness_of(model, {**SAID, "channel_names": {"0": "CT", "1": "MR", "2": "CT"}})
    own = {str(n): {"mean": -1.0 * n} for n in range(4)}
    names = ["CT", "CT", "CT", "MR"]  # the third is one that the model has not
    assert like.normalization(names, ["Own"] * 4, [True] * 4) == (
        ["CTNormalization", "NoNormalization", "Own", "ZScoreNormalization"],
        [False, False, True, True],
    )
    means = [one["mean"] for one in like.intensities(names, own).values()]
    assert means == [0.5, 2.5, -2.0, 1.5]
    same = like.intensities(["CT", "MR", "CT"], {str(n): own[str(n)] for n in range(3)})
    assert same == model["foreground_intensity_properties_per_channel"]


def test_planning_again_says_that_it_is_no_longer_like_the_model(planned, caplog):
    folders, plan, first = planned
    said = json.loads((folders.raw / FIRST / "dataset.json").read_text())
    like = likeness_of(first, said, "models of/978")
    assert plan(SECOND, like=like)["sam3d"]["like"] == "models of/978"
    caplog.clear()
    assert plan(SECOND, like=like)["sam3d"]["like"] == "models of/978"
    assert "Warning" not in caplog.text
    assert "like" not in plan(SECOND, encoder="tiny")["sam3d"]
    (warning,) = [one for one in caplog.messages if "no longer" in one]
    assert "SAM3DPlans.json is no longer planned like models of/978, which --like asked for: spacing, crop" in warning
    assert warning.endswith("give --like 'models of/978' again to keep it")
    caplog.clear()
    plan(SECOND, encoder="tiny")
    assert "no longer" not in caplog.text
    assert likeness_of(first, said).asked_for == FIRST


def test_the_model_wins_over_changes_of_another_plan_alone(planned, caplog):
    folders, plan, first = planned
    like = likeness_of(first, SAID, "978")
    file = folders.preprocessed / SECOND / "SAM3DPlans.json"

    def change(**values):
        content = json.loads(file.read_text())
        content["configurations"]["3d_fullres"] |= values
        file.write_text(json.dumps(content))

    plan(SECOND, encoder="tiny", target_spacing_mm=[2.0, 3.0, 4.0])
    change(spacing=[9.0, 8.0, 7.0], batch_size=5)
    caplog.clear()
    found = plan(SECOND, like=like)["configurations"]["3d_fullres"]
    assert found["spacing"] == first["configurations"]["3d_fullres"]["spacing"] and found["batch_size"] == 5
    assert "configurations.3d_fullres.spacing of SAM3DPlans.json, changed by hand, gives way to --like" in caplog.text
    assert "configurations.3d_fullres.batch_size of SAM3DPlans.json is kept as changed by hand: 5" in caplog.text
    assert "give the option again" not in caplog.text  # it cannot be given with --like
    stride = first["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["token_stride"]
    change(patch_size=stride)
    caplog.clear()
    again = plan(SECOND, like=like)["configurations"]["3d_fullres"]
    assert again["patch_size"] == again["architecture"]["arch_kwargs"]["patch_size"] == stride
    assert "gives way" not in caplog.text
    file.unlink()

    crop, kernels = (f"configurations.3d_fullres.{key}" for key in ("patch_size", "architecture.arch_kwargs.kernels"))
    other = "configurations.3d_fullres.patch_sizes"
    changes = {crop: [4, 8, 8], kernels: None, other: 1}
    one, two = ({"sam3d": {"like": "977", "like_digest": digest}} for digest in "ab")
    assert without_what_is_taken(changes, one, two, "p.json") == {other: 1}
    two = {"sam3d": {"like": "the same by another name", "like_digest": "a"}}
    assert without_what_is_taken(changes, one, two, "p.json") == changes


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("no_prompts", True),
        ("tuning", "lora"),
        ("fidelity", "as-published"),
        ("sam_checkpoint", "medsam"),
        ("network", "package:Class"),
    ],
)
def test_what_the_model_decides_cannot_be_asked_for(option, value):
    PlanningSettings(datasets=[1], like="978")
    with pytest.raises(
        PlanError, match=f"takes network and spacing from a model; leave out --{option.replace('_', '-')}"
    ):
        PlanningSettings(datasets=[1], like="978", **{option: value})


def test_a_plan_of_another_network_is_refused(planned):
    _, _, first = planned
    other = json.loads(json.dumps(first))
    other["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "package.ResUNet"
    with pytest.raises(
        PlanError, match=r"the model of Dataset978_First: its network, package.ResUNet, is none of sam3"
    ):
        likeness_of(other, SAID)
    with pytest.raises(PlanError, match=r"its plan has no 3d_fullres"):
        likeness_of({**first, "configurations": {}}, SAID)


@pytest.mark.filterwarnings("ignore")
def test_a_training_from_the_model_then_fits_nothing(planned, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folders, plan, _ = planned
    plan(FIRST, encoder="tiny")
    plan_and_preprocess.main(["-d", FIRST, "--encoder", "tiny", "--device", "cpu", "--num-processes", "0"])
    short = {"epochs": 1, "iterations_per_epoch": 1, "device": "cpu", "validate": False}
    first = train_fold(FIRST, 0, folders, **short)
    line = ["-d", SECOND, "--like", FIRST, "--device", "cpu", "--num-processes", "0"]
    assert plan_and_preprocess.main(line) == 0
    second = train_fold(SECOND, 0, folders, from_model=FIRST, **short)
    log = next(second.glob("training_log_*.txt")).read_text()
    assert f"starting from {first / 'checkpoint_final.pth'} (--from " in log
    assert "entries were taken for the classes and channels alone that go on" in log
    assert "0 fitted, 0 start anew" in log and "new: more" in log and "new: MR" in log
    capsys.readouterr()
    assert plan_and_preprocess.main([*line, "--encoder", "small"]) == 2
    assert "--like takes network and spacing from a model; leave out --encoder" in capsys.readouterr().err
    assert plan_and_preprocess.main([*line, "--method", "3dsam-adapter"]) == 2
    assert "is a model of method sam3d, asked for is 3dsam-adapter" in capsys.readouterr().err
