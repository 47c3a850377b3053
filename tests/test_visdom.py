"""The live display against a real visdom server: alive, absent, silent, and killed in mid-run."""

from __future__ import annotations

import base64
import io
import json
import math
import socket
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from visdom_server import Server, visdom_server, wait_until

from util.watch import visdom_client
from util.watch.loss_log import LossRecord
from util.watch.monitor import Monitor
from util.watch.visdom_client import VisdomClient, image_grid

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")
LOCAL = "http://127.0.0.1"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No pauses between messages, and short ones after a failure."""
    monkeypatch.setattr(visdom_client, "REST", 0.0)
    monkeypatch.setattr(visdom_client, "FIRST_RETRY", 0.1)
    monkeypatch.setattr(visdom_client, "LAST_RETRY", 0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("visdom")
    with visdom_server(tmp_path_factory.mktemp("visdom")) as server:
        yield server


def window(server: Server, number: int, env: str) -> dict | None:
    """What the server holds of a window, or None where it has none."""
    import requests

    with requests.Session() as session:
        session.trust_env = False  # a test sets a proxy
        data = json.dumps({"win": str(number), "eid": env})
        answer = session.post(f"{LOCAL}:{server.port}/win_data", data=data, timeout=10)
    return json.loads(answer.text) if answer.ok and answer.text.startswith("{") else None


def picture(window: dict) -> np.ndarray:
    """The image a window shows, (H, W, 3) uint8."""
    kind, data = window["content"]["src"].split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def record(images: int, **losses: float) -> LossRecord:
    """After so many images of an epoch of 1000."""
    return LossRecord(1, images, images, images / 1000, losses, 0.1, 0.0, lr=2e-4)


def test_the_server_holds_the_curves_that_were_sent(server):
    client = VisdomClient("run", LOCAL, server.port, env="curves", display_id=1)
    client.losses(record(500, G_GAN=0.5, NCE=4.0))
    client.losses(record(1000, G_GAN=0.25, NCE=3.0))
    client.close()
    shown = window(server, 1, "curves")
    assert shown["title"] == "run: losses"
    assert [(line["name"], line["x"], line["y"]) for line in shown["content"]["data"]] == [
        ("G_GAN", [0.5, 1.0], [0.5, 0.25]),
        ("NCE", [0.5, 1.0], [4.0, 3.0]),
    ]


def test_a_loss_that_is_not_finite_leaves_a_gap(server):
    client = VisdomClient("run", LOCAL, server.port, env="gap", display_id=1)
    client.resume([record(1, D=1.0, G=2.0), record(2, D=math.nan, G=math.inf), record(3, D=3.0, G=4.0)])
    client.close()
    lines = window(server, 1, "gap")["content"]["data"]
    assert [line["y"] for line in lines] == [[1.0, None, 3.0], [2.0, None, 4.0]]


def test_images_come_as_a_grid(server):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = {
        label: np.full((8, 12, 3), c, np.uint8)
        for label, c in zip(("real_A", "fake_B", "real_B"), colours, strict=True)
    }
    client = VisdomClient("run", LOCAL, server.port, env="images", display_id=20, ncols=2, winsize=64)
    client.images(7, images)
    client.close()
    shown = window(server, 21, "images")
    assert shown["content"]["caption"] == "real_A | fake_B | real_B" and shown["width"] == 128
    assert shown["title"] == "run: images of epoch 7"
    np.testing.assert_array_equal(picture(shown), image_grid(list(images.values()), 2, 64))


def test_no_columns_means_a_window_for_each_image(server):
    client = VisdomClient("run", LOCAL, server.port, env="single", display_id=20, ncols=0)
    client.images(1, {"a": np.zeros((4, 4, 3), np.uint8), "b": np.full((4, 4, 3), 9, np.uint8)})
    client.close()
    assert picture(window(server, 21, "single")).max() == 255  # the white margin
    assert (picture(window(server, 22, "single"))[4:8, 4:8] == 9).all()


def test_a_grid_takes_images_of_unequal_size_and_reduces_large_ones():
    grid = image_grid([np.zeros((4, 6, 3), np.uint8), np.zeros((200, 100, 3), np.uint8)], ncols=4, winsize=50)
    assert grid.shape == (50 + 8, 2 * (25 + 8), 3)
    assert (grid[4:8, 4:10] == 0).all() and (grid[8:, :33] == 255).all()


def test_a_proxy_of_the_environment_is_not_asked_for_a_local_server(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    client = VisdomClient("run", LOCAL, server.port, env="proxy")
    client.losses(record(100, G=1.0))
    client.close()
    assert window(server, 1, "proxy") is not None


def test_a_resumed_run_shows_its_whole_curve(server, tmp_path):
    first = Monitor(tmp_path)
    first.losses(record(100, G=5.0))
    state = first.state_dict()
    first.losses(record(200, G=4.0))
    second = Monitor(tmp_path, [VisdomClient("run", LOCAL, server.port, env="resumed")])
    second.load_state_dict(state)
    second.losses(record(200, G=3.0))
    second.close()
    assert window(server, 1, "resumed")["content"]["data"][0]["y"] == [5.0, 3.0]


def test_no_server_costs_one_warning_and_no_time(tmp_path):
    pytest.importorskip("visdom")
    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        client = VisdomClient("run", LOCAL, taken.getsockname()[1])
        monitor = Monitor(tmp_path, [client])
        with pytest.warns(RuntimeWarning, match="visdom: .* cannot be reached .*--display_id 0") as caught:
            monitor.losses(record(100, G=1.0))
            wait_until(lambda: client._failure)
            for images in range(200, 2000, 100):
                monitor.losses(record(images, G=1.0))
            monitor.close()
    assert len(caught) == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 19


def test_visdom_not_installed_costs_one_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", None)  # importing it now fails
    monitor = Monitor(tmp_path, [VisdomClient("run")])
    with pytest.warns(RuntimeWarning, match="visdom: it cannot be imported") as caught:
        monitor.losses(record(100, G=1.0))
        monitor.losses(record(200, G=1.0))
        monitor.images(1, {"a": np.zeros((4, 4, 3), np.uint8)}, save=False)
        monitor.close()
    assert len(caught) == 1


def test_a_server_that_never_answers_cannot_hold_up_the_end():
    pytest.importorskip("visdom")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = VisdomClient("run", LOCAL, silent.getsockname()[1])
        client.losses(record(100, G=1.0))
        with pytest.raises(ConnectionError, match="does not answer"):
            client.close(timeout=0.3)
        assert client._thread.is_alive()  # still waiting for the answer, which close did not


def test_killing_the_server_in_mid_run_neither_stops_nor_slows_it(tmp_path, monkeypatch):
    """Everything that speaks to the server is called on the thread, however long the server is gone."""
    pytest.importorskip("visdom")
    threads = set()
    for name in ("_send_losses", "_send_grid"):
        send = getattr(visdom_client, name)
        watched = lambda *a, send=send: threads.add(threading.current_thread().name) or send(*a)  # noqa: E731
        monkeypatch.setattr(visdom_client, name, watched)
    image = {"fake_B": np.zeros((64, 64, 3), np.uint8)}
    with visdom_server(tmp_path / "server") as server:
        client = VisdomClient("run", LOCAL, server.port, env="killed")
        monitor = Monitor(tmp_path / "run", [client])
        monitor.losses(record(100, G=1.0))
        wait_until(lambda: window(server, 1, "killed") is not None)
        server.kill()
        with pytest.warns(RuntimeWarning) as caught:
            monitor.losses(record(200, G=2.0))
            wait_until(lambda: client._failure)
            for images in range(300, 1000, 100):
                monitor.losses(record(images, G=2.0))
                monitor.images(1, image, save=False)
            assert len(client._waiting) <= 2  # the newest of each window
            monitor.close()
        assert len(caught) == 1 and "cannot be reached" in str(caught[0].message)
        assert not client._thread.is_alive() and threads == {"visdom"}


def test_a_server_that_comes_back_gets_the_whole_curve(tmp_path):
    pytest.importorskip("visdom")
    with visdom_server(tmp_path / "first") as server:
        client = VisdomClient("run", LOCAL, server.port, env="back")
        client.losses(record(100, G=1.0))
        wait_until(lambda: window(server, 1, "back") is not None)
    client.losses(record(200, G=2.0))
    wait_until(lambda: client._failure)
    with visdom_server(tmp_path / "second", server.port) as server:
        wait_until(lambda: window(server, 1, "back") is not None)
        assert window(server, 1, "back")["content"]["data"][0]["y"] == [1.0, 2.0]
        with pytest.raises(ConnectionError):  # of the time between
            client.close()
