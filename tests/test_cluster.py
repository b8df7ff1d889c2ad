"""A real Dask scheduler with two workers: results as in a serial run, and a worker that dies loses nothing."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import pytest
from cascades import LOWRES, make_cascade_model
from cluster_calls import (
    SECONDS_TO_GIVE_UP_AFTER,
    begin_and_wait,
    count_loads,
    count_loads_no_longer,
    die_at_the_first_export,
    hide_the_package,
    hold_the_first_time,
    loaded_models,
    square,
    square_or_die,
    square_or_fail,
    wait_for,
)
from commands import evaluate_folder
from fake_prompts import make_promptable_model, write_prompts
from phantoms import make_raw_dataset
from plans import make_plans
from tiny_models import truncate

from sam3dnet.cli import evaluate as evaluate_command
from sam3dnet.cli import plan_and_preprocess as plan_command
from sam3dnet.cli import predict as predict_command
from sam3dnet.errors import DatasetError
from sam3dnet.inference import predictor
from sam3dnet.planning.fingerprint import load_or_make_fingerprint
from sam3dnet.preprocessing import cluster as cluster_module
from sam3dnet.preprocessing.cluster import DaskCluster, open_cluster
from sam3dnet.preprocessing.folders import VARIABLES, Folders, write_json
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.preprocessing.records import RECORDS_FOLDER
from sam3dnet.preprocessing.verify import verify_dataset
from sam3dnet.preprocessing.workers import Outcome, map_cases

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")

LOCAL = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}  # any free port


@contextmanager
def two_workers() -> Iterator[str]:
    """A scheduler with two workers, each a process that is started again when it dies."""
    with distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1, **LOCAL) as local:
        yield local.scheduler_address


@contextmanager
def opened_when_complete(address: str) -> Iterator[DaskCluster]:
    with open_cluster(address) as opened:
        opened._client.wait_for_workers(2, timeout=SECONDS_TO_GIVE_UP_AFTER)
        yield opened


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with two_workers() as found:
        yield found


@pytest.fixture
def cluster(address: str) -> Iterator[DaskCluster]:
    """Two workers that all tests share, which leave them alive."""
    with opened_when_complete(address) as opened:
        yield opened


@pytest.fixture
def mortal_cluster() -> Iterator[DaskCluster]:
    """Two workers of a test's own, to kill: how soon others take their places is not for other tests to wait for."""
    with two_workers() as address, opened_when_complete(address) as opened:
        yield opened


def test_an_item_that_fails_costs_itself_alone_and_order_is_kept(cluster: DaskCluster) -> None:
    outcomes = map_cases(partial(square_or_fail, 3), [5, 3, 2], cluster, "square", progress=False)
    assert [outcome.item for outcome in outcomes] == [5, 3, 2]
    assert [outcome.result for outcome in outcomes] == [25, None, 4]
    assert isinstance(outcomes[1].error, ValueError)
    assert str(outcomes[1].error) == "cannot square 3"


def test_a_worker_that_dies_while_it_holds_a_case_loses_nothing(mortal_cluster: DaskCluster, tmp_path: Path) -> None:
    run = mortal_cluster.run(partial(hold_the_first_time, tmp_path), list(range(6)))
    done = [next(run)]
    wait_for((tmp_path / "held").exists)
    killed = int((tmp_path / "held").read_text())
    os.kill(killed, signal.SIGKILL)
    done += run
    assert sorted(index for index, _ in done) == list(range(6))
    processes = {outcome.item: outcome.result for _, outcome in done}
    assert processes[1] not in (None, killed)
    assert None not in processes.values()


