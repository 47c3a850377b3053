"""A real visdom server for tests, started without internet.

`python -m visdom.server` first downloads the assets of its page and dies where it cannot. Its application
needs none of them to take data and give it back, so this file, run as a program, starts the application
itself on a free port.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def visdom_server(folder: Path) -> Iterator[int]:
    """The port of a server with its files in `folder`; killed at the end."""
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    with open(folder / "server.log", "wb") as log:  # a file, never a pipe that nobody drains
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: (folder / "port").exists() or process.poll() is not None, seconds=60)
        assert process.poll() is None, (folder / "server.log").read_text()
        yield int((folder / "port").read_text())
    finally:
        process.kill()
        process.wait(10)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return as soon as the condition holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


async def _serve(folder: Path) -> None:
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets
    from visdom.server.app import Application

    application = Application(port=0, env_path=f"{folder}/")
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(application).add_sockets(sockets)
    (folder / "port.part").write_text(str(sockets[0].getsockname()[1]))
    (folder / "port.part").rename(folder / "port")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
