"""What makes a preprocessed case stale, and what does not."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from plans import make_plans

from sam3dnet.preprocessing.records import settings_digest


def configuration_of(plans: dict[str, Any]) -> dict[str, Any]:
    return plans["configurations"]["3d_fullres"]


CHANGES: dict[str, tuple[Callable[[dict, dict], object], bool]] = {
    "spacing": (lambda p, _: configuration_of(p).update(spacing=[3.0, 0.9, 0.8]), True),
    "patch size, which decides the chunks": (lambda p, _: configuration_of(p).update(patch_size=[4, 8, 8]), True),
    "normalisation": (lambda p, _: configuration_of(p).update(normalization_schemes=["NoNormalization"]), True),
    "resampling": (lambda p, _: configuration_of(p)["resampling_fn_data_kwargs"].update(force_separate_z=True), True),
    "axes": (lambda p, _: p.update(transpose_forward=[0, 1, 2]), True),
    "window": (lambda p, _: p["foreground_intensity_properties_per_channel"]["0"].update(mean=61.0), True),
    "labels": (lambda _, d: d["labels"].update(other=3), True),
    "batch size": (lambda p, _: configuration_of(p).update(batch_size=7), False),
    "network": (lambda p, _: configuration_of(p)["architecture"].update(network_class_name="other"), False),
    "description": (lambda _, d: d.update(description="anew"), False),
    "number of cases": (lambda _, d: d.update(numTraining=9), False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_cases_are_stale_when_a_setting_that_they_depend_on_changes(what: str) -> None:
    def digest(change: Callable[[dict, dict], object]) -> str:
        plans = json.loads(json.dumps(make_plans("Dataset902_Pipeline", ["CTNormalization"])))
        dataset_json = {"labels": {"background": 0, "organ": 1}, "numTraining": 3}
        change(plans, dataset_json)
        return settings_digest(plans, configuration_of(plans), dataset_json)

    change, matters = CHANGES[what]
    assert (digest(change) != digest(lambda p, d: None)) == matters


def test_statistics_of_the_dataset_do_not_matter_to_a_normalisation_by_case() -> None:
    plans = make_plans("Dataset902_Pipeline", ["ZScoreNormalization"])
    before = settings_digest(plans, configuration_of(plans), {})
    plans["foreground_intensity_properties_per_channel"] = {"0": {"mean": 1.0}}
    assert settings_digest(plans, configuration_of(plans), {}) == before
