"""The commands: options come from signatures and reach their functions; what users get wrong is one clear line."""

import argparse
import errno
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import sam3dnet
from sam3dnet.cli import check, demo, info, plan_and_preprocess, predict, train, verify
from sam3dnet.cli.command import SHARED_OPTIONS, make_parser, run_command
from sam3dnet.errors import FailedCasesError, PlanError, Sam3dError
from sam3dnet.preprocessing.folders import parse_fold
from sam3dnet.settings.prediction import PredictionSettings
from sam3dnet.settings.training import TrainingSettings

WORKERS = {
    "sam3d_plan_and_preprocess": plan_and_preprocess.plan_and_preprocess,
    "sam3d_train": train.train,
    "sam3d_predict": predict.predict,
    "sam3d_verify": verify.verify,
    "sam3d_info": info.info,
    "sam3d_demo": demo.demo,
    "sam3d_check": check.check,
}


def example(
    case: str,
    *,
    paths: Annotated[list[Path], "-p"],
    share: float = 0.5,
    count: int | None = None,
    kind: Literal["fine", "coarse"] = "fine",
    twice: Annotated[bool, "-again"] = False,
) -> dict[str, Any]:
    """Do something.

    Args:
        case: Name of a case,
            on two lines.
        paths: Files.
        share: A share, 50 % of it.
        count: How many.
        kind: Which.
        twice: Once more.

    Returns:
        The arguments.
    """
    return locals()


def test_options_have_the_types_of_the_signature() -> None:
    parser = make_parser(example, "example")
    given = parser.parse_args(["a", "-p", "x", "y", "--share", "0.25", "--count", "3", "--kind", "coarse", "-again"])
    assert {name: value for name, value in vars(given).items() if name not in SHARED_OPTIONS} == {
        "case": "a",
        "paths": [Path("x"), Path("y")],
        "share": 0.25,
        "count": 3,
        "kind": "coarse",
        "twice": True,
    }
    defaults = parser.parse_args(["a", "--paths", "x"])
    assert (defaults.share, defaults.count, defaults.kind, defaults.twice) == (0.5, None, "fine", False)


def test_help_is_the_docstring() -> None:
    text = " ".join(make_parser(example, "example").format_help().split())
    assert "Do something. positional arguments: case Name of a case, on two lines" in text
    assert "--share X A share, 50 % of it (default: 0.5)" in text
    assert "The arguments" not in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a", "required: -p/--paths"),
        ("a -p x --sharp 1", "unrecognized arguments: --sharp 1 (did you mean --share?)"),
        ("a -p x --shar=1", "unrecognized arguments: --shar=1 (did you mean --share?)"),
        ("a -p x --zzz", "unrecognized arguments: --zzz; example --help"),
        ("a -p x --count 1.5", "argument --count: invalid int value: '1.5'"),
        ("a -p x --kind thick", "invalid choice: 'thick'"),
    ],
)
def test_wrong_options_fail_in_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser(example, "example").parse_args(line.split())
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        make_parser(example, "example").parse_args(["--version"])
    assert capsys.readouterr().out == f"example of sam3dnet {sam3dnet.__version__}\n"


@pytest.mark.parametrize("prog", WORKERS)
def test_every_parameter_is_an_option_with_help(prog: str) -> None:
    actions = [action for action in make_parser(WORKERS[prog], prog)._actions if action.dest not in ("help", "version")]
    assert [action.dest for action in actions] == [*inspect.signature(WORKERS[prog]).parameters, *SHARED_OPTIONS]
    assert all(action.help and action.help != argparse.SUPPRESS for action in actions)


@pytest.mark.parametrize(
    ("text", "fold"), [("fold0", 0), ("fold_3", 3), ("4", 4), ("12", 12), ("all", "all"), ("fold_all", "all")]
)
def test_fold_is_read(text: str, fold: int | str) -> None:
    assert parse_fold(text) == fold


@pytest.mark.parametrize("text", ["-1", "fold", "1.0", "folds0", "All", ""])
def test_other_folds_are_refused(text: str) -> None:
    with pytest.raises(Sam3dError, match="expected fold0 to fold4, 0 to 4, or all"):
        parse_fold(text)


