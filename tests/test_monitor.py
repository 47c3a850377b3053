"""What a run writes about itself: logs to the letter, curves, page, images; nothing of it stops the run."""

import json
import math
import os
import re
import threading
import time
import xml.etree.ElementTree as ElementTree
from html import unescape
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch

from util.images import save_png, to_uint8
from util.pages import Page
from util.watch import monitor as monitoring
from util.watch.loss_log import LossRecord, read_loss_records
from util.watch.monitor import Monitor
from util.watch.training_page import TrainingPage, draw_losses

LOSSES = {"G_GAN": 0.349, "D_real": 0.303, "D_fake": 0.277, "G": 5.105, "NCE": 4.756, "NCE_Y": 4.581}
LINE = (
    "(epoch: 1, iters: 100, time: 0.123, data: 0.002) "
    "G_GAN: 0.349 D_real: 0.303 D_fake: 0.277 G: 5.105 NCE: 4.756 NCE_Y: 4.581 \n"
)
HEADER = r"={16} Training Loss \(\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\) ={16}\n"
GREY = np.full((8, 8, 3), 127, np.uint8)


def record(images: int, epoch: int = 1, losses: dict[str, float] = LOSSES) -> LossRecord:
    """After so many images of epochs of 1000."""
    done = epoch - 1 + images % 1000 / 1000
    return LossRecord(epoch, images % 1000, images, done, losses, 0.1234, 0.0016, lr=2e-4)


def log(monitor: Monitor, *arguments, **named) -> None:
    monitor.losses(record(*arguments, **named))


def with_page(folder: Path) -> Monitor:
    return Monitor(folder, [TrainingPage(folder, "my <run>", 400)])


def links(page: Path) -> list[str]:
    """The files that a page points to, in order."""
    found = re.findall(r'(?:src|href)="(.*?)"', page.read_text(encoding="utf-8"))
    return [unquote_to_bytes(unescape(file)).decode("utf-8", "surrogateescape") for file in found]


def images_of(folder: Path) -> list[str]:
    """The images of a training page in order."""
    return [file.split("/", 2)[2] for file in links(folder / "web/index.html")[3::2]]


# Logs


def test_logs_have_the_released_format_to_the_letter_and_one_json_object_per_line(tmp_path):
    for losses in (LOSSES, {"G": math.nan, "D": math.inf}):  # two sessions
        log(Monitor(tmp_path), 100, losses=losses)
    text = HEADER + re.escape(LINE) + HEADER + r"\(epoch: .*G: nan D: inf \n"
    assert re.fullmatch(text, (tmp_path / "loss_log.txt").read_text())
    first, second = map(json.loads, open(tmp_path / "log.jsonl"))
    assert first.pop("time").startswith("20")
    assert first == {
        "type": "losses", "epoch": 1, "iters": 100, "images": 100, "epochs_done": 0.1, "lr": 2e-4,
        "seconds_per_image": 0.1234, "data_seconds": 0.0016, "losses": LOSSES,
    }  # fmt: skip
    assert second["losses"] == {"G": None, "D": None}  # valid JSON


def test_a_resume_drops_what_was_logged_after_its_checkpoint(tmp_path):
    first = Monitor(tmp_path)
    log(first, 100)
    state = json.loads(json.dumps(first.state_dict()))
    before = {name: (tmp_path / name).read_bytes() for name in ("loss_log.txt", "log.jsonl")}
    log(first, 200)
    second = Monitor(tmp_path)
    second.load_state_dict(state)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    log(second, 200)
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'{"type": "los\n\xff\n')  # torn by a crash
    assert read_loss_records(tmp_path) == [record(100), record(200)]
    (tmp_path / "loss_log.txt").write_text("short\n")  # one that is shorter stays, one that is missing too
    (tmp_path / "log.jsonl").unlink()
    second.load_state_dict(state)
    assert (tmp_path / "loss_log.txt").read_text() == "short\n" and not (tmp_path / "log.jsonl").exists()


# Curves


@pytest.mark.parametrize("count", [1, 5336])  # the last: 533,600 images at --print_freq 100
def test_plot_is_well_formed_small_and_stands_alone(count):
    values = {"G": [5.1, 4.0], "<odd> & other": [-1e-9, -1e-9]}
    curves = {name: [*[0.1, a, 0.2, b] * count][: 2 * count] for name, (a, b) in values.items()}
    svg = draw_losses(curves)
    root = ElementTree.fromstring(svg)
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text") if t.get("class") == "title"]
    assert titles == list(curves)
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "nan" not in svg and "inf" not in svg and len(svg) < 300_000


# Page and images


