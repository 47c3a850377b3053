"""What a run writes about itself: logs to the letter, curves, page, images; and that a bad disk cannot stop it."""

from __future__ import annotations

import json
import math
import os
import re
import time
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image

from util.images import save_png, to_uint8
from util.watch import html_page
from util.watch.html_page import HtmlPage
from util.watch.loss_log import LossLog, read_loss_records
from util.watch.loss_plot import LossHistory, draw_losses, nice_ticks, smooth
from util.watch.monitor import Monitor

LOSSES = {"G_GAN": 0.349, "D_real": 0.303, "D_fake": 0.277, "G": 5.105, "NCE": 4.756, "NCE_Y": 4.581}
LINE = (
    "(epoch: 1, iters: 100, time: 0.123, data: 0.002) "
    "G_GAN: 0.349 D_real: 0.303 D_fake: 0.277 G: 5.105 NCE: 4.756 NCE_Y: 4.581 \n"
)
HEADER = r"={16} Training Loss \(\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\) ={16}\n"
GREY = np.full((8, 8, 3), 127, np.uint8)


def log(watcher: Monitor, images: int, epoch: int = 1, losses: dict[str, float] = LOSSES) -> None:
    watcher.losses(
        epoch=epoch, iters=images, images=images, losses=losses, seconds_per_image=0.1234, data_seconds=0.0016,
        lr=2e-4, epoch_progress=images / 1000,
    )  # fmt: skip


class Links(HTMLParser):
    """Every file a page points to, and the tags it consists of."""

    def __init__(self, page: Path):
        super().__init__()
        self.files, self.tags, self.text = [], [], ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.files += [
            unquote_to_bytes(v).decode("utf-8", "surrogateescape") for k, v in attrs if k in ("src", "href")
        ]

    def handle_data(self, data):
        self.text += data


# Logs


def test_loss_log_has_the_released_format_to_the_letter(tmp_path):
    log(Monitor(tmp_path, "run", html=False), 100)
    assert re.fullmatch(HEADER + re.escape(LINE), (tmp_path / "loss_log.txt").read_text())


def test_each_session_starts_with_a_header(tmp_path):
    for _ in range(2):
        monitor = Monitor(tmp_path, "run", html=False)
        log(monitor, 100)
        log(monitor, 200)
    kinds = "".join("H" if re.fullmatch(HEADER, line) else "L" for line in open(tmp_path / "loss_log.txt"))
    assert kinds == "HLLHLL"


def test_json_lines_hold_the_same_and_more(tmp_path):
    monitor = Monitor(tmp_path, "run", html=False)
    log(monitor, 100)
    monitor.event("checkpoint", epoch=5, path=Path("5_net_G.pth"), fid=np.float32(41.5))
    losses, event = map(json.loads, open(tmp_path / "log.jsonl"))
    assert losses.pop("time").startswith("20")
    assert losses == {
        "type": "losses", "epoch": 1, "iters": 100, "images": 100, "epochs_done": 0.1, "lr": 2e-4,
        "seconds_per_image": 0.1234, "data_seconds": 0.0016, "losses": LOSSES,
    }  # fmt: skip
    assert (event["type"], event["epoch"], event["path"], event["fid"]) == (
        "checkpoint",
        5,
        "5_net_G.pth",
        41.5,
    )


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    log(Monitor(tmp_path, "run"), 100, losses={"G": math.nan, "D": math.inf})

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert record["losses"] == {"G": None, "D": None}
    assert (tmp_path / "loss_log.txt").read_text().endswith("G: nan D: inf \n")


def test_a_resume_drops_what_was_logged_after_its_checkpoint(tmp_path):
    first = Monitor(tmp_path, "run", html=False)
    log(first, 100)
    state = json.loads(json.dumps(first.state_dict()))
    before = {name: (tmp_path / name).read_bytes() for name in ("loss_log.txt", "log.jsonl")}
    log(first, 200)
    second = Monitor(tmp_path, "run", html=False)
    second.load_state_dict(state)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    log(second, 200)
    assert [record["images"] for record in read_loss_records(tmp_path)] == [100, 200]


def test_a_resume_takes_logs_that_are_missing_or_shorter(tmp_path):
    (tmp_path / "loss_log.txt").write_text("short\n")
    LossLog(tmp_path).load_state_dict({"loss_log.txt": 1000, "log.jsonl": 1000})
    assert (tmp_path / "loss_log.txt").read_text() == "short\n" and not (tmp_path / "log.jsonl").exists()


