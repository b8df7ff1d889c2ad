"""What the benchmarks measure with, that the variants they compare are equal, and the page made of their results."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from sam3dnet.check.measuring import MIB, Variant, working_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import attention
import iterations
import make_results
import measuring
import memory_estimate
import networks
import patch_embedding
import rehearsal
import scaling
from materialised_attention import MaterialisedAttention, materialise
from measuring import compare, shown_ratio, traced_bytes

from sam3dnet.network.attention import Attention3D, partition_windows
from sam3dnet.network.sam3d import SAM3D

CPU = torch.device("cpu")


def test_all_variants_run_in_turn_after_a_warm_up():
    calls = []
    variants = {name: Variant(lambda name=name: calls.append(name), lambda: []) for name in "ab"}
    rows = compare(variants, CPU, 3)
    assert calls == ["a", "a", "b", "b", *("a", "b") * 3]
    assert [row["variant"] for row in rows] == ["a", "b"]
    assert all(len(row["seconds"]) == 3 for row in rows)
    assert rows[0]["quartiles_s"][0] <= rows[0]["median_s"] <= rows[0]["quartiles_s"][1]


def test_memory_is_what_lives_beside_what_is_held():
    held = torch.zeros(1000)

    def run():
        first = held + 1
        return (first * 2).sum()

    variant = Variant(run, lambda: [held])
    assert working_bytes(variant, CPU) == 2 * 4000 + 4
    rows = compare({"x": variant}, CPU, 1)
    assert rows[0]["peak_bytes"] == rows[0]["working_bytes"] + 4000


def test_a_trace_counts_as_a_run_does():
    def make():
        return patch_embedding.make_variant(patch_embedding.make_pair(4, width=12)["resampled kernel"], 8, MODE, CPU)

    variant = make()
    variant.run()
    real = working_bytes(variant, CPU) + sum(t.untyped_storage().nbytes() for t in variant.held())
    assert traced_bytes(make) == pytest.approx(real, rel=0.01)


MODE = patch_embedding.MODES[1]


def test_both_patch_embeddings_give_the_same_tokens():
    pair = patch_embedding.make_pair(4, width=12)
    assert patch_embedding.largest_difference(pair, 8, CPU) < 1e-5
    gradients = []
    for module in pair.values():
        torch.nn.init.zeros_(module.proj.bias)  # which one adds behind the depth kernel, the other before
        module(torch.ones(1, 1, 8, 8, 8)).square().sum().backward()
        gradients.append(next(p.grad.flatten() for n, p in module.named_parameters() if n.startswith("depth")))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_a_materialised_bias_changes_no_result():
    torch.manual_seed(0)
    fused = Attention3D(12, 2, (2, 3, 4))
    for table in (fused.rel_pos_d, fused.rel_pos_h, fused.rel_pos_w):
        torch.nn.init.normal_(table)
    naive = MaterialisedAttention(12, 2, (2, 3, 4))
    naive.load_state_dict(fused.state_dict())
    windows, padding, wrapped = partition_windows(torch.randn(2, 3, 5, 6, 12), (2, 3, 4), (1, 1, 2))
    with torch.no_grad():
        whole = padding.logical_not()  # what padding itself gets is never looked at
        torch.testing.assert_close(
            naive(windows, padding, wrapped).flatten(1, 3)[whole], fused(windows, padding, wrapped).flatten(1, 3)[whole]
        )


def test_materialising_reaches_every_attention_and_changes_no_weight():
    network = networks.make_sam3d(2, (8, 8, 8), stride=4, encoder="tiny", pretrained=False)
    before = network.state_dict().keys()
    materialise(network)
    kinds = {type(module) for module in network.modules() if isinstance(module, Attention3D)}
    assert kinds == {MaterialisedAttention}
    assert network.state_dict().keys() == before


def test_a_step_leaves_no_gradient_and_moves_the_weights():
    torch.manual_seed(0)
    network = networks.make_sam3d(2, (8, 8, 8), stride=4, encoder="tiny", pretrained=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    variant = networks.make_variant(network, torch.randn(1, 1, 8, 8, 8), "step")
    variant.run()
    assert all(parameter.grad is None for parameter in network.parameters())
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and changed <= set(network.trainable_names())
    assert len(variant.held()) > len(list(network.parameters()))  # the optimiser's state is among them


def test_the_planner_s_estimate_is_that_of_a_real_step():
    row = memory_estimate.measure(memory_estimate.Configuration("tiny", False, (8, 12, 16), 4, 2, False, True), CPU)
    assert 0.9 < row["ratio"] < 1.1


def test_growth_is_the_slope_of_the_logarithms():
    assert scaling.growth([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert scaling.growth([1, 10, 100], [3, 300, 30000]) == pytest.approx(2)
    assert scaling.growth([5, 5], [1, 2]) is None


def test_ratios_of_what_is_missing_are_left_out():
    assert shown_ratio(2.0, 8.0) == "4.00"
    assert shown_ratio(None, 8.0) == shown_ratio(2.0, None) == "-"


def attention_rows():
    row = {"batch": 1, "side": 8, "mode": "forward", "largest_difference": 1e-7}
    row |= {"median_s": 2.0, "quartiles_s": [1.0, 3.0], "working_bytes": 4 * MIB}
    return [{**row, "variant": attention.NAIVE}, {**row, "variant": attention.FAST, "median_s": 1.0}]


def test_iterations_are_compared_with_those_of_nnunet():
    seconds = {"median_s": 0.8, "quartiles_s": [0.7, 0.9]}
    row = {
        "crop": [32, 48, 32],
        "batch": 2,
        "parameters": 1234,
        "estimated_s": 0.2481,
        "loading": {"median_s": 0.1, "quartiles_s": [0.1, 0.1]},
        "cpu": {"median_s": 1.5, "quartiles_s": [1.5, 1.5]},
    }
    rows = [{**row, **seconds, "variant": iterations.STOCK}, {**row, **seconds, "median_s": 0.2, "variant": "ours"}]
    assert iterations.table(rows).splitlines()[-1].startswith("| ours | 32x48x32, 2 | 1,234 | 0.248 | 0.2 (0.7-0.9) | ")
    assert iterations.table(rows).endswith("| 4.00 |")
    others = [
        {**row, **seconds, "median_s": value, "variant": "ours", "dataset": name}
        for name, value in (("1", 3.0), ("2", 5.0), ("2", 2.5))
    ]
    assert [line.rpartition("| ")[2] for line in iterations.table(others).splitlines()[2:]] == [
        "1.00 |",
        "1.00 |",
        "2.00 |",
    ]
    assert iterations.table(others).splitlines()[-1].startswith("| 2: ours | ")


def test_the_page_keeps_what_was_written_by_hand(tmp_path, monkeypatch):
    results, page = tmp_path / "attention.json", tmp_path / "RESULTS.md"
    monkeypatch.setattr(sys, "argv", ["attention.py", "--json", str(results), "--windows", "1"])
    arguments = argparse.Namespace(json=results, device="cpu", windows=[1], images=tmp_path / "images")
    measuring.finish(arguments, "attention", attention_rows())
    assert str(tmp_path) not in results.read_text()
    page.write_text("# Results\n\nBy hand.\n")
    for expected in ("| 2.00 |", "| 4.00 |"):
        monkeypatch.setattr(sys, "argv", ["make_results.py", "--json", str(results), "--page", str(page)])
        make_results.main()
        text = page.read_text()
        assert text.startswith("# Results\n\nBy hand.\n\n<!-- begin attention -->\n### Attention")
        assert expected in text
        assert text.count("<!-- begin attention -->") == 1
        page.write_text(text + "\nAfterwards.\n")
        changed = json.loads(results.read_text())
        changed["rows"][1]["median_s"] = 0.5
        results.write_text(json.dumps(changed))
    assert text.rstrip().endswith("Afterwards.")
    before = page.read_text()
    other = results.rename(tmp_path / "attention_of_windows.json")
    monkeypatch.setattr(sys, "argv", ["make_results.py", "--json", str(other), "--page", str(page)])
    make_results.main()
    assert page.read_text().startswith(before.rstrip())
    assert "### Attention: of windows\n" in page.read_text()
    with pytest.raises(ValueError, match="only one of"):
        make_results.replace_section("<!-- begin x -->", "x", "")


def test_growth_and_steps_are_drawn(tmp_path):
    rows = [
        {"what": "voxels", "number": n, "variant": "step", "median_s": n / 7, "quartiles_s": [n / 8, n / 6]}
        for n in (10, 100)
    ]
    results = {"benchmark": "scaling", "rows": [row | {"peak_bytes": 100 * row["number"]} for row in rows]}
    (plot,) = make_results.draw(results, "scaling", tmp_path / "plots")
    assert (tmp_path / plot).stat().st_size > 1000
    assert "| 1.00 | 1.00 |" in scaling.table(results["rows"])


def test_encoders_are_timed_as_they_would_be_planned():
    planned = {"encoder": "small", "pretrained": False, "prompts": True}
    changed = {}
    for method in (iterations.OURS, iterations.UNPROMPTED, "tiny", "vit_b"):
        changed[method] = dict(planned)
        iterations.change_architecture(changed[method], method)
    assert changed[iterations.OURS] == planned
    assert changed[iterations.UNPROMPTED] == {**planned, "prompts": False}
    assert changed["tiny"] == {**planned, "encoder": "tiny"}
    assert changed["vit_b"] == {**planned, "encoder": "vit_b", "pretrained": True}


def test_the_rehearsals_mirror_serves_its_folder_and_notes_what_is_asked_for(tmp_path):
    from urllib.request import ProxyHandler, build_opener

    (tmp_path / "file").write_text("weights")
    mirror = rehearsal.Mirror(tmp_path)
    with mirror.running(), build_opener(ProxyHandler({})).open(f"{mirror.address}/file") as answer:
        assert answer.read() == b"weights"
    assert mirror.requests == ["/file"]


def test_the_rehearsal_takes_cases_for_training_and_others_for_prediction(tmp_path):
    source = tmp_path / "Dataset501_X"
    for name in "abcde":
        for file in (f"imagesTr/{name}_0000.nii", f"imagesTr/{name}_0001.nii", f"labelsTr/{name}.nii"):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_text(file)
    (source / "dataset.json").write_text(json.dumps({"file_ending": ".nii", "numTraining": 5}))
    place = rehearsal.Place(source.name, tmp_path / "work")
    rehearsal.copy_cases(source, place, 2)
    assert sorted(p.name for p in (place.raw / "labelsTr").iterdir()) == ["a.nii", "b.nii"]
    images = ["c_0000.nii", "c_0001.nii", "d_0000.nii", "d_0001.nii"]
    assert sorted(p.name for p in (place.raw / "imagesTs").iterdir()) == images
    assert (place.raw / "imagesTs" / "c_0000.nii").read_text() == "imagesTr/c_0000.nii"
    assert json.loads((place.raw / "dataset.json").read_text())["numTraining"] == 2


def test_a_checkpoint_without_frozen_weights_keeps_all_that_training_changes():
    arguments = {"encoder": "tiny", "pretrained": True, "patch_size": [8, 16, 12], "token_stride": [4, 4, 4]}
    arguments["strides"] = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    architecture = {"network_class_name": "sam3dnet.network.sam3d.SAM3D", "arch_kwargs": arguments}
    plans = {"configurations": {"3d_fullres": {"architecture": architecture}}}
    network = SAM3D(1, 3, True, **arguments)
    kept = rehearsal.trained_names(plans, len(network.state_dict()))
    assert {name for name, p in network.named_parameters() if p.requires_grad} <= kept
    assert "image_encoder.blocks.0.attn.qkv.weight" in set(network.state_dict()) - kept
