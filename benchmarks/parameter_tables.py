"""Print the parameter tables of the literature, ours beside the published: per method, and per tuning method.

    python benchmarks/parameter_tables.py

Networks are built without memory for their weights: ViT-B, one channel, two classes, crops of 128 voxels a side.
"""

from measuring import as_markdown

from sam3dnet.cli.parameter_table import parameter_report
from sam3dnet.network.tuning import TUNINGS
from sam3dnet.planning.methods import MethodChoice

ENCODER, CLASSES, CHANNELS = "vit_b", 2, 1
CHOICES = (
    MethodChoice(),
    MethodChoice("3dsam-adapter", "as-published"),
    MethodChoice("3dsam-adapter", "as-published", prompts=False),
    MethodChoice("3dsam-adapter", "corrected"),
    MethodChoice("refsam3d"),
    MethodChoice("3dmedsam"),
)


def method_rows() -> list[list[str]]:
    """Give tuned and total parameters of every method."""
    rows = [["method", "image encoder, tuned", "all, tuned", "all, total", "published, tuned"]]
    for choice in CHOICES:
        report = parameter_report(choice, ENCODER, CLASSES, CHANNELS)
        parts = report["parts"]
        name = choice.name + (f", {report['fidelity']}" if report["fidelity"] else "")
        name += "" if choice.prompts else ", automatic"
        published = parts["all"].get("published")
        numbers = (parts["image encoder"]["tuned"], parts["all"]["tuned"], parts["all"]["total"])
        rows.append([name, *(f"{number:,}" for number in numbers), f"{published:,}" if published else "-"])
    return rows


def part_rows() -> list[list[str]]:
    """Give every part of 3DSAM-adapter as published."""
    report = parameter_report(CHOICES[1], ENCODER, CLASSES, CHANNELS)
    rows = [["3dsam-adapter, as published", "tuned", "total", "published, tuned"]]
    for name, count in report["parts"].items():
        published = f"{count['published']:,}" if "published" in count else "-"
        rows.append([name, f"{count['tuned']:,}", f"{count['total']:,}", published])
    return rows


def tuning_rows() -> list[list[str]]:
    """Give the tuned parameters of the image encoder by tuning method, as the literature counts them."""
    rows = [["tuning", "source", "ours", "published"]]
    for name, tuning in TUNINGS.items():
        report = parameter_report(
            MethodChoice("3dsam-adapter", "as-published", name, prompts=False), ENCODER, CLASSES, CHANNELS
        )
        published = report["published image encoder, millions"]
        ours = report["image encoder as the literature counts"]
        rows.append([name, tuning.source, f"{ours:,}", f"{published:.2f} M" if published else "-"])
    return rows


if __name__ == "__main__":
    print("\n\n".join(as_markdown(rows) for rows in (method_rows(), part_rows(), tuning_rows())))