def test_an_item_that_always_kills_its_worker_costs_itself_alone(mortal_cluster: DaskCluster) -> None:
    (outcome,) = map_cases(partial(square_or_die, 1), [1], mortal_cluster, "square", progress=False)
    assert isinstance(outcome.error, DatasetError)
    assert "several workers died one after the other" in str(outcome.error)
    assert map_cases(partial(square_or_die, 1), [2], mortal_cluster, "square", progress=False) == [Outcome(2, 4, None)]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler and a worker as the command `dask` starts them; give the address and the scheduler."""
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    line = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    started = [subprocess.Popen([*line, "--no-dashboard", "--scheduler-file", str(file)], env=environment)]
    try:
        wait_for(lambda: file.exists() and file.read_text().endswith("}"))  # Dask writes it a piece at a time
        address = json.loads(file.read_text())["address"]
        line = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
        started.append(subprocess.Popen([*line, "--no-dashboard"], env=environment))
        yield address, started[0]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_scheduler_that_dies_ends_the_run(processes: Any, tmp_path: Path) -> None:
    address, scheduler = processes
    with open_cluster(address) as cluster:
        run = cluster.run(partial(begin_and_wait, tmp_path), [0, 1, 2])
        assert next(run) == (0, Outcome(0, 0, None))
        scheduler.kill()
        with pytest.raises(DatasetError, match="scheduler was lost after 1 of 3 cases; start it and run again"):
            next(run)
    (tmp_path / "go on").touch()


def test_a_scheduler_without_the_package_is_named(processes: Any) -> None:
    with open_cluster(processes[0]) as cluster:
        cluster._client.run_on_scheduler(hide_the_package)
        with pytest.raises(DatasetError, match=r"the scheduler: cannot run sam3dnet \(.*ModuleNotFoundError.*install"):
            map_cases(square, [1], cluster, "square", progress=False)


def test_work_that_is_given_up_is_not_begun(cluster: DaskCluster, tmp_path: Path) -> None:
    """As after Ctrl-C: what is at work ends, the rest is cancelled."""
    run = cluster.run(partial(begin_and_wait, tmp_path), list(range(20)))
    assert next(run) == (0, Outcome(0, 0, None))
    run.close()
    (tmp_path / "go on").touch()
    assert map_cases(square, [1, 2, 3, 4], cluster, "square", progress=False)[3].result == 16
    assert len(list(tmp_path.iterdir())) < 10


def contents_of(folder: Path) -> dict[str, bytes]:
    """Give the bytes of all files; of arrays their voxels, since threads write the compressed blocks in any order.

    Records say by which times the raw files are known again, which is left out: they are another dataset's.
    """

    def content(path: Path) -> bytes:
        if path.parent.name == RECORDS_FOLDER:
            return json.dumps(json.loads(path.read_text()) | {"seen": None}).encode()
        return blosc2.open(str(path))[:].tobytes() if path.suffix == ".b2nd" else path.read_bytes()

    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*") if path.is_file()}


NAME = "Dataset902_Cluster"


def make_dataset(root: Path) -> Folders:
    folders = Folders(*(root / variable for variable in VARIABLES))
    make_raw_dataset(folders.raw / NAME, num_cases=3, shape=(5, 9, 8))
    write_json(folders.preprocessed / NAME / "SAM3DPlans.json", make_plans(NAME, ["CTNormalization"]))
    return folders


def test_preprocessing_equals_the_serial_run_and_a_rerun_does_what_is_missing(
    cluster: DaskCluster, tmp_path: Path
) -> None:
    here, there = make_dataset(tmp_path / "here"), make_dataset(tmp_path / "there")
    preprocess_dataset(NAME, here, num_processes=0, progress=False)
    preprocess_dataset(NAME, there, progress=False, cluster=cluster)
    cases = there.preprocessed / NAME / "SAM3DPlans_3d_fullres"
    expected = contents_of(here.preprocessed / NAME)
    assert len(expected) > 12
    assert contents_of(there.preprocessed / NAME) == expected

    before = {path.name: path.stat().st_mtime_ns for path in cases.glob("*.pkl")}
    (cases / "case_1.b2nd").unlink()
    preprocess_dataset(NAME, there, progress=False, cluster=cluster)
    changed = {path.name for path in cases.glob("*.pkl") if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"case_1.pkl"}
    assert contents_of(there.preprocessed / NAME) == expected


def test_verification_finds_the_same_problems(cluster: DaskCluster, tmp_path: Path) -> None:
    raw = make_raw_dataset(tmp_path / NAME, num_cases=3, shape=(5, 9, 8))
    truncate(raw / "imagesTr" / "case_1_0000.nii.gz")
    problems = verify_dataset(raw, 0, progress=False)
    assert "case_1" in {problem.case for problem in problems}
    assert verify_dataset(raw, 0, progress=False, cluster=cluster) == problems


def test_the_fingerprint_equals_the_serial_one(cluster: DaskCluster, tmp_path: Path) -> None:
    here, there = make_dataset(tmp_path / "here"), make_dataset(tmp_path / "there")
    serial, spread = (load_or_make_fingerprint(NAME, at, by, False) for at, by in ((here, 0), (there, cluster)))
    assert serial.pop("sam3d")["classes"] == spread.pop("sam3d")["classes"]
    assert spread == serial


def test_every_step_of_planning_is_given_the_cluster(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sam3dnet.planning import asked, plan, planner, vanished
    from sam3dnet.preprocessing import pipeline, verify

    given = []

    def record(*_arguments: Any, cluster: Any, **_options: Any) -> list[Any]:
        given.append(type(cluster))
        return []

    steps = ((verify, "verify_dataset"), (planner, "plan_dataset"), (pipeline, "preprocess_dataset"))
    for module, name in steps:
        monkeypatch.setattr(module, name, record)
    monkeypatch.setattr(plan, "load_plan", lambda _path: None)
    monkeypatch.setattr(vanished, "tell_vanished", lambda _path, _chosen: None)
    monkeypatch.setattr(plan, "format_decisions", lambda _plan: "")
    monkeypatch.setattr(asked, "choose_configurations", lambda _plan, _asked: ["3d_fullres"])
    monkeypatch.setattr(asked, "tell_stale", lambda _plan, _chosen: None)
    (tmp_path / "nnUNet_raw" / NAME).mkdir(parents=True)
    line = ["-d", "902", "--root", str(tmp_path), "--encoder", "tiny", "--device", "cpu", "--scheduler", address]
    assert plan_command.main(line) == 0
    assert given == [DaskCluster] * 3


def label_maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_prediction_equals_the_serial_run_and_a_rerun_does_what_is_missing(
    cluster: DaskCluster, predict: Any, tmp_path: Path
) -> None:
    predict()
    expected = label_maps(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    report = predict(cluster=cluster)
    assert (report.written, report.skipped, report.failed) == (["a", "b", "c"], [], {})
    assert label_maps(tmp_path / "out") == expected
    assert not list((tmp_path / "out").glob(".sam3d_unfinished*"))

    truncate(tmp_path / "out" / "b.nii.gz")
    report = predict(cluster=cluster)
    assert (report.written, report.skipped) == (["b"], ["a", "c"])
    assert label_maps(tmp_path / "out") == expected


def test_prediction_goes_on_past_a_bad_image_and_obeys_prompts(
    cluster: DaskCluster, predict: Any, images: Path, tmp_path: Path
) -> None:
    truncate(images / "c_0000.nii.gz")
    click = {"points": [{"at": [3, 4, 2]}]}
    options = {
        "model": make_promptable_model(tmp_path / "promptable"),
        "prompts": write_prompts(tmp_path / "prompts.json", {"b": {"lesion": click}}),
        "instance": True,
        "no_mirroring": True,
    }
    serial = predict(**options)
    expected = label_maps(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    report = predict(cluster=cluster, **options)
    assert report == serial
    assert (report.written, list(report.failed)) == (["a", "b"], ["c"])
    assert label_maps(tmp_path / "out") == expected


@pytest.mark.parametrize("stored", [False, True], ids=["first stage on the way", "first stage in a folder"])
def test_both_stages_of_a_cascade_are_predicted_by_the_workers(
    cluster: DaskCluster, predict: Any, tmp_path: Path, stored: bool
) -> None:
    second = make_cascade_model(tmp_path / "cascade")
    options: dict[str, Any] = {"model": second}
    if stored:
        predict(model=second.with_name(f"nnUNetTrainerSAM3D__SAM3DPlans__{LOWRES}"))
        options["prev_stage_predictions"] = (tmp_path / "out").rename(tmp_path / "first")
        truncate(tmp_path / "first" / "c.nii.gz")
    serial = predict(**options)
    expected = label_maps(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    report = predict(cluster=cluster, **options)
    assert report == serial
    assert (report.written, list(report.failed)) == ((["a", "b"], ["c"]) if stored else (["a", "b", "c"], []))
    assert label_maps(tmp_path / "out") == expected
    assert predict(cluster=cluster, **options).skipped == report.written


def test_workers_find_the_model_of_a_file_beside_the_output(
    address: str, predict: Any, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict()
    expected = label_maps(tmp_path / "out")
    packed = shutil.make_archive(str(tmp_path / "model"), "zip", model.parents[1])
    seen, opened = [], predictor.load_stages
    monkeypatch.setattr(
        predictor, "load_stages", lambda folder, *a, **k: seen.append(folder) or opened(folder, *a, **k)
    )
    line = ["-i", str(images), "-o", str(tmp_path / "spread"), "-m", packed, "--device", "cpu", "--scheduler", address]
    assert predict_command.main(line) == 0
    assert label_maps(tmp_path / "spread") == expected
    assert [folder.is_relative_to(tmp_path / "spread") for folder in seen] == [True]
    assert not list((tmp_path / "spread").glob(".sam3d_unfinished*"))


def test_each_worker_loads_the_model_once_and_forgets_it(cluster: DaskCluster, predict: Any, tmp_path: Path) -> None:
    (tmp_path / "loads").mkdir()
    cluster._client.run(count_loads, tmp_path / "loads")
    assert predict(cluster=cluster).written == ["a", "b", "c"]
    cluster._client.run(count_loads_no_longer)
    processes = [path.name.partition("_")[0] for path in (tmp_path / "loads").iterdir()]
    assert len(set(processes)) == len(processes) > 0
    assert set(cluster._client.run(loaded_models).values()) == {0}


def test_prediction_loses_nothing_when_a_worker_dies(mortal_cluster: DaskCluster, predict: Any, tmp_path: Path) -> None:
    predict()
    expected = label_maps(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    mortal_cluster._client.run(die_at_the_first_export, tmp_path / "died")
    assert predict(cluster=mortal_cluster).written == ["a", "b", "c"]
    assert (tmp_path / "died").exists()
    assert label_maps(tmp_path / "out") == expected


def test_evaluation_equals_the_serial_run_from_the_command_line_too(
    cluster: DaskCluster, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, other = (
        make_raw_dataset(tmp_path / f"{NAME}{seed}", num_cases=3, shape=(5, 9, 8), seed=seed) for seed in (0, 1)
    )
    predictions, labels = other / "labelsTr", truth / "labelsTr"
    truncate(predictions / "case_2.nii.gz")
    serial = evaluate_folder(predictions, labels, num_processes=0, progress=False)
    spread = evaluate_folder(predictions, labels, progress=False, cluster=cluster)
    assert repr(spread.cases) == repr(serial.cases)  # some scores are NaN
    assert spread.failed == serial.failed
    assert (list(spread.cases), list(spread.failed)) == (["case_0", "case_1"], ["case_2"])

    line = ["-p", str(predictions), "-g", str(labels), "-o", str(tmp_path / "scores"), "--scheduler", address]
    assert evaluate_command.main(line) == 1
    assert "case case_2:" in capsys.readouterr().err
    assert (tmp_path / "scores" / "results.json").is_file()


def test_a_folder_that_workers_do_not_see_is_named(cluster: DaskCluster, tmp_path: Path) -> None:
    message = r"cannot do the work:(\n  worker tcp://.*: sees no folder .*/elsewhere; put the data.*){2}"
    with pytest.raises(DatasetError, match=message):
        map_cases(square, [1], cluster, "square", progress=False, folders=[tmp_path, tmp_path / "elsewhere"])


def test_another_version_on_the_workers_is_named(cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "version", lambda _package: "9.9")
    with pytest.raises(DatasetError, match=r"worker .*: has sam3dnet 0\..*, not 9\.9; install that there"):
        map_cases(square, [1], cluster, "square", progress=False)


def test_a_scheduler_without_workers_says_how_to_start_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS_TO_WAIT", 1)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, **LOCAL) as local,
        open_cluster(local.scheduler_address) as cluster,
        pytest.raises(DatasetError, match=r"no workers; start some with .*--nthreads 1"),
    ):
        map_cases(square, [1], cluster, "square", progress=False)


def test_workers_with_many_threads_are_refused() -> None:
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, **LOCAL) as local,
        open_cluster(local.scheduler_address) as cluster,
        pytest.raises(DatasetError, match=r"has 2 threads; start it with --nthreads 1"),
    ):
        map_cases(square, [1], cluster, "square", progress=False)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "no such place"])
def test_no_scheduler_at_the_address(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS_TO_WAIT", 1)
    line = ["-p", str(tmp_path), "-g", str(tmp_path), "--scheduler", address]
    assert evaluate_command.main(line) == 2
    assert f"no Dask scheduler answers at {address!r} within" in capsys.readouterr().err


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DatasetError, match=r"pip install sam3dnet\[cluster\]"), open_cluster("tcp://127.0.0.1:9"):
        pass


def test_workers_here_and_there_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    more = ["--workers", "2", "--scheduler", "tcp://127.0.0.1:9"]
    assert evaluate_command.main(["-p", "P", "-g", "G", *more]) == 2
    assert "--workers: not with --scheduler" in capsys.readouterr().err


def test_prediction_from_the_command_line(
    address: str, predict: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders may be relative, though the workers run in others."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    predict()
    assert predict_command.main(["-i", "images", "-o", "spread", "--device", "cpu", "--scheduler", address]) == 0
    assert label_maps(tmp_path / "spread") == label_maps(tmp_path / "out")


def test_a_worker_without_the_package_is_named(mortal_cluster: DaskCluster) -> None:
    """The last that uses these workers, one of which is then of no more use."""
    (first, *_) = mortal_cluster._client.nthreads()
    mortal_cluster._client.run(hide_the_package, workers=[first])
    message = r"cannot do the work:\n  worker \S+: cannot run sam3dnet \(.*ModuleNotFoundError.*install version"
    with pytest.raises(DatasetError, match=message):
        map_cases(square, [1], mortal_cluster, "square", progress=False)
