"""Options of the commands reach the functions that do the work."""

from pathlib import Path
from typing import Any

import pytest

from sam3dnet.cli import plan_and_preprocess, predict, train
from sam3dnet.cli.command import make_parser
from sam3dnet.settings.prediction import PredictionSettings
from sam3dnet.settings.training import TrainingSettings


class Recorder:
    """Stands for the function that a command calls, and keeps what it was called with."""

    def __init__(self, result: Any = None) -> None:
        self.result, self.calls = result, list[tuple[tuple[Any, ...], dict[str, Any]]]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self.result


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Replace the search for folders and datasets."""
    import sam3dnet.training.run  # noqa: F401  (what is imported under the replacement would keep it)
    from sam3dnet.preprocessing import folders

    there = folders.Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    monkeypatch.setattr(folders, "activate_folders", Recorder(there))
    monkeypatch.setattr(folders, "find_dataset_name", lambda identifier, folders: f"Dataset{identifier}_X")
    return there


def test_options_of_train_reach_the_training(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.preprocessing import folders
    from sam3dnet.training import run

    monkeypatch.setattr(run, "train_fold", recorder := Recorder())
    line = "501 fold3 --root r --configuration 3d_lowres --epochs 7 --minutes 0.5 --iterations-per-epoch 11 --continue"
    more = "--device cpu --sam-checkpoint w.pth --from-scratch --workers 0 --tensorboard --wandb -p Other --npz"
    assert train.main([*line.split(), *more.split()]) == 0
    assert folders.activate_folders.calls == [((Path("r"),), {})]
    expected = TrainingSettings(
        "501",
        "fold3",
        root=Path("r"),
        configuration="3d_lowres",
        plans="Other",
        epochs=7,
        minutes=0.5,
        iterations_per_epoch=11,
        continue_training=True,
        device="cpu",
        sam_checkpoint="w.pth",
        from_scratch=True,
        num_processes=0,
        tensorboard=True,
        wandb=True,
        save_probabilities=True,
    )
    assert recorder.calls == [((expected, places), {})]


def test_validate_only_reaches_the_validation_with_its_checkpoint(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.training import run

    monkeypatch.setattr(run, "train_fold", lambda *a, **k: pytest.fail("it was trained"))
    monkeypatch.setattr(run, "validate_fold", recorder := Recorder())
    line = "907 fold1 --validate-only --checkpoint best --save-probabilities -c C -p P --device cpu --workers 0"
    assert train.main([*line.split(), "--root", "R"]) == 0
    options = {"configuration": "C", "plans": "P", "checkpoint": "best", "device": "cpu", "num_processes": 0}
    options["save_probabilities"] = True
    expected = TrainingSettings("907", "fold1", root=Path("R"), validate_only=True, **options)
    assert recorder.calls == [((expected, places), {})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("907 0 --checkpoint best", "--checkpoint says what to validate; give it with --validate-only"),
        (
            "907 0 --validate-only --continue --epochs 3",
            "--validate-only trains nothing; leave out --epochs, --continue",
        ),
    ],
)
def test_options_of_training_and_of_validation_do_not_mix(line: str, message: str, capsys: Any) -> None:
    assert train.main(line.split()) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict as if the input were a folder of images, and nothing asked for beside label maps."""
    from sam3dnet.outputs import run

    monkeypatch.setattr(run, "predict_any", lambda settings, predict: predict(settings))


@pytest.mark.usefixtures("images_alone")
def test_options_of_predict_reach_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.inference import predictor
    from sam3dnet.interactive import run_prompts

    monkeypatch.setattr(run_prompts, "prompt_reader", lambda *given: given)
    monkeypatch.setattr(predictor, "predict_folder", recorder := Recorder(predictor.PredictionReport()))
    line = "-i in -o out -d 501 -f 0 fold2 -c 3d_lowres --device cpu --step-size 0.75 --no-mirroring"
    more = "--checkpoint checkpoint_best.pth --workers 0 --prompts p.json --instance -p Other --text liver -m folder"
    last = ["--clip-weights", "c.pt", "--save-probabilities", "--no-postprocessing"]
    assert predict.main([*line.split(), *more.split(), *last]) == 0
    expected = PredictionSettings(
        input_folder=Path("in"),
        output_folder=Path("out"),
        dataset="501",
        folds=["0", "fold2"],
        configuration="3d_lowres",
        plans="Other",
        model_folder=Path("folder"),
        device="cpu",
        step_size=0.75,
        no_mirroring=True,
        checkpoint="checkpoint_best.pth",
        num_processes=0,
        prompts=Path("p.json"),
        instance=True,
        text="liver",
        clip_weights="c.pt",
        save_probabilities=True,
        no_postprocessing=True,
    )
    assert recorder.calls == [((expected, (Path("p.json"), True)), {})]


