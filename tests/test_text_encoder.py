"""Phrases: whose they are, and what CLIP's text encoder makes of them."""

import json
import pickle
import sys

import pytest
import torch

from sam3dnet.errors import CheckpointError, DatasetError, Sam3dError
from sam3dnet.network.published import text_encoder
from sam3dnet.network.published.text_encoder import as_plan_values, class_phrases, embed_phrases, make_clip

CLASSES = ["background", "liver", "left_kidney"]


def test_phrases_come_from_the_file_then_dataset_json_then_the_name(tmp_path):
    assert class_phrases(CLASSES, {})[2] == "perform left kidney segmentation"
    dataset_json = {"phrases": {"liver": "the liver"}}
    assert class_phrases(CLASSES, dataset_json)[1] == "the liver"
    (tmp_path / "phrases.json").write_text(json.dumps({"background": "all else"}))
    phrases = class_phrases(CLASSES, dataset_json, tmp_path / "phrases.json")
    assert phrases[:2] == ["all else", "perform liver segmentation"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"spleen": "x"}', "no class 'spleen'; the dataset has background, liver"),
        ('["x"]', "expected"),
        ('{"liver": 1}', "expected"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_wrong_phrases_are_refused(content, message, tmp_path):
    (tmp_path / "phrases.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        class_phrases(CLASSES, {}, tmp_path / "phrases.json")
    with pytest.raises(DatasetError, match="not found; give a JSON file"):
        class_phrases(CLASSES, {}, tmp_path / "nothing.json")


@pytest.fixture
def tiny_clip(monkeypatch):
    """open_clip's own model in a tiny size, with its own tokenizer."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 16, "patch_size": 8, "layers": 1, "width": 64},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
    ).eval()
    torch.nn.init.normal_(clip.text_projection)
    monkeypatch.setattr(text_encoder, "make_clip", lambda model, weights: (clip, open_clip.get_tokenizer("ViT-B-16")))
    return clip


@pytest.mark.filterwarnings("ignore")  # those of open_clip's imports
def test_every_word_and_the_sentence_are_embedded(tiny_clip):
    text = embed_phrases(["liver", "left kidney"], "weights")
    assert text.shape == (2, 3, 8)
    assert (text[0, 2:] == 0).all()
    assert (text[1].abs().sum(-1) > 0).all()
    alone = embed_phrases(["liver"], "weights")
    assert torch.allclose(text[:1, :2], alone, atol=1e-5)
    tokens = text_encoder.make_clip("", "")[1](["liver"])
    with torch.no_grad():
        assert torch.allclose(alone[0, -1], tiny_clip.encode_text(tokens)[0], atol=1e-5)
    other = embed_phrases(["kidney"], "weights")
    assert not torch.allclose(alone, other, atol=1e-2)
    values = as_plan_values(alone)
    assert torch.allclose(torch.tensor(json.loads(json.dumps(values))), alone, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # those of open_clip's imports
def test_missing_weights_and_packages_are_said(monkeypatch):
    open_clip = pytest.importorskip("open_clip")

    def fail(model, pretrained):
        raise pickle.UnpicklingError(f"{pretrained} is no pickle")

    monkeypatch.setattr(open_clip, "create_model", fail)
    with pytest.raises(CheckpointError, match=r"'clip\.pt' for ViT-B-16 cannot be had \(clip\.pt is no pickle\)"):
        make_clip("ViT-B-16", "clip.pt")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(Sam3dError, match=r"pip install sam3dnet\[text\]"):
        make_clip("ViT-B-16", "openai")
