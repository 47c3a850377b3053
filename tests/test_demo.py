"""The page to try models on: what it offers, and that it translates exactly as test.py does."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browser, chromium
from PIL import Image
from trained_run import draw, make_run
from visdom_server import wait_until

import test as test_command
from scripts import demo
from scripts.demo import Studio, find_models
from util.errors import UserError

CPU = torch.device("cpu")
LAYERS = ("--nce_layers", "0,4,8,12,14")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of three models, one with three epochs, a folder without options, and two pretrained files."""
    root = tmp_path_factory.mktemp("demo")
    folder = make_run(root / "checkpoints", *LAYERS, "--num_patches", "9", name="horses/global")
    for epoch in ("5", "10"):
        shutil.copy(folder / "latest_net_G.pth", folder / f"{epoch}_net_G.pth")
    make_run(root / "checkpoints", *LAYERS, "--model", "cut", name="cut")
    (root / "checkpoints/released").mkdir()
    shutil.copy(folder / "latest_net_G.pth", root / "checkpoints/released/latest_net_G.pth")
    for name in ("zebras", "striped"):
        (root / "pretrained" / name).mkdir(parents=True)
        shutil.copy(folder / "latest_net_G.pth", root / "pretrained" / name)
    shutil.copy(folder / "train_opt.json", root / "pretrained/striped")
    (root / "checkpoints/empty").mkdir()
    return root


@pytest.fixture
def studio(runs, tmp_path):
    return Studio(runs / "checkpoints", runs / "pretrained", CPU, tmp_path)


def by_test_py(runs: Path, photo: Path, *words: str, name: str = "horses/global") -> np.ndarray:
    """What test.py translates a photograph to."""
    target = photo.parent / "by_test_py.png"
    given = ["--name", name, "--checkpoints_dir", str(runs / "checkpoints"), "--gpu_ids", "-1"]
    assert test_command.main([*given, "--input", str(photo), "--output", str(target), *words]) == 0
    return np.asarray(Image.open(target))


def test_every_run_and_epoch_and_pretrained_file_is_offered(runs):
    models = find_models(runs / "checkpoints", runs / "pretrained")
    assert list(models)[:2] == ["striped (pretrained)", "zebras (pretrained)"]
    assert set(models) == {*list(models)[:2], "horses/global", "cut", "released"}
    assert models["horses/global"].epochs == ("latest", "10", "5")
    assert models["horses/global"].trained_size == 32 and models["released"].saved is None
    assert find_models(runs / "nowhere", runs / "nowhere") == {}


def test_a_run_that_learns_both_directions_offers_them(tmp_path):
    folder = make_run(tmp_path, name="run")
    options = folder / "train_opt.json"
    options.write_text(options.read_text().replace('"model": "qs"', '"model": "cycle_gan"'))
    for network in ("G_A", "G_B"):
        (folder / f"latest_net_{network}.pth").touch()
    (entry,) = find_models(tmp_path, tmp_path / "none").values()
    assert entry.directions == ("AtoB", "BtoA") and entry.epochs == ("latest",)


@pytest.mark.parametrize("side, words", [(None, ("--load_size", "0")), (32, ("--load_size", "32"))])
@pytest.mark.parametrize("name", ["photo.png", "photo.jpg"])
def test_translations_are_those_of_test_py(runs, studio, tmp_path, side, words, name):
    draw(tmp_path / name, (54, 40), "RGBA" if name.endswith("png") else "RGB")
    done = studio.translate(tmp_path / name, studio.entry("horses/global"), "latest", "", side)
    expected = by_test_py(runs, tmp_path / name, *words)
    np.testing.assert_array_equal(np.asarray(done.target), expected)
    assert done.source.size == done.target.size and done.facts["trained at"] == "32 × 32"
    assert f"--name horses/global --input {name}" in done.command
    assert ("--load_size 32" in done.command) == (side is not None)


