"""The benchmark of made-up shapes: what its channel and class are called."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from made_up_shapes import description, parse


def test_channel_and_class_have_names_that_can_be_given():
    names = [(a.channel, a.object) for a in (parse(["f"]), parse(["f", "--channel", "MRI", "--object", "tumour"]))]
    assert names == [("made up", "object"), ("MRI", "tumour")]
    assert description("MRI", "tumour", 3) == {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


@pytest.mark.parametrize("name", ["background", "ignore"])
def test_names_that_are_no_class_are_refused(name, capsys):
    with pytest.raises(SystemExit):
        parse(["f", "--object", name])
    assert f"--object {name}: nnU-Net means something else by it; name a class" in capsys.readouterr().err
