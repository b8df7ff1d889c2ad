"""The parameters of a method's network, part by part, as sam3d_info prints them."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam3dnet.network.segmentation import SegmentationNetwork
    from sam3dnet.planning.methods import MethodChoice

REFERENCE_PATCH = 128  # voxels a side: the published crop
REFERENCE_STRIDE = 8


def parameter_lines(choice: "MethodChoice", encoder: str, classes: int, channels: int, as_json: bool) -> list[str]:
    """Count the parameters of a network that is built without memory for them.

    Args:
        choice: The method and its tuning.
        encoder: Size of the image encoder; vit_b, vit_l and vit_h as if they held SAM's weights.
        classes: Outputs of the network, with background.
        channels: Channels of the image.
        as_json: Give one JSON object in place of a table.
    """
    report = parameter_report(choice, encoder, classes, channels)
    return [json.dumps(report, indent=2)] if as_json else _table(report)


def parameter_report(choice: "MethodChoice", encoder: str, classes: int, channels: int) -> dict[str, Any]:
    """Give the counts of every part, ours and published, as plain values; arguments as for `parameter_lines`."""
    from sam3dnet.network import parameters

    network = _build(choice, encoder, classes, channels)
    counts = parameters.count_parameters(network)
    fidelity = choice.fidelity or next(iter(choice.method.fidelities), None)
    report: dict[str, Any] = {
        "method": choice.name,
        "source": choice.method.source,
        "fidelity": fidelity,
        "tuning": choice.tuning,
        "encoder": encoder,
        "classes": classes,
        "parts": {name: asdict(count) for name, count in counts.items()},
    }
    if network.pretrained:
        report["image encoder as the literature counts"] = parameters.literature_count(network, choice.tuning)
    if (choice.name, encoder) == ("3dsam-adapter", "vit_b"):
        report["published image encoder, millions"] = parameters.PUBLISHED_MILLIONS.get(choice.tuning)
    if (fidelity, encoder, classes, choice.tuning) == ("as-published", "vit_b", 2, "spatial-adapter"):
        for name, tuned in parameters.PUBLISHED_PARTS.items():
            if name in report["parts"] and (name != "all" or choice.prompts):
                report["parts"][name]["published"] = tuned
    return report


def _build(choice: "MethodChoice", encoder: str, classes: int, channels: int) -> "SegmentationNetwork":
    import torch

    from sam3dnet.network.segmentation import SegmentationNetwork, locate_network
    from sam3dnet.planning.rules import choose_stage_strides

    stride = (choice.method.finest_strides or (REFERENCE_STRIDE,))[0]
    with torch.device("meta"):
        network = locate_network(choice.method.network_class)(
            channels,
            classes,
            True,
            encoder=encoder,
            patch_size=[REFERENCE_PATCH] * 3,
            token_stride=[stride] * 3,
            strides=choose_stage_strides([stride] * 3, [1.0] * 3).value,
            pretrained=encoder.startswith("vit_"),
            **choice.network_options(regions=False),
        )
    assert isinstance(network, SegmentationNetwork)
    return network


def _table(report: dict[str, Any]) -> list[str]:
    named = [report[key] for key in ("method", "fidelity", "tuning", "encoder") if report[key]]
    lines = [f"{', '.join(named)}, {report['classes']} classes [{report['source']}]"]
    width = max(map(len, report["parts"]))
    lines.append(f"  {'part':<{width}}  {'tuned':>12}  {'total':>12}  {'published':>12}".rstrip())
    for name, count in report["parts"].items():
        published = f"{count['published']:>12,}" if "published" in count else ""
        lines.append(f"  {name:<{width}}  {count['tuned']:>12,}  {count['total']:>12,}  {published}".rstrip())
    ours = report.get("image encoder as the literature counts")
    theirs = report.get("published image encoder, millions")
    if ours is not None:
        there = f", published {theirs:.2f} M" if theirs else ""
        lines.append(f"Tuned in the image encoder, as the literature counts: {ours:,}{there}")
    return lines
