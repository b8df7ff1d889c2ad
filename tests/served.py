"""A server in this process, on a free port, for clients of the tests."""

import asyncio
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from aiohttp import web

from sam3dnet.model import load_model
from sam3dnet.serving.access import Access
from sam3dnet.serving.hall import Hall
from sam3dnet.serving.leases import Leases
from sam3dnet.serving.server import make_application


class Served:
    """A running server.

    Attributes:
        hall: Its model and clients.
        port: Where it listens.
    """

    def __init__(self, hall, port):
        self.hall, self.port = hall, port
        self.url = f"http://127.0.0.1:{port}"

    def keeps_nothing(self):
        """Tell whether no features are kept, once what is being computed ahead has ended."""
        end = time.monotonic() + 30
        while self.hall._pool.nbytes and time.monotonic() < end:
            time.sleep(0.01)
        return self.hall._pool.nbytes == 0


@contextmanager
def serving(model, *, key=None, most=4, idle_s=600.0, output=None, port=0, annotate=None, **options):
    """Serve a model or its folder until the end of the block; annotate: makes an Annotating from hall and loader."""
    load = partial(load_model, device="cpu", mirror=options.pop("mirror", True))
    hall = Hall(
        load(model) if isinstance(model, str | Path) else model,
        Leases(most, idle_s),
        may_be_empty=annotate is not None,
        **options,
    )
    annotating = None if annotate is None else annotate(hall, load)
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        runner = web.AppRunner(
            make_application(hall, Access(key), output, annotating), access_log=None, shutdown_timeout=1.0
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ports.append(runner.addresses[0][1])
        return runner

    def run():
        asyncio.set_event_loop(loop)
        try:
            runner = loop.run_until_complete(start())
        finally:
            ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60) and ports
        yield Served(hall, ports[0])
    finally:
        if ports:
            loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