def test_page_shows_the_state_and_the_images_of_every_epoch_newest_first(tmp_path):
    labels = ["real_A", "fake_B", "rec_A"]
    (tmp_path / "train_opt.txt").write_text("all of them")
    for epochs, more in (((1,), ["old"]), ((2, 36), [])):  # in the second session there is a label less
        monitor = with_page(tmp_path)
        monitor.load_state_dict(Monitor(tmp_path).state_dict())
        for epoch in epochs:
            log(monitor, 1000 * epoch - 500, epoch)
            monitor.images(epoch, 1000 * epoch, dict.fromkeys(more + labels, GREY), keep=epoch != 2)
        monitor.close()
    assert images_of(tmp_path) == [f"epoch036_{label}.png" for label in labels] + [
        f"epoch001_{label}.png" for label in [*labels, "old"]
    ]
    page = tmp_path / "web/index.html"
    assert all((tmp_path / "web" / file).is_file() for file in links(page))
    text = unescape(re.sub("<.*?>", "", page.read_text()))
    for part in ("epoch36 of 400", "time left12:29:39", "my <run>"):  # 364.5 epochs of 123.4 s
        assert part in text
    assert not list(tmp_path.glob("web/*.part"))


class Recorder:
    """A watcher that records its calls, and fails or blocks on request."""

    name = "the recorder"

    def __init__(self, fails: bool = False, block: threading.Event | None = None):
        self.calls, self.fails, self.block = [], fails, block

    def __getattr__(self, call):
        def called(*arguments):
            self.calls.append((call, *arguments))
            if self.block:
                self.block.wait()
            if self.fails:
                raise ZeroDivisionError("division by zero")

        return called


def run_through(monitor: Monitor) -> None:
    log(monitor, 100)
    monitor.images(1, 120, {"fake_B": GREY}, keep=False)
    monitor.close()


CALLS = [("begin", []), ("losses", record(100)), ("images", 1, 120, {"fake_B": GREY}, False), ("close",)]


def test_a_resumed_run_begins_with_its_records_and_shows_none_of_the_future(tmp_path):
    first = with_page(tmp_path)
    log(first, 100)
    first.images(1, 100, {"fake_B": GREY}, keep=True)
    state = first.state_dict()
    log(first, 1200, epoch=2)
    first.images(2, 1200, {"fake_B": GREY}, keep=True)
    first.close()
    watcher = Recorder()
    second = Monitor(tmp_path, [TrainingPage(tmp_path, "run", 400), watcher])
    second.load_state_dict(state)
    second.close()
    assert watcher.calls == [("begin", [record(100)]), ("close",)]
    assert images_of(tmp_path) == ["epoch001_fake_B.png"]


def test_a_watcher_that_fails_costs_one_warning_and_the_others_nothing(tmp_path):
    failing, well = Recorder(fails=True), Recorder()
    with pytest.warns(UserWarning, match="the recorder: division by zero; training continues") as caught:
        run_through(Monitor(tmp_path, [failing, well]))
    assert len(caught) == 1 and well.calls == CALLS and failing.calls == CALLS[:1]


def test_a_watcher_that_blocks_holds_nobody_up_and_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(monitoring, "PATIENCE_AT_END", 0.05)
    go = threading.Event()
    blocking, well = Recorder(block=go), Recorder()
    monitor = Monitor(tmp_path, [blocking, well])
    for images in range(1, 500):
        log(monitor, images)
        if images % 50 == 0:
            while not monitor.watchers[1]._calls.empty():
                time.sleep(0.001)
    assert monitor.watchers[0]._calls.qsize() == monitoring.MOST_WAITING
    with pytest.warns(UserWarning, match="the recorder: it did not show the last updates"):
        monitor.close()
    go.set()
    assert len(blocking.calls) == 1 and len(well.calls) == 501


def test_a_disk_that_refuses_costs_a_warning_each(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.warns(UserWarning) as caught:
        run_through(with_page(tmp_path / "run"))
    assert {str(warning.message).split(":")[0] for warning in caught} == {"the loss log", "the web page"}
    assert len(caught) == 2


HOSTILE = [
    "new\nline", 'quo"te\'s', "<script>alert(1)</script>", "100%25 & more#x?y", "javascript:alert(1)",
    "bidi\u202e", os.fsdecode(b"latin\xe91"), "日本語", " spaces ", "semi;colon", "back\\slash", "--><!--",
    "bell\x07\x1b[31m",
]  # fmt: skip


def test_any_file_name_is_linked_and_shown(tmp_path):
    page = Page(tmp_path, title="".join(HOSTILE))
    files = [f"{name.replace('/', '')}.png" for name in HOSTILE]
    for name, file in zip(HOSTILE, files, strict=True):
        save_png(GREY, tmp_path / file)
        page.add_header(name)
        page.add_images(name, {name: file})
    page.save()
    shown = links(tmp_path / "index.html")
    assert shown[::2] == [f"./{name}" for name in files]
    assert all((tmp_path / link).is_file() for link in shown)
    assert not re.search("<script|[\x00-\x09\x0b-\x1f\u202e]", (tmp_path / "index.html").read_text())


def test_images_become_rounded_uint8():
    image = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.5, math.nan]).view(1, 1, 2, 3)
    grey = to_uint8(image)
    assert grey.shape == (2, 3, 3) and grey.dtype == np.uint8
    assert grey[..., 0].ravel().tolist() == [0, 64, 128, 255, 255, 0]
    assert (grey[..., 0] == grey[..., 2]).all()
    assert to_uint8(torch.zeros(2, 4, 2, 2, dtype=torch.bfloat16)).shape == (2, 2, 3)
