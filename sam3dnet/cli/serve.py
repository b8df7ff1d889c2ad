"""sam3d_serve: the user's model in napari, 3D Slicer, MITK and ITK-SNAP."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.cli.command import run_command
from sam3dnet.errors import Sam3dError
from sam3dnet.settings.function import function_of
from sam3dnet.settings.serving import ServingSettings

if TYPE_CHECKING:
    from aiohttp import web

    from sam3dnet.serving.hall import Hall

KEY_VARIABLE = "SAM3D_SERVE_KEY"
GB = 10**9
EVERYWHERE = ("0.0.0.0", "::", "")


def _serve(settings: ServingSettings) -> None:
    try:
        import aiohttp  # noqa: F401
    except ImportError as problem:
        raise Sam3dError("sam3d_serve needs aiohttp; install it: pip install 'sam3dnet[serve]'") from problem
    from sam3dnet.serving.access import Access, is_loopback, make_key
    from sam3dnet.serving.server import make_application

    key = settings.key or os.environ.get(KEY_VARIABLE) or (None if is_loopback(settings.host) else make_key())
    hall = _make_hall(settings)
    access = Access(key, settings.name or ())
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(make_application(hall, access, settings.output_folder), settings, hall, key))
    print("The server has ended.")


def _make_hall(settings: ServingSettings) -> "Hall":
    from sam3dnet.model import load_model
    from sam3dnet.serving.hall import Hall
    from sam3dnet.serving.leases import Leases
    from sam3dnet.serving.worker import NetworkWorker

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
    worker = NetworkWorker()
    try:
        return Hall(
            worker.submit(load).result(),
            Leases(settings.max_sessions, 60 * settings.idle_minutes),
            worker=worker,
            images=None if settings.images is None else Path(settings.images),
            instance=settings.instance,
            largest_bytes=int(settings.max_upload * GB),
        )
    except Sam3dError:
        worker.close()
        raise


async def _run(application: "web.Application", settings: ServingSettings, hall: "Hall", key: str | None) -> None:
    """Answer requests until a signal comes."""
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
        _print_addresses(settings, runner.addresses[0][1], hall, key)
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
    host = socket.gethostname() if settings.host in EVERYWHERE else settings.host
    shown = f"[{host}]" if ":" in host else host
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


serve = function_of(ServingSettings, _serve, "serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(serve, "sam3d_serve", argv)


if __name__ == "__main__":
    sys.exit(main())