def raising(error: BaseException) -> int:
    def work() -> None:
        """Fail."""
        raise error

    return run_command(work, "work", [])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PlanError("no plan; make one"), 2, "work: no plan; make one\n"),
        (FailedCasesError("1 of 2 cases failed, b"), 1, "work: 1 of 2 cases failed, b\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "work: /x: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "work: /x: No space left on device\n"),
        (KeyboardInterrupt(), 130, "work: interrupted\n"),
    ],
)
def test_what_users_cause_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("bug", [ValueError("a bug of ours"), FileNotFoundError(errno.ENOENT, "a bug of ours")])
def test_our_own_bugs_keep_their_traceback(bug: Exception) -> None:
    with pytest.raises(type(bug), match="a bug of ours"):
        raising(bug)


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
    more = "--device cpu --sam-checkpoint w.pth --from-scratch --workers 0 --tensorboard --wandb -p Other"
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
    )
    assert recorder.calls == [((expected, places), {})]


def test_validate_only_reaches_the_validation_with_its_checkpoint(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.training import run

    monkeypatch.setattr(run, "train_fold", lambda *a, **k: pytest.fail("it was trained"))
    monkeypatch.setattr(run, "validate_fold", recorder := Recorder())
    line = "907 fold1 --validate-only --checkpoint best --configuration C -p P --device cpu --workers 0"
    assert train.main([*line.split(), "--root", "R"]) == 0
    options = {"configuration": "C", "plans": "P", "checkpoint": "best", "device": "cpu", "num_processes": 0}
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


def test_options_of_predict_reach_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.inference import predictor
    from sam3dnet.interactive import run_prompts

    monkeypatch.setattr(run_prompts, "prompt_reader", lambda *given: given)
    monkeypatch.setattr(predictor, "predict_folder", recorder := Recorder(predictor.PredictionReport()))
    line = "-i in -o out -d 501 -f 0 fold2 --configuration 3d_lowres --device cpu --step-size 0.75 --no-mirroring"
    more = "--checkpoint checkpoint_best.pth --workers 0 --prompts p.json --instance -p Other --text liver -m folder"
    assert predict.main([*line.split(), *more.split(), "--clip-weights", "c.pt"]) == 0
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
    )
    assert recorder.calls == [((expected, (Path("p.json"), True)), {})]


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
    from sam3dnet.planning import plan, planner
    from sam3dnet.planning.encoder import SamWeights
    from sam3dnet.preprocessing import pipeline, verify

    recorders = {
        "verify_dataset": Recorder([]),
        "plan_dataset": Recorder(Path("SAM3DPlans.json")),
        "load_plan": Recorder(),
        "format_decisions": Recorder("the table"),
        "preprocess_dataset": Recorder(),
        "weights_for_plan": Recorder(SamWeights({"name": "w.pth"})),
        "check_named_file": Recorder(),
    }
    for name, recorder in recorders.items():
        for module in (weights_file, plan, planner, pipeline, verify):
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
    assert plan_and_preprocess.main(line.split()) == 0
    names = ["Dataset501_X", "Dataset502_X"]
    assert [args for args, _ in planning["verify_dataset"].calls] == [(places.raw / name, 0) for name in names]
    for name, (args, options) in zip(names, planning["plan_dataset"].calls, strict=True):
        assert args == (name,)
        assert callable(options.pop("cost")) and callable(options.pop("operations"))
        assert options.pop("find_weights")("vit_b", True).record == {"name": "w.pth"}
        assert options == {
            "choice": choice,
            "folders": places,
            "gpu_memory_target_gb": 7.5,
            "encoder": "vit_b",
            "device": "cpu",
            "num_processes": 0,
            "cluster": None,
        }
    preprocessed = [((name, places, choice.plans_name), {"num_processes": 0, "cluster": None}) for name in names]
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


def run(command: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in which no variable of nnU-Net's is set but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    module = f"sam3dnet.cli.{command.removeprefix('sam3d_')}"
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, env=kept | variables, capture_output=True, text=True, check=False)


