"""sam3d_serve: the user's model in napari, 3D Slicer, MITK and ITK-SNAP; and what sam3d_annotate shares with it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.cli.command import run_command
from sam3dnet.errors import Sam3dError
from sam3dnet.settings.function import function_of
from sam3dnet.settings.serving import AtAddress, ServingSettings

if TYPE_CHECKING:
    from aiohttp import web

    from sam3dnet.annotation.first_model import FirstModel
    from sam3dnet.model import Model
    from sam3dnet.serving.access import Access
    from sam3dnet.serving.hall import Hall

KEY_VARIABLE = "SAM3D_SERVE_KEY"
GB = 10**9
EVERYWHERE = ("0.0.0.0", "::", "")


def _serve(settings: ServingSettings) -> None:
    require_server_packages("sam3d_serve")
    from sam3dnet.model import load_model
    from sam3dnet.serving.server import make_application

    load = partial(
        load_model,
        settings.model,
        settings.folds,
        settings.device,
        checkpoint=settings.checkpoint,
        mirror=not settings.no_mirroring,
        root=settings.root,
        configuration=settings.configuration,
        plans=settings.plans,
    )
    images = None if settings.images is None else Path(settings.images)
    hall = make_hall(settings, load, images, instance=settings.instance)
    key = key_of(settings)
    application = make_application(hall, access_of(settings, key), settings.output_folder)
    run_server(application, settings, lambda port: _print_addresses(settings, port, hall, key))


def require_server_packages(command: str) -> None:
    """See that the packages of the extra "serve" are there.

    Raises:
        Sam3dError: If not.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError as problem:
        raise Sam3dError(f"{command} needs aiohttp; install it: pip install 'sam3dnet[serve]'") from problem


def key_of(settings: AtAddress) -> str | None:
    """Give the key that clients must show; None where none is needed."""
    from sam3dnet.serving.access import is_loopback, make_key

    return settings.key or os.environ.get(KEY_VARIABLE) or (None if is_loopback(settings.host) else make_key())


def access_of(settings: AtAddress, key: str | None) -> "Access":
    """Give the rule of who may ask."""
    from sam3dnet.serving.access import Access

    return Access(key, settings.name or ())


def make_hall(
    settings: AtAddress, load: "Callable[[], Model | FirstModel]", images: Path | None, **options: bool
) -> "Hall":
    """Load a model in the thread that will compute with it, and make what serves it, with further options of `Hall`."""
    from sam3dnet.serving.hall import Hall
    from sam3dnet.serving.leases import Leases
    from sam3dnet.serving.worker import NetworkWorker

    worker = NetworkWorker()
    try:
        return Hall(
            worker.submit(load).result(),
            Leases(settings.max_sessions, 60 * settings.idle_minutes),
            worker=worker,
            images=images,
            **options,
            largest_bytes=int(settings.max_upload * GB),
        )
    except Sam3dError:
        worker.close()
        raise


def run_server(application: "web.Application", settings: AtAddress, print_addresses: Callable[[int], None]) -> None:
    """Answer requests until a signal comes.

    Args:
        application: Answers them.
        settings: Where to listen.
        print_addresses: Is told the port, once the server listens.

    Raises:
        Sam3dError: If it cannot listen there.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(application, settings, print_addresses))
    print("The server has ended.")


async def _run(application: "web.Application", settings: AtAddress, print_addresses: Callable[[int], None]) -> None:
    from aiohttp import web

    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as problem:
            reason = os.strerror(problem.errno) if problem.errno else str(problem)
            raise Sam3dError(
                f"cannot listen at {settings.host}, port {settings.port} ({reason}); choose another --port or --host"
            ) from problem
        print_addresses(runner.addresses[0][1])
        await _until_stopped()
    finally:
        await runner.cleanup()


async def _until_stopped() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; or not the main thread
            loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def _print_addresses(settings: ServingSettings, port: int, hall: "Hall", key: str | None) -> None:
    """Tell what to paste into viewers."""
    shown = shown_host(settings)
    address = f"http://{shown}:{port}"
    print(f"Serving {hall.title} on {hall.model.loaded.device}. For napari, 3D Slicer and MITK (nnInteractive):")
    for short, name in hall.class_names.items():
        print(f"    {address}/{short:<20} {name}")
    print(f"For ITK-SNAP: address {shown}, port {port}, each class as a model.")
    if settings.output_folder is not None:
        print(f"In the browser: {address}/viewer/{'' if key is None else f'?key={key}'}")
        print(f"    saved in {settings.output_folder}")
    if key is not None:
        print(f"Key: {key}")
    print("Ctrl-C ends the server.")


def shown_host(settings: AtAddress) -> str:
    """Give the host as addresses name it."""
    host = socket.gethostname() if settings.host in EVERYWHERE else settings.host
    return f"[{host}]" if ":" in host else host


serve = function_of(ServingSettings, _serve, "serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(serve, "sam3d_serve", argv)


if __name__ == "__main__":
    sys.exit(main())