def test_reading_passes_over_torn_lines_and_lets_later_sessions_win(tmp_path):
    lines = [
        {"type": "losses", "images": n, "session": s} for s, n in [(1, 100), (1, 200), (1, 300), (2, 200)]
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines[:3]) + '{"type": "los\n\xff\n'
    (tmp_path / "log.jsonl").write_bytes((text + json.dumps(lines[3])).encode("latin-1"))
    assert [(r["images"], r["session"]) for r in read_loss_records(tmp_path)] == [(100, 1), (200, 2)]


# Curves


def test_history_keeps_means_and_stays_small():
    history = LossHistory(capacity=8)
    for n in range(1, 101):
        history.add(n, {"G": float(n)})
    rows = history.rows()
    assert len(rows) <= 9
    assert all(x == losses["G"] for x, losses in rows)  # the mean of x and of the same numbers as losses
    assert rows[0][0] == 8.5 and rows[-1][0] > 92  # means of 16 records, and the newest are in


def test_history_leaves_out_what_is_not_finite():
    history = LossHistory(capacity=2)
    history.add(1, {"G": math.nan, "D": 1.0})
    history.add(2, {"G": 4.0, "D": None})
    assert history.rows() == [(1.5, {"D": 1.0, "G": 4.0})]


def test_smoothing_keeps_lines_and_the_first_value():
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise)[100:300].std() < 0.3
    assert smooth(noise)[0] == pytest.approx(noise[0])
    np.testing.assert_allclose(smooth(np.full(30, 3.0)), 3.0)
    line = np.arange(400.0)
    np.testing.assert_allclose(smooth(line)[:350], line[:350])


def test_ticks_are_round():
    assert nice_ticks(0, 200, 5) == [0, 50, 100, 150, 200]
    assert nice_ticks(0.07, 0.62, 5) == [0.2, 0.4, 0.6]
    assert nice_ticks(0, 0.3, 6) == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]


@pytest.mark.parametrize("count", [0, 1, 2, 700])
def test_plot_is_well_formed_and_stands_alone(count):
    history = LossHistory()
    for n in range(count):
        history.add(n / 10, {**LOSSES, "<odd> & other": -1e-9})
    svg = draw_losses(history.rows())
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text") if t.get("class") == "title"]
    assert titles == (["Adversarial", "Contrastive", "Generator, total", "Other losses"] if count else [])
    assert "nan" not in svg and "inf" not in svg


def test_plot_stays_cheap_for_a_full_run():
    history = LossHistory()
    for n in range(5336):  # 533,600 images at --print_freq 100
        history.add(n / 13.34, LOSSES)
    assert len(draw_losses(history.rows())) < 250_000


# Page and images


def test_page_shows_every_epoch_newest_first_with_the_curves(tmp_path):
    monitor = Monitor(tmp_path, "my <run>")
    for epoch in (1, 2, 10):
        log(monitor, 100 * epoch, epoch)
        monitor.images(epoch, {"real_A": GREY, "fake_B": GREY}, save=epoch != 2)
        monitor.epoch_end(epoch)
    links = Links(tmp_path / "web/index.html")
    assert links.files[:2] == ["./losses.svg"] * 2
    assert links.files[2::2] == [
        "./images/epoch010_real_A.png", "./images/epoch010_fake_B.png",
        "./images/epoch001_real_A.png", "./images/epoch001_fake_B.png",
    ]  # fmt: skip
    assert all((tmp_path / "web" / file).is_file() for file in links.files)
    assert "my <run>" in links.text and "run" not in links.tags and "0.349" in links.text
    assert not list(tmp_path.glob("web/*.part"))


def test_page_of_a_resumed_run_still_shows_earlier_epochs_but_none_of_the_future(tmp_path):
    first = Monitor(tmp_path, "run")
    log(first, 100)
    first.images(1, {"real_B": GREY, "fake_B": GREY, "real_A": GREY}, save=True)
    state = first.state_dict()
    log(first, 200, epoch=2)
    first.images(2, {"fake_B": GREY}, save=True)
    second = Monitor(tmp_path, "run")
    second.load_state_dict(state)
    second.epoch_end(1)
    files = Links(tmp_path / "web/index.html").files[2::2]
    assert files == [f"./images/epoch001_{label}.png" for label in ("real_A", "fake_B", "real_B")]


