"""The stage of SAM with points on every slice: segment the validation cases, score them, write JSON."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from sam3dnet.comparison.measure import score, scoring_processes, validation_names
from sam3dnet.preprocessing.folders import write_json

ENCODER = "vit_b"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, segment, score, write."""
    parser = argparse.ArgumentParser(prog="sam3dnet.comparison.points", description=__doc__)
    for name in ("raw", "preprocessed", "output", "checkpoint", "json"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args(argv)

    from sam3dnet.evaluation.sam_points import load_sam, write_point_predictions
    from sam3dnet.preprocessing.cases import foreground_classes, list_training_cases, read_dataset_json
    from sam3dnet.preprocessing.reading import reader_of_cases

    names = validation_names(a.preprocessed, a.fold)
    dataset_json = read_dataset_json(a.raw)
    there = list_training_cases(a.raw, dataset_json)
    cases = {case.name: (list(case.images), case.label) for case in there if case.name in names}
    predictor = load_sam(a.checkpoint, ENCODER, a.device)
    start = time.perf_counter()
    write_point_predictions(
        cases,
        a.output,
        foreground_classes(dataset_json),
        predictor,
        reader=reader_of_cases(dataset_json, there),
        file_ending=dataset_json["file_ending"],
        points=a.points,
        seed=a.seed,
    )
    seconds = (time.perf_counter() - start) / len(cases)
    parameters = sum(p.numel() for p in predictor.model.parameters())
    scores = score(a.output, a.raw / "labelsTr", names, scoring_processes())
    write_json(a.json, {**scores, "parameters": parameters, "seconds_per_case": seconds, "points": a.points})
    return 0