def assert_user_error(finished: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert exit status 2 and a message without traceback that names these parts."""
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    for part in parts:
        assert part in finished.stderr


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one raw dataset of which no case is read here."""
    folder = tmp_path / "root" / "nnUNet_raw" / "Dataset907_Bare"
    folder.mkdir(parents=True)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return tmp_path / "root"


@pytest.fixture
def planned_root(root: Path) -> Path:
    """The same, with a plan and the name of a preprocessed case."""
    folder = root / "nnUNet_preprocessed" / "Dataset907_Bare"
    (folder / "cases").mkdir(parents=True)
    (folder / "cases" / "case_0.pkl").touch()
    plans = {"plans_name": "SAM3DPlans", "dataset_name": "Dataset907_Bare"}
    plans |= {"configurations": {"3d_fullres": {"data_identifier": "cases"}}}
    (folder / "SAM3DPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_bytes((root / "nnUNet_raw" / "Dataset907_Bare" / "dataset.json").read_bytes())
    return root


LINES = {
    "sam3d_plan_and_preprocess": ["-d", "907"],
    "sam3d_train": ["907", "0"],
    "sam3d_predict": ["-i", "images", "-o", "out"],
}


@pytest.mark.parametrize("command", LINES)
def test_unset_variables(command: str) -> None:
    finished = run(command, *LINES[command], nnUNet_raw="somewhere")
    assert_user_error(finished, "export nnUNet_preprocessed=", "export nnUNet_results=", "--root")


@pytest.mark.parametrize("command", ["sam3d_plan_and_preprocess", "sam3d_train"])
def test_no_such_dataset(command: str, root: Path) -> None:
    before = files_below(root)
    line = [argument.replace("907", "908") for argument in LINES[command]]
    assert_user_error(run(command, *line, "--root", root), "908", "Dataset907_Bare")
    assert files_below(root) == before


def test_training_before_planning(root: Path) -> None:
    finished = run("sam3d_train", 907, "fold0", "--root", root)
    assert_user_error(finished, "Dataset907_Bare", "sam3d_plan_and_preprocess -d")
    assert files_below(root) == files_below(root / "nnUNet_raw")


def test_fold_9(planned_root: Path) -> None:
    before = files_below(planned_root)
    finished = run("sam3d_train", 907, "fold9", "--root", planned_root, "--device", "cpu")
    assert_user_error(finished, "fold 9", "0 to 4", "all")
    assert files_below(planned_root) == before


def test_predicting_without_a_model(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions"
    finished = run("sam3d_predict", "-i", tmp_path, "-o", output, "--root", root)
    assert_user_error(finished, "nnUNet_results", "sam3d_train")
    assert not output.exists()


def test_unwritable_root(root: Path) -> None:
    """A file where a folder should be: also the superuser cannot write there."""
    (root / "nnUNet_preprocessed").touch()
    finished = run("sam3d_plan_and_preprocess", "-d", 907, "--root", root)
    assert_user_error(finished, "nnUNet_preprocessed")
    assert files_below(root) == {*files_below(root / "nnUNet_raw"), root / "nnUNet_preprocessed"}


def test_unwritable_output_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finished = run("sam3d_demo", "--output", tmp_path / "file" / "demo")
    assert_user_error(finished, str(tmp_path / "file"))


def test_info_tells_versions_folders_and_models(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = root / "nnUNet_results" / "Dataset907_Bare" / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    for fold in ("fold_0", "fold_3"):
        (model / fold).mkdir(parents=True)
        (model / fold / "checkpoint_final.pth").touch()
    (model / "plans.json").write_text("{}", encoding="utf-8")
    lines = [" ".join(line.split()) for line in info.info(root=root)]
    assert f"nnUNet_raw {root / 'nnUNet_raw'}" in lines
    assert "Dataset907_Bare/nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres folds 0 3" in lines
    assert any(line.startswith("torch 2.") for line in lines)
    assert any(line.startswith("cpu ") for line in lines)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "nnUNet_raw not set" in [" ".join(line.split()) for line in info.info()]


def test_ext_trainer_is_one_line() -> None:
    finished = run("sam3d_info", "--ext-trainer")
    assert finished.stdout == f"{info.ext_trainer_folder()}\n"
    assert finished.stderr == ""
