"""A headless Chromium for tests, driven by its DevTools protocol. Needs chromium and websocket-client."""

import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars "
    "--remote-debugging-port=0 --window-size=1360,1000"
).split()
PATIENCE = 60  # seconds, on a busy machine too


def chromium() -> str | None:
    """The program, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page. `requests` are the addresses that it has asked for, `errors` what its scripts have thrown."""

    def __init__(self, socket_url: str):
        import websocket

        self._socket = websocket.create_connection(socket_url, timeout=PATIENCE, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters):
        """The result of a command of the protocol."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str):
        """The value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE):
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"waited too long for {script}; the page: {self.text()[-1500:]}"
            time.sleep(0.1)
        return value

    def text(self) -> str:
        return self.run("document.body.innerText")

    def click(self, element: str) -> None:
        """Click the element that a JavaScript expression gives, with the mouse."""
        x, y = self._centre(element)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_until(self, element: str, condition: str) -> None:
        """Click until an expression is true, a page that still moves can miss a click."""
        end = time.monotonic() + PATIENCE
        while not self.run(condition) and time.monotonic() < end:
            self.click(element)
            time.sleep(2)

    def drop(self, element: str, file: Path) -> None:
        """Drag a file over an element and let it go, as from a file manager."""
        x, y = self._centre(element)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def _centre(self, element: str) -> tuple[float, float]:
        """Where an element is, as soon as it is there, scrolled into view."""
        self.wait(f"!!({element})")
        look = "e => { e.scrollIntoView({block: 'center'}); return e.getBoundingClientRect().toJSON(); }"
        box = self.run(f"({look})({element})")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`; ended at the end."""
    profile = folder / "profile"
    command = [chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with open(folder / "chromium.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    try:
        end = time.monotonic() + PATIENCE
        while not (port_file := profile / "DevToolsActivePort").exists() or not port_file.read_text():
            assert process.poll() is None and time.monotonic() < end, (folder / "chromium.log").read_text()
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        targets = json.load(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE))
        page = next(target for target in targets if target["type"] == "page")
        yield Browser(page["webSocketDebuggerUrl"])
    finally:
        process.kill()
        process.wait(PATIENCE)
