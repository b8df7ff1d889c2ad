"""The automatic network as ONNX: the same logits, and by the example, with numpy alone, the same label maps."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import SimpleITK as sitk
import torch
from cascades import make_cascade_model
from tiny_models import LABELS, REGIONS, labels_of, make_model

from sam3dnet.cli import export as export_command
from sam3dnet.cli.export import export
from sam3dnet.cli.predict import predict
from sam3dnet.errors import CheckpointError
from sam3dnet.inference.models import load_model
from sam3dnet.inference.postprocessing import Postprocessing, write_postprocessing
from sam3dnet.inference.small_objects import MinVolume
from sam3dnet.network import attention as attention_module
from sam3dnet.network.attention import Attention3D
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.portable import onnx_file

EXAMPLE = Path(__file__).parents[1] / "docs" / "onnx_example.py"
LONGEST_EXAMPLE = 60  # lines that are not empty
WITHOUT_TORCH = """
import sys, runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"torch", "scipy", "sam3dnet", "nnunetv2"} & set(sys.modules)
"""


def run_example(model, image, spacing, out):
    """Run the example as a user without torch does."""
    np.save(out.with_name("image.npy"), image)
    words = [EXAMPLE, model.with_suffix(".json"), out.with_name("image.npy"), " ".join(map(str, spacing)), out]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(out)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_the_example_segments_as_sam3d_predict_does(tmp_path, images, labels):
    model = make_model(tmp_path / "results", folds=(0, 1), labels=labels)
    predict(input_folder=images, output_folder=tmp_path / "out", model_folder=model, device="cpu")
    file = Path(export(output=tmp_path / "new" / "tiny.onnx", model_folder=model))
    for case in ("a", "b", "c"):
        image = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        found = run_example(file, sitk.GetArrayFromImage(image)[None], image.GetSpacing()[::-1], tmp_path / "out.npy")
        expected = labels_of(tmp_path / "out" / f"{case}.nii.gz")
        assert len(np.unique(expected)) > 1
        assert np.mean(found == expected) > 0.995  # a logit of nearly 0 may be rounded to either side


def test_the_example_is_short():
    code = EXAMPLE.read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line]) <= LONGEST_EXAMPLE


def test_it_is_whole_or_not_there(tmp_path, monkeypatch):
    model = make_model(tmp_path / "results", folds=(0,))
    monkeypatch.setattr(onnx_file, "compare", lambda *_: (_ for _ in ()).throw(CheckpointError("differ")))
    with pytest.raises(CheckpointError, match="differ"):
        export(output=tmp_path / "m.onnx", model_folder=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_what_is_done_before_and_after_is_plain_data(tmp_path, capsys):
    model = make_model(tmp_path / "results", folds=(0, 1))
    described = json.loads((model / "dataset.json").read_text())
    small = MinVolume(labels=(2,), up_to_mm3=4.5)
    write_postprocessing(model, Postprocessing(((1,),), (small,)), described, {})
    words = ["-m", str(model), "-o", str(tmp_path / "m.onnx"), "-f", "1", "--licence", "CC0"]
    assert export_command.main(words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"m\.onnx: 0\.0 MB; m\.json beside it says what is done before and after", shown)
    assert "m.json says no intended-use" in shown and "says no licence" not in shown
    said = json.loads((tmp_path / "m.json").read_text())
    assert said["format"] == "sam3dnet-onnx/1" and said["opset"] == 18 and said["licence"] == "CC0"
    assert said["sha256"] == onnx_file.digest_of(tmp_path / "m.onnx")
    assert (said["input"]["shape"], said["output"]["shape"]) == ([1, 1, 4, 8, 6], [1, 3, 4, 8, 6])
    assert said["transpose"] == [2, 0, 1] and said["spacing_mm"] == [0.8, 2.5, 1.0]
    assert said["resampling"]["order_of_images"] == 1
    assert [one["scheme"] for one in said["normalisation"]] == ["standardise_image"]
    assert (said["keep_largest"], said["min_volumes"]) == ([[1]], [{"labels": [2], "up_to_mm3": 4.5}])
    assert said["label_of_channel"] == [0, 1, 2] and said["labels_in_order"] is None
    assert max(one.version for one in onnx.load(tmp_path / "m.onnx").opset_import if one.domain == "") == 18
    with pytest.raises(CheckpointError, match=r"m\.onnx is there already"):
        export(output=tmp_path / "m.onnx", model_folder=model)
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"m\.json is there already"):
        export(output=tmp_path / "m.onnx", model_folder=model)


@pytest.mark.parametrize("encoder", ["none", "tiny"])
@pytest.mark.parametrize("half_frozen", [False, True])
def test_logits_of_our_network_are_torchs(tmp_path, encoder, half_frozen):
    """Windows with padding, shifted ones, attention in parts: all that a plan may contain."""
    torch.manual_seed(0)
    shape, strides = (1, 2, 24, 40, 40), [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    network = SAM3D(
        2,
        3,
        encoder=encoder,
        patch_size=shape[2:],
        token_stride=(4, 8, 8),
        strides=strides,
        prompts=True,
        fitted_windows=encoder == "none",
        pretrained=encoder != "none",
        half_frozen=half_frozen,
    ).eval()
    crop = torch.randn(shape)
    mean = onnx_file.MeanOfFolds([network])
    onnx_file.convert(mean, crop, tmp_path / "n.onnx")
    assert onnx_file.compare(mean, crop, tmp_path / "n.onnx") < 1e-3


def test_what_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "cascade").mkdir()
    second = make_cascade_model(tmp_path / "cascade")
    with pytest.raises(CheckpointError, match="a cascade's second stage needs what the first one said"):
        export(output=tmp_path / "m.onnx", model_folder=second)
    model = make_model(tmp_path / "results", folds=(0,))
    with pytest.raises(CheckpointError, match=r"--half is for \.zip files"):
        export(output=tmp_path / "m.onnx", model_folder=model, half=True)
    with pytest.raises(CheckpointError, match="cannot be expressed in ONNX"):
        onnx_file.convert(Untraceable(), torch.zeros(1, 1, 4, 4, 4), tmp_path / "m.onnx")
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 10)
    with pytest.raises(CheckpointError, match="do not fit into an ONNX file"):
        export(output=tmp_path / "m.onnx", model_folder=model)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(CheckpointError, match=r"ONNX needs onnxscript; install it: pip install 'sam3dnet\[onnx\]'"):
        export(output=tmp_path / "m.onnx", model_folder=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cascade", "results"]


class Untraceable(torch.nn.Module):
    """A network that looks at values."""

    def forward(self, x):
        return x if float(x.sum()) > 0 else -x


def test_other_logits_are_refused(tmp_path):
    model = make_model(tmp_path / "results", folds=(0, 1))
    network = onnx_file.MeanOfFolds([load_model(model, [fold]).network for fold in (0, 1)])
    crop = torch.randn(1, 1, 4, 8, 6)
    onnx_file.convert(network, crop, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"image": crop.numpy()})[0], network(crop).numpy(), atol=1e-3)
        network.networks[0].last.bias += 1
    with pytest.raises(CheckpointError, match=r"logits by ONNX differ from torch's by 0\.5"):
        onnx_file.compare(network, crop, tmp_path / "m.onnx")


def test_scores_of_attention_are_stored_for_few_queries_at_a_time(tmp_path, monkeypatch):
    torch.manual_seed(0)
    attention, tokens = Attention3D(16, 2, (4, 4, 4)).eval(), torch.randn(1, 4, 5, 6, 16)
    for name in ("rel_pos_d", "rel_pos_h", "rel_pos_w"):
        torch.nn.init.normal_(getattr(attention, name))
    expected = attention(tokens)
    largest = {}
    for limit in (1 << 24, 1 << 14):
        monkeypatch.setattr(attention_module, "BYTES_AT_A_TIME", limit)
        onnx_file.convert(attention, tokens, tmp_path / f"{limit}.onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / f"{limit}.onnx"))
        np.testing.assert_allclose(session.run(None, {"image": tokens.numpy()})[0], expected.detach(), atol=1e-5)
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / f"{limit}.onnx")).graph
        scores = [node.output[0] for node in graph.node if node.op_type == "Softmax"]
        shapes = {one.name: [part.dim_value for part in one.type.tensor_type.shape.dim] for one in graph.value_info}
        largest[limit] = max(np.prod(shapes[name]) for name in scores)
    assert largest[1 << 24] == 2 * 120 * 120
    assert largest[1 << 14] <= 2 * 120 * 17  # versions share queries differently
