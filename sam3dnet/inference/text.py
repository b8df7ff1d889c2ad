"""Ask a model that reads text for something in words: the model comes back with one class, the text."""

from dataclasses import replace

import torch

from sam3dnet.errors import PromptError
from sam3dnet.inference.models import LoadedModel
from sam3dnet.network.published.refsam3d import RefSAM3D
from sam3dnet.network.published.text_encoder import embed_phrases

BACKGROUND_CHANNEL = 0


def ask_for_text(model: LoadedModel, text: str, clip_weights: str) -> LoadedModel:
    """Make a model segment what a text says, as label 1, in place of its own classes.

    The text is decided against the model's own phrase for the background.

    Args:
        model: Loaded; its network is changed.
        text: In words, such as "left kidney tumour".
        clip_weights: Weights of the text encoder: a file, or a name that open_clip knows.

    Returns:
        The model, whose labels and dataset.json know the text alone.

    Raises:
        PromptError: If the model reads no text, or was trained for regions, which have no background to decide against.
        CheckpointError: If the weights cannot be had.
    """
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    network = model.network
    if not isinstance(network, RefSAM3D):
        raise PromptError("this model reads no text; plan and train one that does: --method refsam3d --clip-weights W")
    if model.labels.has_regions:
        raise PromptError("this model was trained for regions and has no background to tell a text from; leave it out")
    name = model.plans.plans["sam3d"]["text_model"]
    network.require_words()
    asked_1LT = embed_phrases([text], clip_weights, name)
    background_LT = network.text_KLT[BACKGROUND_CHANNEL].cpu()
    network.ask_for(torch.nn.utils.rnn.pad_sequence([background_LT, asked_1LT[0]], batch_first=True))
    labels = {"background": 0, text: 1}
    dataset_json = {key: value for key, value in model.dataset_json.items() if key != "regions_class_order"}
    return replace(model, labels=LabelManager(labels, None), dataset_json={**dataset_json, "labels": labels})
