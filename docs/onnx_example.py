"""Segment an image by a model of `sam3d_export -o MODEL.onnx`, with numpy and onnxruntime alone.

python onnx_example.py MODEL.json IMAGE.npy "3.0 1.1 0.7" LABELS.npy     (channels, z, y, x; mm along z, y, x)
"""

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime


def resample(x, shape, spacings, threshold):
    thick = next((s for s in spacings if max(s) / min(s) > threshold and sum(s == max(s)) == 1), None)
    for axis, (old, new) in enumerate(zip(x.shape[1:], shape, strict=True)):
        nearest = thick is not None and axis == np.argmax(thick)
        at = np.clip((np.arange(new) + 0.5) * old / new - (0 if nearest else 0.5), 0, old - 1)
        low, high, x = at.astype(int), np.minimum(at.astype(int) + 1, old - 1), np.moveaxis(x, axis + 1, -1)
        share = 0 if nearest else at - low
        x = np.moveaxis(x[..., low] * (1 - share) + x[..., high] * share, -1, axis + 1)
    return x.astype(np.float32)


def normalise(x, how):
    assert not how["inside_nonzero_only"], "statistics of what is not 0: left out here"
    if how["scheme"] == "standardise_image":
        return (x - x.mean()) / max(x.std(), 1e-8)
    assert how["scheme"] in ("clip_and_standardise", "none"), how
    clipped = x if how["scheme"] == "none" else np.clip(x, how["lowest"], how["highest"]) - how["mean"]
    return clipped / max(how.get("standard_deviation", 1), 1e-8)


def logits_of(network, x, model):
    patch = np.array(model["input"]["shape"][2:])
    missing = np.maximum(patch - x.shape[1:], 0)
    inside = tuple(slice(n // 2, n // 2 + size) for n, size in zip(missing, x.shape[1:], strict=True))
    x = np.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in missing)])
    bells = [np.exp(-0.5 * ((np.arange(n) - n // 2) / (n * model["windows"]["sigma"])) ** 2) for n in patch]
    total, weight = np.zeros((model["output"]["shape"][1], *x.shape[1:])), np.einsum("i,j,k->ijk", *bells)
    weights, room = np.zeros(x.shape[1:]), np.subtract(x.shape[1:], patch)
    counts = np.ceil(room / (patch * model["windows"]["step"])).astype(int) + 1
    for corner in product(*(np.round(np.linspace(0, r, n)).astype(int) for r, n in zip(room, counts, strict=True))):
        window = (slice(None), *(slice(a, a + n) for a, n in zip(corner, patch, strict=True)))
        for version in model["mirrored"]:  # the first alone takes a part of the time, and is nearly as good
            flipped = np.ascontiguousarray(np.flip(x[window][None], version["axes"]), np.float32)
            logits = network.run(None, {model["input"]["name"]: flipped})[0]
            total[window] += weight * np.flip(logits, version["axes"])[0][version["logits"]] / len(model["mirrored"])
        weights[window[1:]] += weight
    return (total / weights)[(slice(None), *inside)]


def segment(model, network, image, spacing):
    image, spacing = image.transpose(0, *np.add(model["transpose"], 1)), np.array(spacing)[model["transpose"]]
    planned, threshold = np.array(model["spacing_mm"]), model["resampling"]["nearest_along_axis_coarser_by"]
    found = np.argwhere((image != 0).any(0))
    box = tuple(slice(a, b + 1) for a, b in zip(found.min(0), found.max(0), strict=True))
    crop = np.stack([normalise(x[box], how) for x, how in zip(image, model["normalisation"], strict=True)])
    shape = np.round(spacing / planned * crop.shape[1:]).astype(int)
    logits = logits_of(network, resample(crop, shape, (spacing, planned), threshold), model)
    logits, labels = (
        resample(logits, crop.shape[1:], (planned, spacing), threshold),
        np.zeros(image.shape[1:], np.int16),
    )
    labels[box] = logits.argmax(0) if model["labels_in_order"] is None else 0
    for channel, label in enumerate(model["labels_in_order"] or ()):
        labels[box][logits[channel] > 0] = label
    return labels.transpose(np.argsort(model["transpose"]))


described, image, mm, out = sys.argv[1:]
model = json.loads(Path(described).read_text())
network = onnxruntime.InferenceSession(str(Path(described).with_name(model["network"])))
np.save(out, segment(model, network, np.load(image).astype(np.float32), [float(one) for one in mm.split()]))
