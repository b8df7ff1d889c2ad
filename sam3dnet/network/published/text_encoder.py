"""Phrases as embeddings of CLIP's text encoder, through open_clip (an optional package), and the phrases of classes.

Axes in names: K phrases, L words and one sentence, T text width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam3dnet.errors import CheckpointError, DatasetError, Sam3dError
from sam3dnet.preprocessing.json_files import read_json

CLIP_MODEL = "ViT-B-16"
PHRASE = "perform {name} segmentation"  # RefSAM3D's example, with the class's name in it
BACKGROUND_PHRASE = PHRASE.format(name="background")
DIGITS = 5  # of an embedding in a plan
NOT_WORDS = 2  # CLIP puts a token before and one after the words


def class_phrases(
    class_names: Sequence[str], dataset_json: Mapping[str, Any], phrases_file: Path | None = None
) -> list[str]:
    """Give a phrase for every class: from a file, else from "phrases" in dataset.json, else made from its name.

    Args:
        class_names: Of the outputs, in their order; "background" among them where it is one.
        dataset_json: Of the dataset.
        phrases_file: JSON file, {"class name": "phrase"}; classes may be missing.

    Raises:
        DatasetError: If the phrases are not text, or of a class that there is not.
    """
    where = phrases_file or 'dataset.json, "phrases"'
    remedy = "give a JSON file with a phrase for each class"
    given = read_json(phrases_file, DatasetError, remedy) if phrases_file else dataset_json.get("phrases", {})
    if not isinstance(given, Mapping) or not all(isinstance(phrase, str) for phrase in given.values()):
        raise DatasetError(f'{where}: expected {{"class name": "phrase"}}')
    unknown = [name for name in given if name not in class_names]
    if unknown:
        raise DatasetError(f"{where}: there is no class {unknown[0]!r}; the dataset has {', '.join(class_names)}")
    return [given.get(name, PHRASE.format(name=name.replace("_", " "))) for name in class_names]


def embed_phrases(phrases: Sequence[str], weights: str, model: str = CLIP_MODEL) -> Tensor:
    """Embed phrases by CLIP's text encoder: every word in its context, then the sentence.

    Args:
        phrases: One text each; as many words count as CLIP reads (77 tokens).
        weights: A file of weights, or a name that open_clip knows and downloads, such as "openai".
        model: Name of a CLIP model of open_clip.

    Returns:
        (K, L, T); rows of zeros after the shorter phrases.

    Raises:
        Sam3dError: If open_clip is not installed.
        CheckpointError: If the weights cannot be had, or the words are as wide as the sentence in no such model.
    """
    clip, tokenize = make_clip(model, weights)
    tokens_KN = tokenize(list(phrases))
    with torch.no_grad():
        words = _word_embeddings(clip, tokens_KN)
        sentences_KT = clip.encode_text(tokens_KN)
    if words[0].shape[-1] != sentences_KT.shape[-1]:
        raise CheckpointError(
            f"CLIP model {model}: words have width {words[0].shape[-1]}, sentences {sentences_KT.shape[-1]}; expected "
            f"a model where they agree, such as {CLIP_MODEL}"
        )
    rows = [torch.cat((own, sentence[None])) for own, sentence in zip(words, sentences_KT, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _word_embeddings(clip: Any, tokens_KN: Tensor) -> list[Tensor]:
    """Run the text transformer and leave out the tokens before, after and beyond the words: (words, T) a phrase."""
    hidden_KNT = clip.token_embedding(tokens_KN) + clip.positional_embedding[: tokens_KN.shape[1]]
    hidden_KNT = clip.ln_final(clip.transformer(hidden_KNT, attn_mask=clip.attn_mask))
    counts = (tokens_KN != 0).sum(1) - NOT_WORDS
    return [hidden[1 : 1 + int(count)] for hidden, count in zip(hidden_KNT, counts, strict=True)]


def make_clip(model: str, weights: str) -> tuple[Any, Any]:
    """Load a CLIP model and its tokenizer.

    Raises:
        Sam3dError: If open_clip is not installed.
        CheckpointError: If the weights cannot be had.
    """
    try:
        import open_clip
    except ImportError:
        raise Sam3dError("text needs open_clip; type: pip install sam3dnet[text]") from None
    try:
        clip = open_clip.create_model(model, pretrained=weights)
    except Exception as error:  # open_clip and torch raise whatever they met
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"CLIP weights {weights!r} for {model} cannot be had ({reason}); name a file of weights for this model, or "
            "plan without text: the classes then have learned embeddings"
        ) from error
    return clip.eval(), open_clip.get_tokenizer(model)


def as_plan_values(text_KLT: Tensor) -> list[list[list[float]]]:
    """Give embeddings as the numbers that a plan stores."""
    return [[[round(value, DIGITS) for value in row] for row in phrase] for phrase in text_KLT.tolist()]
