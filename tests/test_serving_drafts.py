"""Drafts of a dataset that is annotated: since when they are out of date, and who may write them."""

import threading

import numpy as np
import pytest
from tiny_models import write_image

from sam3dnet.annotation.history import Accepted, Found, Removed, Returned, Skipped
from sam3dnet.inference.images import Case
from sam3dnet.serving import case_files
from sam3dnet.serving.case_files import CaseFiles
from sam3dnet.serving.drafts import changed_at
from sam3dnet.serving.leases import AsideError, GoneError, Leases


def happened(*events):
    """Number events, one a second."""
    dated = {number: f"2024-05-01T10:00:{number:02d}+00:00" for number in range(1, len(events) + 1)}
    return [event.model_copy(update={"number": n, "at": dated[n]}) for n, event in enumerate(events, 1)]


def accepted(case, version):
    return Accepted(case=case, version=version, digest=f"{case}{version}")


def found(case, version):
    return Found(case=case, version=version, digest=f"{case}{version}")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([accepted("a", 1), accepted("b", 1), Skipped(case="a")], {"a": 1, "b": 2}),
        ([accepted("a", 1), accepted("b", 1), accepted("a", 2), Returned(to=2)], {"a": 4, "b": 2}),
        ([accepted("a", 1), accepted("b", 1), Returned(to=1)], {"a": 1, "b": 3}),
        ([accepted("a", 1), Returned(to=0), Returned(to=1)], {"a": 3}),
        ([accepted("a", 1), accepted("a", 2), Returned(to=1), Returned(to=2), Returned(to=4)], {"a": 4}),
        ([accepted("a", 1), Removed(case="a")], {"a": 2}),
        ([accepted("a", 1), found("a", 2)], {"a": 2}),
        ([found("a", 1), accepted("a", 2)], {"a": 2}),
        ([found("a", 1), accepted("a", 2), Returned(to=0)], {"a": 3}),
        ([found("a", 1), accepted("b", 1)], {"b": 2}),
    ],
)
def test_since_when_a_case_has_its_label_map(events, expected):
    started = 1714557600  # 2024-05-01T10:00:00 UTC
    assert {case: at - started for case, at in changed_at(happened(*events)).items()} == expected


def test_files_that_are_closed_are_written_no_more_and_a_write_under_way_ends_first(tmp_path, monkeypatch):
    write_image(tmp_path / "a_0000.nii.gz")
    files = CaseFiles(Case("a", (tmp_path / "a_0000.nii.gz",)), None, {}, tmp_path / "drafts", ".nii.gz")
    begun, may_end, order = threading.Event(), threading.Event(), []

    def write_slowly(*_):
        begun.set()
        assert may_end.wait(60)
        order.append("written")

    def close():
        files.close()
        order.append("closed")

    monkeypatch.setattr(case_files, "write_label_map", write_slowly)
    writing = threading.Thread(target=files.write, args=(np.zeros((2, 3, 4), np.uint8), {}, []))
    writing.start()
    assert begun.wait(60)
    closing = threading.Thread(target=close)
    closing.start()
    assert not files.is_closed
    may_end.set()
    for thread in (writing, closing):
        thread.join(60)
    assert order == ["written", "closed"] and files.is_closed
    with pytest.raises(GoneError, match="the work on a has ended here"):
        files.write(np.zeros((2, 3, 4), np.uint8), {}, [])
    assert order == ["written", "closed"]


def test_a_client_whose_work_is_set_aside_is_told_so():
    leases = Leases(3, 600.0)
    aside, other = (leases.claim(None, name, None) for name in ("aside", "other"))
    leases.release(aside.token, aside=True)
    leases.release(other.token)
    with pytest.raises(AsideError, match="set aside"):
        leases.find(aside.token)
    with pytest.raises(GoneError, match="this session has ended") as problem:
        leases.find(other.token)
    assert not isinstance(problem.value, AsideError)
