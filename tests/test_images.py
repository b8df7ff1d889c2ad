"""Reading ahead: in order, errors where they belong, and no more images at a time than memory allows."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from tiny_models import write_image

from sam3dnet.inference import images
from sam3dnet.inference.images import Case, image_bytes, read_ahead
from sam3dnet.preprocessing.reading import DatasetReader

CASES = [Case(name, ()) for name in "abcdef"]


def read(case):
    if case.name == "c":
        raise ValueError("cannot read c")
    return case.name, threading.get_ident()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_cases_come_in_order_and_errors_with_their_case(ahead):
    seen = list(read_ahead(CASES, read, ahead, lambda case: 1))
    assert [case.name for case, _ in seen] == list("abcdef")
    assert [result.exception() is None for _, result in seen] == [True, True, False, True, True, True]
    here = {result.result()[1] == threading.get_ident() for case, result in seen if case.name != "c"}
    assert here == {ahead == 0}


@pytest.mark.parametrize(
    ("size", "done", "submitted"), [(1, False, "abcd"), (30, False, "a"), (30, True, "ab"), (1000, True, "a")]
)
def test_large_images_are_not_read_ahead(monkeypatch, size, done, submitted):
    """Of 150 bytes, an image that is being read takes four times its size, one that waits its size."""

    class Pool:
        submitted = ""

        def __init__(self, _workers):
            pass

        def submit(self, _read, case):
            Pool.submitted += case.name
            future = Future()
            if done:
                future.set_result((case.name, {}))
            return future

        def shutdown(self, **_options):
            pass

    monkeypatch.setattr(images, "BYTES_AHEAD", 150)
    monkeypatch.setattr(images, "ThreadPoolExecutor", Pool)
    cases = read_ahead(CASES, read, 3, lambda case: size)
    assert next(cases)[0].name == "a"
    assert Pool.submitted == submitted
    assert [case.name for case, _ in cases] == list("bcdef")


def test_the_size_is_that_of_the_finer_grid(tmp_path: Path):
    write_image(tmp_path / "a_0000.nii.gz", shape=(5, 9, 7), spacing=(0.7, 1.1, 3.0))
    case = Case("a", (tmp_path / "a_0000.nii.gz",) * 2)
    assert image_bytes(case, DatasetReader("SimpleITKIO"), (9.0, 9.0, 9.0)) == 2 * 4 * 5 * 9 * 7
    finer = image_bytes(case, DatasetReader("SimpleITKIO"), (1.5, 0.35, 1.1))
    assert finer == pytest.approx(4 * 2 * 4 * 5 * 9 * 7, rel=1e-6)
    (tmp_path / "a_0000.nii.gz").write_bytes(b"no image")
    assert image_bytes(case, DatasetReader("SimpleITKIO"), (1.0, 1.0, 1.0)) == 0
