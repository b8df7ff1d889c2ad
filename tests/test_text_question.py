"""A model that reads text answers it as one class, decided against its background."""

import json
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from sam3dnet.errors import PromptError
from sam3dnet.inference import text as module
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.text import ask_for_text
from sam3dnet.network.published.refsam3d import RefSAM3D
from sam3dnet.network.sam3d import SAM3D

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
ARCH = {"encoder": "tiny", "patch_size": [4, 8, 8], "token_stride": [4, 4, 4], "strides": STRIDES}
QUESTION = "left kidney tumour", "weights"
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def make_model(network, labels=LABELS, order=None):
    return LoadedModel(
        network=network.eval(),
        weights=[],
        checkpoint_files=[],
        plans=SimpleNamespace(plans={"sam3d": {"text_model": "a model"}}),
        configuration=None,
        labels=LabelManager(labels, order),
        dataset_json={"labels": labels, "file_ending": ".nii.gz"},
        mirror_axes=(),
    )


def refsam3d(text):
    torch.manual_seed(0)
    return RefSAM3D(1, 3, text=text, **ARCH)


@pytest.fixture
def embedding(monkeypatch):
    """What CLIP would make of the text; the call is noted."""
    made = SimpleNamespace(value=torch.randn(1, 4, 5), asked=[])
    monkeypatch.setattr(module, "embed_phrases", lambda *given: made.asked.append(given) or made.value)
    return made


def test_the_text_is_the_only_class_and_decided_against_the_background(embedding):
    text = torch.randn(3, 2, 5)
    model = make_model(refsam3d(text.tolist()))
    image = torch.randn(1, 1, 4, 8, 8)
    with torch.no_grad():
        before = model.network(image)
        asked = ask_for_text(model, *QUESTION)
        after = asked.network(image)
    assert embedding.asked == [(["left kidney tumour"], "weights", "a model")]
    assert after.shape[1] == asked.labels.num_segmentation_heads == 2
    assert torch.allclose(after[:, 0], before[:, 0], atol=1e-5)
    assert json.loads(json.dumps(asked.dataset_json))["labels"] == {"background": 0, "left kidney tumour": 1}
    assert model.dataset_json["labels"] == LABELS


def test_models_that_read_no_text_are_refused(embedding):
    with pytest.raises(PromptError, match="reads no text; plan and train one that does"):
        ask_for_text(make_model(SAM3D(1, 3, **ARCH)), *QUESTION)
    with pytest.raises(PromptError, match="no words; plan again with --clip-weights"):
        ask_for_text(make_model(refsam3d(None)), *QUESTION)
    regions = {"background": 0, "all": (1, 2), "lesion": 2}
    with pytest.raises(PromptError, match="trained for regions"):
        ask_for_text(make_model(refsam3d(torch.randn(3, 2, 5).tolist()), regions, [1, 2]), *QUESTION)
    assert not embedding.asked
