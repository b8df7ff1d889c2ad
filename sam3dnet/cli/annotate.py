"""sam3d_annotate: label a dataset in the browser with a model that learns from what is accepted."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sam3dnet.cli.command import run_command
from sam3dnet.cli.serve import access_of, key_of, make_hall, require_server_packages, run_server, shown_host
from sam3dnet.settings.function import function_of
from sam3dnet.settings.serving import AnnotationSettings

if TYPE_CHECKING:
    from sam3dnet.annotation.project import AnnotationProject


def _annotate(settings: AnnotationSettings) -> None:
    require_server_packages("sam3d_annotate")
    from sam3dnet.annotation.project import AnnotationProject

    with AnnotationProject(
        settings.dataset, settings.images, model=settings.model, device=settings.device, root=settings.root
    ) as project:
        _require_model(project, settings.minutes)
        _serve(project, settings)


def _serve(project: "AnnotationProject", settings: AnnotationSettings) -> None:
    from sam3dnet.model import load_model
    from sam3dnet.serving.annotating import Annotating
    from sam3dnet.serving.server import make_application

    load = partial(load_model, device=settings.device, mirror=not settings.no_mirroring)
    first = project.state.model is None
    begin_with = project.first_model if first else partial(load, project.state.model)
    hall = make_hall(settings, begin_with, project.images, may_be_empty=True)
    annotating = Annotating(project, hall, load, every=settings.every, minutes=settings.minutes, order=settings.order)
    key = key_of(settings)
    application = make_application(hall, access_of(settings, key), annotating.drafts, annotating)

    def print_addresses(port: int) -> None:
        query = "" if key is None else f"?key={key}"
        print(f"Label {project.name} in the browser: http://{shown_host(settings)}:{port}/viewer/{query}")
        print(f"    {len(project.images_waiting())} images wait; what is accepted is in the dataset at once")
        print("Ctrl-C ends the server.")

    run_server(application, settings, print_addresses)


def _require_model(project: "AnnotationProject", minutes: float) -> None:
    """Train a first model where there is none, and something to train on; where it fails, that is told."""
    if project.state.model is not None:
        return
    if not project.num_labelled:
        print(f"No label map of {project.name} yet: boxes draw objects, slice by slice, until one is accepted")
        return
    print(
        f"No model of {project.name} yet; one is trained on what is labelled, for {minutes:g} minutes ...", flush=True
    )
    ended = project.train(minutes)
    if not ended.used:
        print(f"No model could be trained: {ended.why}")
        print("Boxes draw objects, slice by slice, until one can be")


annotate = function_of(AnnotationSettings, _annotate, "annotate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(annotate, "sam3d_annotate", argv)


if __name__ == "__main__":
    sys.exit(main())
