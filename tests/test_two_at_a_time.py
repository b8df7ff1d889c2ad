"""Several processes at one folder, and the cores that a job has."""

import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import psutil
import pytest

from sam3dnet.errors import DatasetError
from sam3dnet.inference.writing import SECONDS_TO_RUN, UNFINISHED, remove_abandoned
from sam3dnet.preprocessing import control_groups, cores, free_memory
from sam3dnet.preprocessing.locking import only_one, sole_process
from sam3dnet.settings.prediction import PredictionSettings


def hold(folder: Path, log: Path) -> None:
    with only_one(folder):
        log.write_text("begun")
        while log.read_text() != "end":
            time.sleep(0.01)


def test_the_second_waits_for_the_first_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"
    log.write_text("")
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "dataset", log))
    process.start()
    while log.read_text() != "begun":
        time.sleep(0.01)
        assert process.is_alive()

    class Ending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "another process works at" in record.getMessage():
                log.write_text("end")

    handler = Ending()
    logging.getLogger("sam3dnet.preprocessing.locking").addHandler(handler)
    try:
        with only_one(tmp_path / "dataset"):
            assert log.read_text() == "end"
    finally:
        logging.getLogger("sam3dnet.preprocessing.locking").removeHandler(handler)
    process.join()
    assert "waiting until it has ended" in caplog.text


def test_a_lock_that_nobody_holds_is_taken_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with only_one(tmp_path):
            pass
    assert not caplog.text


def test_another_thread_may_release_a_folder(tmp_path: Path) -> None:
    lock = sole_process(tmp_path, "somebody works here")
    with pytest.raises(DatasetError, match="somebody works here"):
        sole_process(tmp_path, "somebody works here")
    other = Thread(target=lock.release)
    other.start()
    other.join()
    sole_process(tmp_path, "somebody works here").release()


def test_what_another_run_is_writing_is_left_alone(tmp_path: Path) -> None:
    ours = f"{UNFINISHED}{socket.gethostname()}-{os.getpid()}"
    there = f"{UNFINISHED}other-host-1"
    began = psutil.Process().create_time()
    ages = {f"{ours}-new": 0.0, f"{there}-x": 3600.0, f"{there}-lost": SECONDS_TO_RUN + 60}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / f"{ours}-before").mkdir()
    os.utime(tmp_path / f"{ours}-before", (began - 60,) * 2)
    (tmp_path / f"{ours}-long").mkdir()
    os.utime(tmp_path / f"{ours}-long", (began + 1,) * 2)  # all of its images were written then
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{ours}-new", f"{ours}-long", f"{there}-x"}


def test_parts_share_the_images_as_nnunets(predict, tmp_path: Path) -> None:
    written = [predict(num_parts=2, part_id=part).written for part in (0, 1)]
    assert written == [["a", "c"], ["b"]]
    with pytest.raises(DatasetError, match="part 2 of 2: expected a number from 0 below --num-parts"):
        PredictionSettings(input_folder="i", output_folder="o", num_parts=2, part_id=2)


PART = """
import sys
from commands import predict_folder
options = {"num_parts": 2, "part_id": int(sys.argv[4]), "step_size": 0.9}
predict_folder(*map(Path, sys.argv[1:4]), device="cpu", **options)
"""


def test_parts_at_the_same_time_note_all_their_label_maps(predict, images: Path, model: Path, tmp_path: Path) -> None:
    """Those of before were made with other settings; each part makes its own anew and forgets none of the other's."""
    predict()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, "-c", f"from pathlib import Path{PART}", str(images), str(tmp_path / "out"), str(model)]
    parts = [subprocess.Popen([*words, str(part)], env=environment) for part in (0, 1)]
    assert [part.wait(timeout=300) for part in parts] == [0, 0]
    assert predict(step_size=0.9).skipped == ["a", "b", "c"]


def test_threads_follow_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cores_of_job", lambda: 1)
    monkeypatch.setattr(cores, "_affinity", lambda: {0, 1, 2})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    cores.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_more_threads_than_cores_are_no_endless_wait() -> None:
    """As nnU-Net's training asks for them: as many as the machine has cores, whatever the job has."""
    code = """
        import os
        from sam3dnet.preprocessing.cores import limit_threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        limit_threads()
        import torch
        torch.set_num_threads(2)
        image = torch.randn(2, 32, 16, 32, 32, requires_grad=True)
        torch.nn.Conv3d(32, 32, 3)(image).sum().backward()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_of_the_job() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.cores_of_job() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/job", {"cpu.max": "max 100000", "job/cpu.max": "250000 100000"}, 2.5),
        ("0::/job/step", {"job/cpu.max": "100000 100000", "job/step/cpu.max": "400000 100000"}, 1.0),
        ("3:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "100000"}, 1.5),
        ("3:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
    ],
)
def test_the_quota_of_a_group_and_of_those_that_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], quota: float | None
) -> None:
    (tmp_path / "membership").write_text(f"7:memory:/x\n{membership}\n")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    assert cores._quota() == quota
    monkeypatch.setattr(cores, "_affinity", lambda: set(range(64)))
    assert cores.cores_of_job() == (64 if quota is None else -int(-quota // 1))


FREE, NO_LIMIT = 50_000, str(2**63 - 4096)


@pytest.mark.parametrize(
    ("membership", "files", "free"),
    [
        ("0::/job", {"job/memory.max": "10000", "job/memory.current": "7000"}, 3500),
        ("0::/job", {"job/memory.max": "max", "job/memory.current": "7000"}, FREE),
        ("0::/job", {"memory.max": "8000", "memory.current": "7600", "job/memory.max": "max"}, 900),
        ("0::/job", {"job/memory.max": "7000", "job/memory.current": "9000"}, 0),
        (
            "4:memory:/job",
            {"memory/job/memory.limit_in_bytes": "9000", "memory/job/memory.usage_in_bytes": "100"},
            9400,
        ),
        ("4:memory:/", {"memory/memory.limit_in_bytes": NO_LIMIT, "memory/memory.usage_in_bytes": "100"}, FREE),
        ("0::/job", {"job/memory.max": "nonsense", "job/memory.current": "7000"}, FREE),
    ],
)
def test_memory_is_what_the_job_may_still_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], free: int
) -> None:
    """Copies of files (500 bytes) are given up before anything fails."""
    (tmp_path / "membership").write_text(f"7:cpu:/x\n{membership}\n")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
        key = "total_inactive_file" if "limit_in_bytes" in str(list(files)) else "inactive_file"
        (tmp_path / name).with_name("memory.stat").write_text(f"anon 77\n{key} 500\nactive_file 9\n")
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    assert free_memory.free_memory() == free
