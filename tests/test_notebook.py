"""The notebook of the documentation, run cell by cell, and the picture that it shows."""

import io
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from fake_prompts import make_promptable_model
from tiny_models import write_image

from sam3dnet.interactive.planes import PREDICTION_COLOUR
from sam3dnet.model import load_model

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def is_outlined(png):
    """Tell whether a picture has voxels in the colour of an outline."""
    shown = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    wanted = np.array([int(PREDICTION_COLOUR[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return bool((np.abs(shown - wanted).max(-1) < 0.1).any())


def test_the_notebook_runs(tmp_path, capsys):
    model = make_promptable_model(tmp_path / "results")
    write_image(tmp_path / "a_0000.nii.gz", seed=3)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names, pictures = {}, []
    for number, cell in enumerate(cells):
        *lines, last = "".join(cell["source"]).rstrip().split("\n")
        if number == 0:
            names |= {"MODEL": model, "IMAGE": str(tmp_path / "a_0000.nii.gz"), "CLASS": "lesion"}
            continue
        exec("\n".join(lines), names)
        pictures.append(eval(last, names))
    assert all(picture._repr_png_().startswith(b"\x89PNG") for picture in pictures[:2])
    assert capsys.readouterr().out.startswith("(5, 9, 7)")


@pytest.mark.parametrize("as_array", [False, True])
def test_the_picture_outlines_the_mask(tmp_path, as_array):
    session = load_model(make_promptable_model(tmp_path / "results"), device="cpu").session()
    write_image(tmp_path / "a_0000.nii.gz", seed=3)
    if as_array:
        session.set_image(np.random.default_rng(0).normal(size=(5, 9, 7)), (3.0, 1.1, 0.7))
    else:
        session.set_image(tmp_path / "a_0000.nii.gz")
    session.set_mask(np.zeros((5, 9, 7), bool), "lesion")
    for positive in (True, False):
        mask = session.click((3, 4, 2), positive, "lesion")
        assert mask[2, 4, 3] == positive
    session.click((3, 4, 2), True, "lesion")
    session.picture("lesion").save(tmp_path / "picture.png")
    assert is_outlined((tmp_path / "picture.png").read_bytes())
