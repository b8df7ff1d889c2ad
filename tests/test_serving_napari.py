"""The real napari with its real plugin, driven as by a user; where it is installed and there is a display.

    pip install napari pyqt6 napari-nninteractive
    PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 xvfb-run -a -s "-screen 0 1400x900x24 +extension GLX" \\
        python -m pytest -p pytest_timeout tests/test_serving_napari.py
"""

import os
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from fake_prompts import make_promptable_model
from served import serving
from tiny_models import SHAPE_ZYX, write_image
from viewers import SPACING_ZYX, array_of

from sam3dnet.model import load_model

with warnings.catch_warnings():  # of packages that are not ours
    warnings.simplefilter("ignore")
    napari = pytest.importorskip("napari")
    plugin = pytest.importorskip("napari_nninteractive.widget_main")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not os.environ.get("DISPLAY"), reason="napari wants a display, such as xvfb-run's"),
]

POINT, BOX, SCRIBBLE, LASSO = range(4)  # the plugin's tools


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Somebody with an image in napari, connected to a server of a class, and a session of their own."""
    from qtpy.QtWidgets import QApplication

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = make_promptable_model(tmp_path / "results")
    write_image(tmp_path / "a_0000.nii.gz", seed=3)
    image = array_of(tmp_path / "a_0000.nii.gz")
    session = load_model(model, device="cpu").session()
    session.set_image(image, SPACING_ZYX)
    with serving(model) as served:
        viewer = napari.Viewer(show=False)
        viewer.add_image(image, name="image", scale=SPACING_ZYX)
        widget = plugin.nnInteractiveWidget(viewer)

        def wait_for(condition):
            end = time.monotonic() + 60
            while not condition():
                assert time.monotonic() < end
                QApplication.instance().processEvents()
                time.sleep(0.01)

        widget.server_url_edit.setText(f"{served.url}/lesion")
        widget.image_selection.setCurrentText("image")
        widget.on_init()
        wait_for(lambda: widget.session is not None and widget._scribble_brush_size == 1)  # its last step

        def choose(tool):
            widget.interaction_button._check(tool)
            widget.on_interaction_selected()
            return viewer.layers[widget.layer_dict[tool]]

        def mask():
            QApplication.instance().processEvents()
            return np.asarray(viewer.layers[widget.label_layer_name].data) > 0

        yield SimpleNamespace(widget=widget, viewer=viewer, session=session, choose=choose, mask=mask)
        widget._release_session()
        viewer.close()


def test_each_tool_gives_the_mask_of_a_session(user):
    assert "class: lesion" in user.widget.session.license
    user.widget.on_run()
    np.testing.assert_array_equal(user.mask(), user.session.mask("lesion"))

    user.choose(POINT).add(np.array([[2.0, 4.0, 3.0]]))
    np.testing.assert_array_equal(user.mask(), user.session.click((3, 4, 2), class_name="lesion"))
    user.widget.on_undo()
    np.testing.assert_array_equal(user.mask(), user.session.undo())

    user.viewer.dims.set_point(0, 2 * SPACING_ZYX[0])
    pencil = user.choose(SCRIBBLE)
    pencil.brush_size = pencil.selected_label = 1
    with pencil.block_history():
        for y in range(2, 7):
            pencil.paint((2, y, 3), 1)
    expected = user.session.scribble([(3, y, 2) for y in range(2, 7)], class_name="lesion")
    np.testing.assert_array_equal(user.mask(), expected)
    user.widget.on_undo()
    np.testing.assert_array_equal(user.mask(), user.session.undo())

    corners = np.array([[2, 2, 1], [2, 2, 5], [2, 6, 5], [2, 6, 1]], float)
    user.choose(BOX).add(corners, shape_type="rectangle")
    boxed = user.mask()
    assert not np.array_equal(boxed, user.session.mask("lesion"))
    user.widget.on_undo()
    np.testing.assert_array_equal(user.mask(), user.session.mask("lesion"))

    user.choose(LASSO).add(corners, shape_type="polygon")
    assert not np.array_equal(user.mask(), user.session.mask("lesion"))
    user.widget.on_reset_interactions()
    assert not user.mask().any()
    assert user.mask().shape == SHAPE_ZYX