def test_pretrained_files_and_foreign_runs_translate_too(studio, tmp_path):
    draw(tmp_path / "photo.png")
    results = [
        np.asarray(studio.translate(tmp_path / "photo.png", entry, entry.epochs[0], "", None).target)
        for entry in map(
            studio.entry, ("horses/global", "zebras (pretrained)", "striped (pretrained)", "released")
        )
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_pretrained_file_with_options_has_its_size_queries_and_command(studio, tmp_path, monkeypatch):
    draw(tmp_path / "photo.png")
    entry = studio.entry("striped (pretrained)")
    done = studio.translate(tmp_path / "photo.png", entry, "", "", None)
    assert done.facts["trained at"] == "32 × 32"
    assert done.command == "python test.py --pretrained striped --input photo.png"
    page, why_not = studio.queries(tmp_path / "photo.png", entry, "", "", None)
    assert '"layer":14' in page and not why_not  # its own layer, not the default's


def test_weights_that_a_training_replaces_are_loaded_anew(studio, runs, tmp_path):
    draw(tmp_path / "photo.png")
    entry = studio.entry("released")
    before = studio.translate(tmp_path / "photo.png", entry, "latest", "", None).target
    path = runs / "checkpoints/released/latest_net_G.pth"
    weights = torch.load(path, weights_only=True)
    torch.save({name: -value for name, value in weights.items()}, path)
    os.utime(path, (0, path.stat().st_mtime + 10))
    after = studio.translate(tmp_path / "photo.png", entry, "latest", "", None).target
    torch.save(weights, path)
    assert np.abs(np.asarray(before).astype(int) - np.asarray(after)).max() > 0


def test_the_queries_are_the_runs_own(studio, tmp_path):
    draw(tmp_path / "photo.png", (54, 40))
    page, obstacle = studio.queries(tmp_path / "photo.png", studio.entry("horses/global"), "latest", "", None)
    assert not obstacle and page.startswith("<!DOCTYPE html>") and "photo.png: queries of" in page
    assert page.count('"mode":"global"') == 2 and '"layer":14' in page
    page, obstacle = studio.queries(tmp_path / "photo.png", studio.entry("cut"), "latest", "", None)
    assert not page and "at random" in obstacle
    draw(tmp_path / "large.png", (600, 600))
    page, obstacle = studio.queries(tmp_path / "large.png", studio.entry("horses/global"), "latest", "", None)
    assert not page and "too large" in obstacle


def test_many_come_from_files_folders_and_archives(runs, studio, tmp_path):
    for number in range(10):
        draw(tmp_path / "folder" / f"{number}.png", (32, 32), seed=number)
    draw(tmp_path / "single.jpg")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as file:
        file.write(tmp_path / "folder/3.png", "nested/3.png")
    progress = []
    archive, written, failures = studio.translate_many(
        [tmp_path / name for name in ("folder", "single.jpg", "broken.png", "archive.zip")],
        studio.entry("horses/global"),
        "latest",
        "",
        None,
        done=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(8, 13), (13, 13)]
    assert [path.name for path in written] == [f"{n}.png" for n in range(10)] + ["single.png", "3.png.png"]
    assert len(failures) == 1 and failures[0].startswith("broken.png: ")
    assert sorted(zipfile.ZipFile(archive).namelist()) == sorted(path.name for path in written)
    expected = by_test_py(runs, tmp_path / "folder/3.png")
    np.testing.assert_array_equal(np.asarray(Image.open(written[3])), expected)
    np.testing.assert_array_equal(np.asarray(Image.open(written[-1])), expected)


def test_what_cannot_be_used_is_named(studio, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no image")
    entry = studio.entry("horses/global")
    with pytest.raises(UserError, match="cannot use the image .*photo.png"):
        studio.translate(tmp_path / "photo.png", entry, "latest", "", None)
    with pytest.raises(UserError, match="no photographs among these"):
        studio.translate_many([], entry, "latest", "", None)
    with pytest.raises(UserError, match="there is no model 'gone' any more"):
        studio.entry("gone")
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as file:
        file.writestr("../outside.png", b"")
    with pytest.raises(UserError, match="would be written outside"):
        studio.translate_many([tmp_path / "hostile.zip"], entry, "latest", "", None)


def test_a_network_with_styles_translates_in_the_chosen_one(studio, tmp_path, monkeypatch):
    class Styled:
        """A translator with the interface of one that has styles."""

        style_dim, seed = 8, 0

        def with_style(self, seed):
            other = Styled()
            other.seed = seed
            return other

    monkeypatch.setattr(demo, "load_generator", lambda *_: Styled())
    monkeypatch.setattr(demo.MODELS["cut"], "styled", True, raising=False)
    demo._loaded.cache_clear()
    assert studio.translator(studio.entry("cut"), "latest", "", style=7).seed == 7
    assert not studio.entry("released").has_styles
    demo._loaded.cache_clear()


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert demo.main(["--gpu_ids", "-1"]) == 2
    assert "pip install -r requirements-demo.txt" in capsys.readouterr().err


# In the browser


@pytest.fixture(scope="module")
def address(runs):
    """The page, served by a process of its own."""
    pytest.importorskip("gradio")
    pytest.importorskip("websocket")
    if not chromium():
        pytest.skip("needs chromium")
    port = 7800 + os.getpid() % 1000
    words = ["--checkpoints_dir", runs / "checkpoints", "--pretrained_dir", runs / "none", "--gpu_ids", "-1"]
    command = [sys.executable, demo.__file__, *map(str, words), "--port", str(port)]
    with open(runs / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=runs)
    try:
        wait_until(
            lambda: "Page: http" in (runs / "server.log").read_text() or process.poll() is not None,
            seconds=120,
        )
        assert process.poll() is None, (runs / "server.log").read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(60)


def pixels(page, selector: str) -> np.ndarray:
    """An image or a file that the page links to, as an array."""
    address = page.wait(f"(e => e && (e.href || e.src))(document.querySelector({selector!r}))")
    data = page.run(
        f"fetch({address!r}).then(a => a.blob()).then(blob => new Promise(done => {{"
        "const reader = new FileReader(); reader.onload = () => done(reader.result);"
        "reader.readAsDataURL(blob); }))"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))))