def test_without_html_there_is_no_web_folder(tmp_path):
    monitor = Monitor(tmp_path, "run", html=False)
    log(monitor, 100)
    monitor.images(1, {"fake_B": GREY}, save=True)
    monitor.close()
    assert sorted(os.listdir(tmp_path)) == ["log.jsonl", "loss_log.txt"]


HOSTILE = [
    "new\nline", 'quo"te\'s', "<script>alert(1)</script>", "100%25 & more#x?y", "javascript:alert(1)", "bidi\u202e",
    os.fsdecode(b"latin\xe91"), "日本語", " spaces ", "semi;colon", "back\\slash", "--><!--", "bell\x07\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_any_file_name_is_linked_and_shown(tmp_path, name):
    folder = tmp_path / "page"
    file = f"{name.replace('/', '')}.png"
    save_png(GREY, folder / file)
    page = HtmlPage(folder, title=name)
    page.add_header(name)
    page.add_images(name, [file], [name])
    page.save()
    links = Links(folder / "index.html")
    assert [str(folder / linked) for linked in links.files] == [str(folder / f"./{file}")] * 2
    assert all((folder / linked).is_file() for linked in links.files)
    assert "script" not in links.tags and not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", links.text)


def test_page_can_reload_itself(tmp_path):
    for refresh in (0, 30):
        HtmlPage(tmp_path, "run", refresh).save()
        found = re.search(r'<meta content="30" http-equiv="refresh">', (tmp_path / "index.html").read_text())
        assert bool(found) == bool(refresh)


def test_without_dominate_there_is_one_warning_and_all_but_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(html_page, "dominate", None)
    html_page._warn_once_without_dominate.cache_clear()
    with pytest.warns(RuntimeWarning, match="dominate is not installed") as caught:
        monitor = Monitor(tmp_path, "run")
        log(monitor, 100)
        monitor.images(1, {"fake_B": GREY}, save=True)
        monitor.epoch_end(1)
        monitor.close()
    assert len(caught) == 1
    assert sorted(os.listdir(tmp_path / "web")) == ["images", "losses.svg"]


def test_a_disk_that_refuses_costs_one_warning(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="cannot write the log or the page") as caught:
        monitor = Monitor(tmp_path / "run", "run")
        log(monitor, 100)
        monitor.images(1, {"fake_B": GREY}, save=True)
        monitor.epoch_end(1)
        monitor.event("end")
        monitor.load_state_dict(monitor.state_dict())
        monitor.close()
    assert len(caught) == 1


def test_watching_is_cheap_at_the_end_of_a_long_run(tmp_path):
    monitor = Monitor(tmp_path, "run")
    labels = {label for label in ("real_A", "fake_B", "real_B", "idt_B")}
    monitor._labels = {epoch: labels for epoch in range(1, 401)}
    for n in range(5336):
        monitor._history.add(n / 13.34, LOSSES)
    log(monitor, 533_600, epoch=400)
    monitor.epoch_end(400)
    start = time.perf_counter()
    monitor.epoch_end(400)
    assert time.perf_counter() - start < 1  # about 10 ms on an idle machine


def test_images_become_rounded_uint8():
    image = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.5, math.nan]).view(1, 1, 2, 3)
    grey = to_uint8(image)
    assert grey.shape == (2, 3, 3) and grey.dtype == np.uint8
    assert grey[..., 0].ravel().tolist() == [0, 64, 128, 255, 255, 0]
    assert (grey[..., 0] == grey[..., 2]).all()
    batch = torch.rand(2, 3, 4, 5, dtype=torch.bfloat16) * 2 - 1
    np.testing.assert_array_equal(to_uint8(batch), to_uint8(batch[0]))
    assert to_uint8(torch.zeros(4, 2, 2)).shape == to_uint8(torch.zeros(2, 2, 2)).shape == (2, 2, 3)


def test_png_is_the_array(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    save_png(image, tmp_path / "new" / "image.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "image.png")), image)


def test_nothing_is_said_when_all_goes_well(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = Monitor(tmp_path, "run", refresh=10)
        log(monitor, 100)
        monitor.images(1, {"fake_B": GREY}, save=True)
        monitor.close()
