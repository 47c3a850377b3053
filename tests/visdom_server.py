"""A real visdom server for tests, started without internet.

`python -m visdom.server` first downloads the assets of its page and dies where it cannot. Its application
needs none of them to take data and give it back, so this file, run as a program, starts the application
itself on a free port.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Server:
    """A running server: its port, and the means to end it in the middle of something."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port = process, port

    def kill(self) -> None:
        """End it without a goodbye, as a crash would. Connections are refused from here on."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def visdom_server(folder: Path, port: int = 0) -> Iterator[Server]:
    """A server with its files in `folder`, on `port` (0: a free one); killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", __file__, str(folder), str(port)]
    with open(folder / "server.log", "wb") as log:  # a file, never a pipe that nobody drains
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: port_file.exists() or process.poll() is not None, seconds=60)
        assert process.poll() is None, (folder / "server.log").read_text()
        yield Server(process, int(port_file.read_text()))
    finally:
        process.kill()
        process.wait(10)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return as soon as the condition holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "visdom took too long"
        time.sleep(0.02)


async def _serve(folder: Path, port: int) -> None:
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets
    from visdom.server.app import Application

    application = Application(port=port, env_path=f"{folder}/")
    sockets = bind_sockets(port, "127.0.0.1")
    HTTPServer(application).add_sockets(sockets)
    unfinished = folder / "port.part"
    unfinished.write_text(str(sockets[0].getsockname()[1]))
    os.replace(unfinished, folder / "port")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
