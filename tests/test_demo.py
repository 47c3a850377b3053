"""The page to try models on: what it offers, and that it shows what test.py makes."""

import base64
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from browser import browser, chromium
from PIL import Image
from trained_run import draw, draw_set, make_run

from scripts import demo
from scripts.demo import find_models
from util.errors import UserError

PRETRAINED = "horse2zebra_global (pretrained)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of several models, one with three epochs, a folder without options, and broken ones."""
    root = tmp_path_factory.mktemp("demo")
    dataset = draw_set(root / "set", testA=5, testB=1, testcat=1, testdog=1)
    of_set = ["--dataroot", str(dataset)]
    folder = make_run(root / "checkpoints", *of_set, name="horses/global")
    for epoch in ("5", "10"):
        shutil.copy(folder / "latest_net_G.pth", folder / f"{epoch}_net_G.pth")
    make_run(root / "checkpoints", "--model", "cycle_gan", name="both")
    multi = "--model qs_multi --domains cat,dog --nce_layers 0,4,8"
    make_run(root / "checkpoints", *multi.split(), *of_set, name="domains")
    munit = "--model munit --mlp_dim 8 --n_res 1 --style_dim 3 --load_size 64 --crop_size 64"
    make_run(root / "checkpoints", *munit.split(), name="styles")
    (root / "checkpoints/released").mkdir()
    shutil.copy(folder / "latest_net_G.pth", root / "checkpoints/released/latest_net_G.pth")
    options = json.loads((folder / "train_opt.json").read_text())
    for number, change in enumerate(({"ngf": "x"}, {"model": "sphinx"})):
        shutil.copytree(folder, root / f"checkpoints/broken{number}")
        (root / f"checkpoints/broken{number}/train_opt.json").write_text(json.dumps({**options, **change}))
    (root / "checkpoints/empty").mkdir()
    return root


def test_every_run_and_epoch_is_offered_and_broken_ones_are_named(runs, capsys):
    models = find_models(runs / "checkpoints")
    assert set(models) == {"horses/global", "both", "domains", "styles", "released", PRETRAINED}
    assert models["horses/global"].epochs == ["latest", "10", "5"]
    assert models["both"].directions == ["AtoB", "BtoA"] and models["released"].directions == ["AtoB"]
    told = capsys.readouterr().err
    assert told.count("note: left out:") == 2 and "sphinx" in told
    examples = {label: [path.name for path in model.examples()] for label, model in models.items()}
    assert examples["horses/global"] == ["A0.png", "A1.png", "A2.png", "A3.png"]
    assert examples["domains"] == ["g0.png"] and examples["released"] == []
    assert examples[PRETRAINED] == []


@pytest.mark.parametrize(
    "label, controls, words",
    [
        ("horses/global", {"size": "as it is", "epoch": "5"}, "--load_size 0 --epoch 5"),
        ("horses/global", {"size": "128", "epoch": "7", "direction": "BtoA"}, "--load_size 128"),
        ("both", {"direction": "BtoA", "domain": "dog", "style": 7}, "--direction BtoA"),
        ("domains", {"domain": "dog"}, "--domain dog"),
        ("domains", {"domain": "cow"}, "--domain cat"),
        ("styles", {"style": 7}, "--style_seed 7"),
        ("released", {}, ""),
    ],
)
def test_what_a_model_has_becomes_options_of_test_py(runs, tmp_path, label, controls, words):
    options = find_models(runs / "checkpoints")[label].options(**controls)
    assert options == ["--name", label, "--checkpoints_dir", str(runs / "checkpoints"), *words.split()]
    draw(tmp_path / "photo 1.png", (90, 60), "RGBA")
    source = demo.translate(tmp_path / "photo 1.png", [*options, "--gpu_ids", "-1"], tmp_path / "out.png")
    assert source.size == Image.open(tmp_path / "out.png").size
    assert source.size == ((192, 128) if controls.get("size") == "128" else (90, 60))


def test_a_run_deleted_meanwhile_is_an_error_of_the_page(tmp_path):
    with pytest.raises(UserError, match="error: "):
        demo.translate(tmp_path / "a.png", ["--name", "nun", "--gpu_ids", "-1"], tmp_path / "out.png")


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
        while "Page: http" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0 and not list((tmp_path / "temporary").glob("qsattn_demo_*"))


def pixels(page, source: str) -> np.ndarray:
    """An image of the page by its address, as an array."""
    data = page.run(
        f"fetch({source!r}).then(a => a.blob()).then(blob => new Promise(done => {{"
        "const reader = new FileReader(); reader.onload = () => done(reader.result);"
        "reader.readAsDataURL(blob); }))"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))))


def test_in_the_browser_a_dropped_photograph_becomes_what_test_py_makes(runs, address, tmp_path):
    draw(tmp_path / "photo.png", (54, 40))
    dropped = "document.querySelector('#photo')"
    with browser(tmp_path) as page:
        page.open(address)
        field = "document.querySelector('input[aria-label=Model]')"
        option = "[...document.querySelectorAll('[role=option]')].find(o => o.innerText.endsWith('global'))"
        page.click_until(field, f"!!{option}")
        page.click(option)
        page.wait(f"{field}.value === 'horses/global'")
        page.drop(dropped, tmp_path / "photo.png")
        command = page.wait("document.querySelector('#command .cm-content')?.innerText")
        assert command.startswith("python test.py --name horses/global")
        words = shlex.split(command)[2:-1] + [str(tmp_path / "photo.png"), "--gpu_ids", "-1"]
        assert demo.translation.main([*words, "--output", str(tmp_path / "out.png")]) == 0
        expected = np.asarray(Image.open(tmp_path / "out.png"))
        page.wait("document.querySelectorAll('#slider img').length >= 2")
        images = page.run("[...document.querySelectorAll('#slider img')].map(image => image.src)")
        assert any(np.array_equal(pixels(page, source), expected) for source in images)
        page.click("document.querySelectorAll('#examples button')[1]")
        page.wait("document.querySelector('#command .cm-content').innerText.endsWith('--input A1.png')")
        # Nothing was asked of any other machine, and no script has failed.
        foreign = [r for r in page.requests if not r.startswith((address, "data:", "blob:", "about:"))]
        assert foreign == [] and page.errors == []
        (tmp_path / "broken.png").write_bytes(b"no image")
        page.open(address)
        page.drop(dropped, tmp_path / "broken.png")
        page.wait("document.body.innerText.includes('not an image')")
