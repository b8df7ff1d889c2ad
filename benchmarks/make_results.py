"""Write the tables and plots of RESULTS.md from the JSON files of the benchmarks.

    python benchmarks/make_results.py --json benchmarks/results/real_sets.json

Each benchmark's section lies between two HTML comments, `<!-- begin NAME -->` and `<!-- end NAME -->`, and is replaced;
a new one is put at the end of the page. All other text stays. Plots go to the folder "plots" beside the page. A file
may have more in its name than the benchmark's, such as prediction_Dataset502.json; that is a section of its own.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import annotation_study
import attention
import click_surroundings
import data_chain
import dicom
import encoder_and_step
import far_clicks
import iterations
import large_ct
import largest_object
import learning_curves
import memory_estimate
import onnx_export
import patch_embedding
import plans_by_memory
import prediction
import prompt_latency
import prompts_drawn
import real_set_tables
import scaling
import serving
import step_seconds

from sam3dnet.check.measuring import MIB

PAGE = Path(__file__).resolve().parent / "RESULTS.md"
Rows = list[dict[str, Any]]

TITLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "patch_embedding": ("Patch embedding", patch_embedding.table),
    "attention": ("Attention", attention.table),
    "encoder_and_step": ("Encoder and training step at equal crop", encoder_and_step.table),
    "iterations": ("Training iterations at equal crop and batch", iterations.table),
    "data_chain": ("Over the data: many classes, many cases", data_chain.table),
    "step_seconds": ("Seconds of a step: planned and measured", step_seconds.table),
    "large_ct": ("Preprocessing and export of a large CT", large_ct.table),
    "prediction": ("Prediction, end to end", prediction.table),
    "prompt_latency": ("A first and a further click", prompt_latency.table),
    "far_clicks": ("Clicks far apart", far_clicks.table),
    "prompts_drawn": ("Prompts of a training step beside the network", prompts_drawn.table),
    "onnx_export": ("ONNX beside torch", onnx_export.table),
    "dicom": ("DICOM beside NIfTI", dicom.table),
    "scaling": ("Growth with voxels, classes, cases and processes", scaling.table),
    "memory_estimate": ("Memory before the first step", memory_estimate.table),
    "learning_curves": ("Dice by the number of labelled cases", learning_curves.table),
    "real_sets": ("Real sets: Dice, NSD and HD95 against stock nnU-Net at equal time", real_set_tables.table),
    "annotation_study": ("Clicks to label a dataset", annotation_study.table),
    "click_surroundings": ("What follows a click", click_surroundings.table),
    "largest_object": ("The largest object alone", largest_object.table),
    "serving": ("A server for viewers", serving.table),
    "plans_by_memory": ("Plans for cards of several sizes", plans_by_memory.table),
}


def section(results: Mapping[str, Any], plots: Sequence[str], name: str) -> str:
    """Format one benchmark: command, machine, tables, plots."""
    title, table = TITLES[results["benchmark"]]
    more = name.removeprefix(results["benchmark"]).replace("_", " ").strip()
    title = f"{title}: {more}" if more else title
    machine = results["machine"]
    where = f"{machine.get('card') or machine['processor']}, {machine['threads']} threads of {machine['cores']} cores"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    date = machine["date"][:10] + (f", commit {machine['commit']}" if machine.get("commit") else "")
    lines = [
        f"### {title}",
        "",
        f"    {results['command']}",
        "",
        f"{date}; {where}; Python {machine['python']}, {versions}. Seconds: median (quartiles).",
        "",
        table(list(results["rows"])),
        *(f"\n![{title}]({plot})" for plot in plots),
    ]
    return "\n".join(lines)


def replace_section(page: str, name: str, text: str) -> str:
    """Put a section between its comments; at the end of the page if they are not there.

    Raises:
        ValueError: If only one of the two comments is there.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if (begin in page) != (end in page):
        raise ValueError(f"only one of {begin} and {end} is on the page; restore the other")
    if begin not in page:
        return f"{page.rstrip()}\n\n{begin}\n{text}\n{end}\n"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def section_name(results: Mapping[str, Any], file: Path) -> str:
    """Name a section: the benchmark, what else the file's name says, and the card where it was not a CPU."""
    device, benchmark = results["settings"]["device"], results["benchmark"]
    name = file.stem if file.stem.startswith(benchmark) else benchmark
    return name if device == "cpu" else f"{name} on {device}"


def draw(results: Mapping[str, Any], name: str, folder: Path) -> list[str]:
    """Draw what is worth it; give the paths of the plots relative to the page."""
    drawings = {
        "encoder_and_step": draw_steps,
        "scaling": draw_growth,
        "real_sets": real_set_tables.draw,
        "annotation_study": annotation_study.draw,
        "learning_curves": learning_curves.draw,
    }
    drawing = drawings.get(results["benchmark"])
    if drawing is None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name.replace(' ', '_')}.png"
    figure = drawing(list(results["rows"]))
    figure.savefig(file, dpi=110, bbox_inches="tight")
    return [f"{folder.name}/{file.name}"]


def draw_steps(rows: Rows) -> Any:
    """Draw seconds and peak memory of whole training steps as bars."""
    from matplotlib.figure import Figure

    chosen = [row for row in rows if row["part"] == encoder_and_step.WHOLE and row["mode"] == "step"]
    names = [row["variant"] for row in chosen]
    figure = Figure(figsize=(9, 0.4 * len(chosen) + 1))
    for axes, title, values in zip(
        figure.subplots(1, 2, sharey=True),
        ("seconds a training step", "peak memory in MiB"),
        ([row["median_s"] for row in chosen], [row["peak_bytes"] / MIB for row in chosen]),
        strict=True,
    ):
        axes.barh(names, values)
        axes.set_title(title)
        axes.invert_yaxis()
    return figure


def draw_growth(rows: Rows) -> Any:
    """Draw seconds against what grows, on logarithmic axes, with a straight line of slope 1."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["what"] for row in rows))
    figure = Figure(figsize=(3.2 * len(kinds), 3))
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for variant in dict.fromkeys(row["variant"] for row in rows if row["what"] == kind):
            chosen = [row for row in rows if (row["what"], row["variant"]) == (kind, variant)]
            numbers, seconds = [row["number"] for row in chosen], [row["median_s"] for row in chosen]
            (line,) = axes.loglog(numbers, seconds, "o-", label=variant)
            linear = [seconds[-1] * number / numbers[-1] for number in numbers]
            axes.loglog(numbers, linear, ":", color=line.get_color())
        axes.set_xlabel(kind)
        axes.set_ylabel("seconds (dotted: linear)")
        axes.legend(fontsize=7)
    figure.tight_layout()
    return figure


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, nargs="+", required=True, help="files that the benchmarks wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Put a section for every file onto the page."""
    a = parse()
    page = a.page.read_text() if a.page.is_file() else "# Results\n"
    for file in a.json:
        results = json.loads(file.read_text())
        name = section_name(results, file)
        page = replace_section(page, name, section(results, draw(results, name, a.page.parent / "plots"), name))
    a.page.write_text(page)


if __name__ == "__main__":
    main()
