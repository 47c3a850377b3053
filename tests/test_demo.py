"""The page to try models on: what it offers, and that it translates exactly as test.py does."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from browser import browser, chromium
from PIL import Image
from trained_run import draw, make_run
from visdom_server import wait_until

import test as test_command
from models import create_model
from options.train_options import TrainOptions
from scripts import demo
from scripts.demo import AS_IT_IS, Choice, find_models
from util.run.saved_options import write_options

CPU = torch.device("cpu")
PRETRAINED = "horse2zebra_global (pretrained)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of three models, one with three epochs, a folder without options, and broken ones."""
    root = tmp_path_factory.mktemp("demo")
    folder = make_run(root / "checkpoints", name="horses/global")
    for epoch in ("5", "10"):
        shutil.copy(folder / "latest_net_G.pth", folder / f"{epoch}_net_G.pth")
    make_run(root / "checkpoints", "--model", "cycle_gan", name="both")
    options = TrainOptions()
    munit = "--model munit --gpu_ids -1 --ngf 4 --ndf 2 --mlp_dim 8 --n_res 1 --style_dim 3 --crop_size 64"
    opt = options.parse([*munit.split(), "--load_size", "64", "--name", "styles"])
    write_options(root / "checkpoints/styles", opt, options.parser.defaults)
    create_model(opt).save_networks(root / "checkpoints/styles", "latest")
    multi = "--model qs_multi --domains cat,dog --nce_layers 0,4,8"
    make_run(root / "checkpoints", *multi.split(), name="domains")
    (root / "checkpoints/released").mkdir()
    shutil.copy(folder / "latest_net_G.pth", root / "checkpoints/released/latest_net_G.pth")
    options = (folder / "train_opt.json").read_text()
    for number, change in enumerate(({"ngf": "x"}, {"model": "sphinx"})):
        shutil.copytree(folder, root / f"checkpoints/broken{number}")
        text = json.dumps({**json.loads(options), **change})
        (root / f"checkpoints/broken{number}/train_opt.json").write_text(text)
    (root / "checkpoints/empty").mkdir()
    return root


@pytest.fixture(scope="module")
def models(runs):
    return find_models(runs / "checkpoints")


def test_every_run_and_epoch_is_offered_and_broken_ones_are_named(runs, tmp_path, capsys):
    models = find_models(runs / "checkpoints")
    assert set(models) == {"horses/global", "both", "styles", "domains", "released", PRETRAINED}
    assert models["horses/global"].epochs == ("latest", "10", "5")
    assert models["both"].directions == ("AtoB", "BtoA") and models["released"].directions == ("AtoB",)
    assert [models[name].styled for name in ("styles", "both")] == [True, False]
    assert [models[name].size for name in ("horses/global", PRETRAINED)] == [32, 256]
    told = capsys.readouterr().err
    assert told.count("note: left out:") == 2 and "--ngf, as saved in" in told
    assert set(find_models(tmp_path)) == {PRETRAINED}


@pytest.mark.parametrize(
    "label, more",
    [
        ("horses/global", {"size": AS_IT_IS, "epoch": "5"}),
        ("horses/global", {"size": "128"}),
        ("both", {"direction": "BtoA"}),
        ("styles", {"style": 7}),
        ("domains", {"domain": "dog"}),
        ("released", {}),
        (PRETRAINED, {}),
    ],
)
def test_translations_are_those_of_the_command_that_is_shown(models, tmp_path, label, more):
    entry = models[label]
    name = "photo 1.png"
    draw(tmp_path / name, (90, 60), "RGBA")
    choice = Choice(**{"entry": entry, "epoch": "latest", "direction": entry.directions[0], **more})
    source, target = demo.translate(tmp_path / name, choice, CPU)
    words = shlex.split(choice.command(str(tmp_path / name)))
    assert words[:2] == ["python", "test.py"]
    assert test_command.main([*words[2:], "--gpu_ids", "-1", "--output", str(tmp_path / "out.png")]) == 0
    np.testing.assert_array_equal(np.asarray(target), np.asarray(Image.open(tmp_path / "out.png")))
    assert source.size == target.size == ((192, 128) if more.get("size") == "128" else (90, 60))


def test_weights_that_a_training_replaces_are_loaded_anew(models, tmp_path):
    draw(tmp_path / "photo.png")
    choice = Choice(models["released"], "latest", "AtoB")
    _, before = demo.translate(tmp_path / "photo.png", choice, CPU)
    path = models["released"].folder / "latest_net_G.pth"
    weights = torch.load(path, weights_only=True)
    torch.save({name: -value for name, value in weights.items()}, path)
    os.utime(path, (0, path.stat().st_mtime + 10))
    _, after = demo.translate(tmp_path / "photo.png", choice, CPU)
    torch.save(weights, path)
    assert np.abs(np.asarray(before).astype(int) - np.asarray(after)).max() > 0


# In the browser


@pytest.fixture
def address(runs, tmp_path):
    """The page, served by a process of its own, which leaves no upload behind when it is terminated."""
    pytest.importorskip("gradio")
    pytest.importorskip("websocket")
    if not chromium():
        pytest.skip("needs chromium")
    port = 7800 + os.getpid() % 1000
    words = ["--checkpoints_dir", runs / "checkpoints", "--gpu_ids", "-1", "--port", port]
    (tmp_path / "temporary").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    log = tmp_path / "server.log"
    with open(log, "wb") as file:
        command = [sys.executable, demo.__file__, *map(str, words)]
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=runs, env=env)
    try:
        started = lambda: "Page: http" in log.read_text() or process.poll() is not None  # noqa: E731
        wait_until(started, seconds=120)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0 and not list((tmp_path / "temporary").glob("qsattn_demo_*"))


def pixels(page, selector: str) -> np.ndarray:
    """An image or a file that the page links to, as an array."""
    address = page.wait(f"(e => e && (e.href || e.src))(document.querySelector({selector!r}))")
    data = page.run(
        f"fetch({address!r}).then(a => a.blob()).then(blob => new Promise(done => {{"
        "const reader = new FileReader(); reader.onload = () => done(reader.result);"
        "reader.readAsDataURL(blob); }))"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))))


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


def test_in_the_browser_a_dropped_photograph_becomes_what_test_py_makes(runs, models, address, tmp_path):
    draw(tmp_path / "photo.png", (54, 40))
    with browser(tmp_path) as page:
        page.open(address)
        choose(page, "Model", "horses/global")
        page.drop(one("#photo"), tmp_path / "photo.png")
        command = page.wait("document.querySelector('#command .cm-content')?.innerText")
        assert command.startswith("python test.py --name horses/global")
        _, expected = demo.translate(
            tmp_path / "photo.png", Choice(models["horses/global"], "latest", "AtoB"), CPU
        )
        page.wait("document.querySelectorAll('#slider img').length >= 2")
        images = page.run("[...document.querySelectorAll('#slider img')].map(image => image.src)")
        shown = [pixels(page, f'#slider img[src="{source}"]') for source in images]
        expected = np.asarray(expected)
        assert any(s.shape == expected.shape and (s == expected).all() for s in shown)
        # Nothing was asked of any other machine, and no script has failed.
        foreign = [r for r in page.requests if not r.startswith((address, "data:", "blob:", "about:"))]
        assert foreign == [] and page.errors == []
        (tmp_path / "broken.png").write_bytes(b"no image")
        page.open(address)
        page.drop(one("#photo"), tmp_path / "broken.png")
        page.wait("document.body.innerText.includes('cannot use the image')")