def test_lines_of_nnunet_mean_what_ours_do(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.training import run

    parser = make_parser(predict.predict, "sam3d_predict")
    of_nnunet = "-device cpu -step_size 0.75 --disable_tta -chk checkpoint_best.pth -num_parts 3 -part_id 2"
    of_ours = "--device cpu --step-size 0.75 --no-mirroring --checkpoint checkpoint_best.pth --num-parts 3 --part-id 2"
    first, second = (parser.parse_args(["-i", "in", "-o", "out", *line.split()]) for line in (of_nnunet, of_ours))
    assert first == second
    monkeypatch.setattr(run, "train_fold", recorder := Recorder())
    assert train.main(["501", "0", "-device", "cpu", "--c"]) == 0
    assert train.main(["501", "0", "--device", "cpu", "--continue"]) == 0
    assert recorder.calls[0] == recorder.calls[1]
    assert recorder.calls[0][0][0].continue_training


@pytest.mark.usefixtures("images_alone")
@pytest.mark.parametrize(
    ("options", "step_size", "mirror"),
    [("", 0.5, True), ("--fast", 0.75, False), ("--fast --step-size 0.6", 0.6, False), ("--step-size 0", 0.0, True)],
)
def test_fast_means_no_mirroring_and_a_larger_step(
    monkeypatch: pytest.MonkeyPatch, options: str, step_size: float, mirror: bool
) -> None:
    from sam3dnet.inference import predictor

    monkeypatch.setattr(predictor, "predict_folder", recorder := Recorder(predictor.PredictionReport()))
    assert predict.main(["-i", "in", "-o", "out", *options.split()]) == 0
    (((settings, _), _),) = recorder.calls
    assert (settings.step, settings.mirror) == (step_size, mirror)


@pytest.mark.usefixtures("images_alone")
def test_failed_cases_are_the_last_lines_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sam3dnet.inference import predictor

    report = predictor.PredictionReport(["a", "b"], ["c"], {"d": "truncated", "e": "a channel too many"})
    monkeypatch.setattr(predictor, "predict_folder", Recorder(report))
    assert predict.main(["-i", "in", "-o", "out"]) == 1
    output = capsys.readouterr()
    assert output.out == "Predictions: 2 written, 1 there already, 2 failed\n"
    assert output.err.splitlines() == [
        "sam3d_predict: case d failed: truncated",
        "sam3d_predict: case e failed: a channel too many",
    ]


@pytest.fixture
def planning(places: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Replace the steps of planning."""
    from sam3dnet.network import weights_file
    from sam3dnet.planning import asked, plan, planner, vanished
    from sam3dnet.planning.encoder import SamWeights
    from sam3dnet.preprocessing import pipeline, verify

    recorders = {
        "verify_dataset": Recorder([]),
        "plan_dataset": Recorder(Path("SAM3DPlans.json")),
        "load_plan": Recorder(),
        "format_decisions": Recorder("the table"),
        "require_plannable": Recorder(),
        "choose_configurations": Recorder(["3d_lowres"]),
        "preprocess_dataset": Recorder(),
        "tell_stale": Recorder(),
        "tell_vanished": Recorder(),
        "weights_for_plan": Recorder(SamWeights({"name": "w.pth"})),
        "check_named_file": Recorder(),
    }
    for name, recorder in recorders.items():
        for module in (weights_file, asked, plan, planner, vanished, pipeline, verify):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, recorder)
    return recorders


def test_options_of_planning_reach_its_steps(
    places: Any, planning: dict[str, Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    from sam3dnet.planning.methods import MethodChoice

    line = "-d 501 502 -gpu_memory_target 7.5 --encoder vit_b --sam-checkpoint w.pth --num-processes 0 --device cpu"
    choice = MethodChoice("3dsam-adapter", "as-published", "lora", prompts=False)
    line += " --method 3dsam-adapter --fidelity as-published --tuning lora --no-prompts"
    line += " -c 3d_lowres 3d_fullres -overwrite_target_spacing 3 1 1.5"
    assert plan_and_preprocess.main(line.split()) == 0
    names = ["Dataset501_X", "Dataset502_X"]
    assert [args for args, _ in planning["verify_dataset"].calls] == [(places.raw / name, 0) for name in names]
    for name, (args, options) in zip(names, planning["plan_dataset"].calls, strict=True):
        assert args == (name,)
        assert callable(options.pop("cost")) and callable(options.pop("seconds"))
        assert options.pop("find_weights")("vit_b", True).record == {"name": "w.pth"}
        assert options == {
            "choice": choice,
            "folders": places,
            "gpu_memory_target_gb": 7.5,
            "encoder": "vit_b",
            "device": "cpu",
            "num_processes": 0,
            "target_spacing_mm": [3.0, 1.0, 1.5],
            "cluster": None,
            "like": None,
        }
    asked_for = ["3d_lowres", "3d_fullres"]
    files = [places.preprocessed / name / f"{choice.plans_name}.json" for name in names]
    assert planning["require_plannable"].calls == [((asked_for, file), {}) for file in files]
    assert planning["choose_configurations"].calls == [((None, asked_for), {})] * 2
    chosen = ["3d_lowres"]
    preprocessed = [
        ((name, places, choice.plans_name, chosen), {"num_processes": 0, "cluster": None}) for name in names
    ]
    assert planning["preprocess_dataset"].calls == preprocessed
    assert planning["weights_for_plan"].calls == [(("vit_b", True), {"named": "w.pth"})]
    assert planning["check_named_file"].calls == [(("vit_b", "w.pth"), {})]
    assert capsys.readouterr().out.count("the table\n") == 2


@pytest.mark.parametrize(
    ("encoder", "named", "checked", "planned"),
    [
        ("auto", None, [(("vit_b", None), {})], "auto"),
        ("auto", "medsam", [(("vit_b", "medsam"), {})], "vit_b"),
        ("vit_l", "w.pth", [(("vit_l", "w.pth"), {})], "vit_l"),
        ("tiny", None, [], "tiny"),
    ],
)
def test_named_weights_are_checked_before_anything_else_and_ask_for_vit_b(
    encoder: Any, named: str | None, checked: list[Any], planned: str, planning: dict[str, Recorder]
) -> None:
    plan_and_preprocess.plan_and_preprocess(datasets=["501"], encoder=encoder, sam_checkpoint=named, device="cpu")
    assert planning["check_named_file"].calls == checked
    assert planning["plan_dataset"].calls[0][1]["encoder"] == planned


def test_networks_of_other_packages_need_no_weights(planning: dict[str, Recorder]) -> None:
    plan_and_preprocess.plan_and_preprocess(datasets=["501"], method="unetr", device="cpu", sam_checkpoint="w.pth")
    assert planning["check_named_file"].calls == []


def test_weights_that_a_small_encoder_does_not_take_are_told(
    planning: dict[str, Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["-d", "501", "--encoder", "tiny", "--device", "cpu", "--sam-checkpoint", "w.pth"]
    assert plan_and_preprocess.main(line) == 0
    assert "--encoder tiny is trained from scratch: --sam-checkpoint is not used" in capsys.readouterr().out


def test_published_systems_are_not_planned_without_their_transformer(
    planning: dict[str, Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["-d", "501", "--encoder", "none", "--device", "cpu"]
    assert plan_and_preprocess.main([*line, "--method", "3dsam-adapter"]) == 2
    assert "method 3dsam-adapter needs an image encoder; --encoder none is for sam3d" in capsys.readouterr().err
    assert plan_and_preprocess.main(line) == 0


def test_verification_stops_before_planning_and_can_be_skipped(
    planning: dict[str, Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    from sam3dnet.preprocessing.verify import Problem

    planning["verify_dataset"].result = [
        Problem("warning", "case_1", "spacing", "unusual"),
        Problem("error", "case_2", "labels", "has label 255"),
    ]
    line = ["-d", "501", "--encoder", "tiny", "--device", "cpu"]
    assert plan_and_preprocess.main(line) == 2
    output = capsys.readouterr()
    assert "case_1: unusual" in output.out
    assert "has label 255" in output.err
    assert planning["plan_dataset"].calls == planning["preprocess_dataset"].calls == []
    assert plan_and_preprocess.main([*line, "--skip-verification"]) == 0
    assert len(planning["verify_dataset"].calls) == len(planning["plan_dataset"].calls) == 1