# Moves the pointer over a query of the page in the frame.
POINT_AT_QUERY = """(inside, query) => {
    const canvas = inside.querySelector("#source"), box = canvas.getBoundingClientRect();
    const [row, column] = inside.defaultView.eval("view").chosen[query];
    const {width, height} = inside.defaultView.eval("pixels").source;
    const at = {clientX: box.x + (column + .5) * box.width / width,
                clientY: box.y + (row + .5) * box.height / height};
    canvas.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, ...at}));
}"""


def test_in_the_browser_a_dropped_photograph_becomes_what_test_py_makes(runs, address, tmp_path):
    draw(tmp_path / "photo.png", (54, 40))
    with browser(tmp_path) as page:
        page.open(address)
        choose(page, "Model", "horses/global")
        page.drop(one("#photo"), tmp_path / "photo.png")
        command = page.wait("document.querySelector('.command')?.innerText")
        assert command.startswith("python test.py --name horses/global --input photo.png --load_size 32")
        expected = by_test_py(runs, tmp_path / "photo.png", "--load_size", "32")
        page.wait("document.querySelectorAll('#slider img').length >= 2")
        images = page.run("[...document.querySelectorAll('#slider img')].map(image => image.src)")
        shown = [pixels(page, f'#slider img[src="{source}"]') for source in images]
        assert any(s.shape == expected.shape and (s == expected).all() for s in shown)
        # The queries, and the row of the one that the pointer is at.
        inside = "document.querySelector('iframe.queries').contentDocument"
        page.wait(f"!!document.querySelector('iframe.queries') && !!{inside}.querySelector('#facts dd')")
        assert "9 of 88 positions" in page.run(f"{inside}.body.innerText")
        before = page.run(f"{inside}.querySelector('#facts').innerText")
        page.run(f"(({POINT_AT_QUERY})({inside}, 5))")
        page.wait(f"{inside}.querySelector('#facts').innerText !== {before!r}")
        # Nothing was asked of any other machine, and no script has failed.
        foreign = [r for r in page.requests if not r.startswith((address, "data:", "blob:", "about:"))]
        assert foreign == [] and page.errors == []


def one(selector: str) -> str:
    """The element of a selector, in JavaScript."""
    return f"document.querySelector({json.dumps(selector)})"


def choose(page, label: str, value: str) -> None:
    """Choose an entry of one of Gradio's lists."""
    field = one(f'input[aria-label="{label}"]')
    option = (
        f"[...document.querySelectorAll('[role=option]')].find(o => o.innerText.trim().endsWith('{value}'))"
    )
    page.click_until(field, f"!!{option}")
    page.click(option)
    page.wait(f"{field}.value === '{value}'")


def test_in_the_browser_a_zip_is_translated_as_a_batch(runs, address, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for number in range(3):
            draw(tmp_path / f"{number}.png", (32, 32), seed=number)
            file.write(tmp_path / f"{number}.png", f"{number}.png")
    with browser(tmp_path) as page:
        page.open(address)
        page.wait("document.querySelectorAll('[role=tab]').length >= 2")
        tabs = "[...document.querySelectorAll('[role=tab]')].filter(tab => tab.innerText.includes('Many'))"
        tab, field = f"{tabs}.find(tab => tab.offsetWidth > 0)", one("#files input[type=file]")
        page.click_until(tab, f"!!{field}")
        page.upload("#files input[type=file]", tmp_path / "photos.zip")
        page.wait("document.querySelector('#files').innerText.includes('photos')")
        done = "document.querySelector('#report')?.innerText.includes('3 translated.')"
        page.click_until(one("#translate_all"), done)


def test_in_the_browser_a_broken_photograph_is_named(address, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no image")
    with browser(tmp_path) as page:
        page.open(address)
        page.drop(one("#photo"), tmp_path / "photo.png")
        page.wait("document.body.innerText.includes('cannot use the image')")
