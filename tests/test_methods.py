"""The choice of a method: names of plans, arguments of networks, and what does not go together."""

import json
from typing import get_args

import pytest
import torch

from sam3dnet.cli.info import info
from sam3dnet.errors import PlanError
from sam3dnet.network.cost import training_cost
from sam3dnet.network.peers import find_peer
from sam3dnet.network.segmentation import locate_network
from sam3dnet.network.tuning import DEFAULT_TUNING, TUNINGS
from sam3dnet.planning import methods, rules
from sam3dnet.planning.methods import METHODS, MethodChoice, Text
from sam3dnet.settings.choices import FidelityName, MethodName, PlannedMethodName, TuningName

OURS = ["sam3d", "3dsam-adapter", "refsam3d", "3dmedsam"]
ARCH = {
    "encoder": "tiny",
    "patch_size": [8, 16, 16],
    "token_stride": [4, 8, 8],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    "pretrained": False,
}
CHOICES = {
    "SAM3DPlans": MethodChoice(),
    "SAM3DPlans_lora": MethodChoice(tuning="lora"),
    "SAM3DPlans_3dsam-adapter": MethodChoice("3dsam-adapter", "corrected"),
    "SAM3DPlans_3dsam-adapter_as-published": MethodChoice("3dsam-adapter", "as-published"),
    "SAM3DPlans_3dsam-adapter_automatic": MethodChoice("3dsam-adapter", prompts=False),
    "SAM3DPlans_refsam3d": MethodChoice("refsam3d", text=Text(("a", "b"), "ViT-B-16", [[[0.5] * 6]] * 2)),
    "SAM3DPlans_3dmedsam_st-adapter": MethodChoice("3dmedsam", tuning="st-adapter"),
}


def test_the_command_line_offers_what_there_is():
    assert set(get_args(TuningName)) == set(TUNINGS)
    assert methods.DEFAULT_TUNING == DEFAULT_TUNING
    assert set(get_args(PlannedMethodName)) == set(METHODS)
    assert set(get_args(MethodName)) == set(OURS)
    assert {fidelity for method in METHODS.values() for fidelity in method.fidelities} == set(get_args(FidelityName))


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_has_a_plan_of_its_own_and_a_network_whose_step_is_measured(name):
    choice = CHOICES[name]
    assert choice.plans_name == name
    assert "__" not in choice.plans_name  # nnU-Net splits its folders' names there
    arch_kwargs = {**ARCH, **choice.network_options(regions=False)}
    arch_kwargs = json.loads(json.dumps(arch_kwargs))
    with torch.device("meta"):
        network = locate_network(choice.method.network_class)(1, 2, True, **arch_kwargs)
    parameters = 4 * sum(p.numel() for p in network.parameters())
    bytes_of_step = training_cost(arch_kwargs, 1, 2, 2, network_class=choice.method.network_class)
    assert bytes_of_step > 3 * parameters
    assert any(decision.value == choice.name for decision in choice.decisions())


def test_without_clip_the_plan_says_that_the_network_knows_no_words():
    (decision,) = [d for d in MethodChoice("refsam3d").decisions() if d.name == "text"]
    assert decision.value is None
    assert "no words" in decision.reason
    assert "text" not in MethodChoice("refsam3d").network_options(regions=False)


def test_prompts_are_an_option_where_the_method_answers_them():
    assert MethodChoice("sam3d", prompts=False).network_options(False)["prompts"] is False
    assert "prompts" not in MethodChoice("refsam3d").network_options(False)
    assert not MethodChoice("3dmedsam").answers_prompts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "samurai"}, "expected one of sam3d, 3dsam-adapter"),
        ({"name": "refsam3d", "fidelity": "as-published"}, "has no fidelity 'as-published'; it has none"),
        ({"name": "network"}, "needs both --method network and --network"),
        ({"name": "sam3d", "network": "a:B"}, "needs both --method network and --network"),
        ({"name": "unetr", "tuning": "lora"}, "no image encoder to be tuned"),
        ({"name": "sam3d", "text": Text((), "", [])}, "reads no text"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(PlanError, match=message):
        MethodChoice(**options)


def test_a_network_that_is_not_there_is_refused():
    with pytest.raises(PlanError, match="no such network"):
        locate_network("sam3dnet.network.sam3d.SAM4D")


def test_a_network_with_one_output_leaves_one_to_the_loss():
    strides = rules.leave_one_output(rules.choose_stage_strides([8, 16, 16], (2, 1, 1))).value
    assert strides == [[1, 1, 1], [1, 2, 2], [8, 8, 8]]


def test_info_prints_the_published_parameters_beside_ours():
    options = {"parameters": True, "method": "3dsam-adapter", "fidelity": "as-published"}
    lines = info(**options)
    (row,) = [line.split() for line in lines if line.split()[:1] == ["all"]]
    assert row[1] == row[3] == "25,462,400"
    assert lines[-1].endswith("15,209,984, published 15.21 M")
    report = json.loads("\n".join(info(**options, tuning="st-adapter", no_prompts=True, json=True)))
    assert report["image encoder as the literature counts"] == 7_147_776
    assert report["published image encoder, millions"] == 7.15
    assert "prompt encoder" not in report["parts"]
    assert report["parts"]["all"]["tuned"] < report["parts"]["all"]["total"]


def test_info_counts_our_own_network_by_default():
    report = json.loads("\n".join(info(parameters=True, encoder="tiny", json=True)))
    assert report["method"] == "sam3d"
    assert report["parts"]["all"]["tuned"] == report["parts"]["all"]["total"]


def test_crops_are_planned_in_multiples_of_what_a_peer_would_pad_to():
    for name, method in METHODS.items():
        network = "torch.nn:Identity" if name == "network" else method.peer
        assert method.crop_multiple == (find_peer(network).multiple if network else 1)
