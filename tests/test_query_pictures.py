"""Pictures of the chosen queries: positions, the pixels that they see, and the page in a browser."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import browser, chromium
from PIL import Image
from torch import nn
from trained_run import make_run

from datasets.make_stripes import draw_animal_scene
from models.generator import ResnetGenerator
from models.layers import initialise
from models.qs_attn import log_entropy, select_queries
from models.qs_model import pooled
from models.translator import Translator
from scripts import visualize_queries
from scripts.visualize_queries import attention_level, pixels_of, score_level, view_queries, write_page

MODES = ("global", "local", "local_global")


@pytest.fixture(scope="module")
def scene():
    """A small generator, a drawn image (1, 3, 48, 64) and its views at layers 8 and 16."""
    torch.manual_seed(0)
    net = initialise(ResnetGenerator(ngf=4, n_blocks=5)).eval()
    picture = draw_animal_scene(np.random.default_rng(3), 64, "plain")[0][8:56]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    views = view_queries(net, image, [8, 16], MODES, num_patches=20, window=5)
    return SimpleNamespace(net=net, image=image, picture=picture, views=views)


# Positions


def test_views_show_what_select_queries_chooses(scene):
    for view in scene.views:
        features = scene.net.encode(scene.image, [view.layer])[0].detach()
        selection = select_queries(features, view.mode, 20, 5)
        np.testing.assert_array_equal(view.indices, selection.indices[0])
        np.testing.assert_array_equal(view.log_entropy.ravel(), log_entropy(features, view.mode, 5)[0])
        assert view.log_entropy.shape == features.shape[2:] and view.window == selection.window
        for index, weights, row in zip(view.indices, selection.attention[0], view.rows, strict=True):
            expected = np.zeros_like(row) if view.window else weights.numpy().reshape(row.shape)
            for k, weight in enumerate(weights if view.window else ()):
                y, x = index // row.shape[1] + k // 5 - 2, index % row.shape[1] + k % 5 - 2
                if 0 <= y < row.shape[0] and 0 <= x < row.shape[1]:
                    expected[y, x] = weight
            np.testing.assert_allclose(row, expected, atol=1e-6)
        flat = features[0].flatten(1)
        np.testing.assert_allclose(view.scores, flat[:, view.indices].T @ flat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "pool", "grid", "stride", "border"),
    [
        (0, 0, (54, 70), 1, 3),
        (8, 0, (24, 32), 2, 0),
        (16, 0, (12, 16), 4, 0),
        (4, 16, (16, 16), None, None),  # 3 x 4 positions averaged
    ],
)
def test_a_position_lies_at_the_pixel_in_the_middle_of_what_it_sees(layer, pool, grid, stride, border):
    net = ResnetGenerator(ngf=2, n_blocks=5, norm="none")
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.05)  # equal weights: the gradient is symmetric about its centre
    image = torch.ones(1, 3, 48, 64, requires_grad=True)
    view = view_queries(net, image.detach(), [layer], ["global"], 4, pool=pool)[0]
    features = pooled(net.encode(image, [layer])[0], pool)
    assert features.shape[2:] == view.log_entropy.shape == grid
    y, x = grid[0] // 2, grid[1] // 2
    features[0, 0, y, x].backward()
    seen = image.grad[0, 0] / image.grad[0, 0].sum()
    middle = [(seen.sum(1) @ torch.arange(48.0)).item(), (seen.sum(0) @ torch.arange(64.0)).item()]
    places = pixels_of(np.array([y * grid[1] + x, 0]), grid[1], view.geometry, (48, 64))
    assert places[0].tolist() == pytest.approx(middle, abs=0.6)  # at layer 16 it sees more than the image
    if stride:
        assert places[0].tolist() == [stride * y - border, stride * x - border]
        assert places[1].tolist() == [border, border]  # the padding mirrors: three outside is three inside


def test_scales():
    np.testing.assert_allclose(attention_level(np.array([0, 1e-5, 1e-2, 1])), [0, 0, 0.6, 1], atol=1e-6)
    np.testing.assert_allclose(score_level(np.array([[1.0, 3, 2], [5, 5, 5]])), [[0, 1, 0.5], [0, 0, 0]])


# The page


@pytest.fixture
def page(scene, tmp_path):
    path = tmp_path / "page.html"
    title = "na\udcefve {{data}} </script><b>&title"
    write_page(scene.views, scene.picture, scene.picture[:, ::-1], path, title)
    return path


def test_the_page_is_one_file(page):
    text = page.read_text()
    head = text.split('type="application/json"')[0]
    assert not re.search(r"(src|href)\s*=|url\(|https?://|@import", head)
    assert text.count("</script>") == 2 and "<h1>na\\udcefve {{data}} &lt;/script&gt;" in text


@pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium")
def test_the_page_in_a_browser(scene, page, tmp_path):
    pytest.importorskip("websocket")
    view = next(view for view in scene.views if view.mode == "local" and view.layer == 16)
    y, x = view.chosen[11]
    with browser(tmp_path) as tab:
        tab.open(page.as_uri())
        tab.wait("view")
        for name, value in (("layer", "16"), ("mode", "local"), ("show", "attention")):
            tab.run(f"$('{name}').value = '{value}'")
        tab.run("$('layer').dispatchEvent(new Event('change'))")
        tab.wait("view.layer === 16 && view.mode === 'local'")
        tab.run(f"""{{
            const box = $("target").getBoundingClientRect();
            const clientX = box.left + ({x} + .5) / 64 * box.width;
            const clientY = box.top + ({y} + .5) / 48 * box.height;
            $("target").dispatchEvent(new MouseEvent("click", {{clientX, clientY}}));
        }}""")
        assert tab.run("$('rank').value") == "11"
        assert f"Query 11 of 20, among 192 positions, at pixel (row, column) {y}, {x}" in tab.text()
        row = attention_level(view.rows[11]).ravel()  # rows arrive whole
        np.testing.assert_allclose(tab.run("[...levels()]"), row, atol=0.5 / 255 + 1e-6)
        tab.run("$('chosen').click()")
        ((y, x),) = pixels_of(np.array([row.argmax()]), 16, view.geometry, (48, 64)).tolist()
        pixel = f"$('source').getContext('2d').getImageData({16 * x + 8}, {16 * y + 8}, 1, 1)"
        bright = tab.run(f"[...{pixel}.data]")
        assert np.std(bright[:3]) > 20  # the heat lies over its position; the photograph is grey
        assert tab.errors == []


# The command


def test_layers_window_and_queries_are_those_of_the_run(tmp_path, capsys):
    """Of 9 x 9 maps averaged to 4 x 4; the sides of images are no multiples of 4, and one is broken."""
    for number in range(2):
        picture, _ = draw_animal_scene(np.random.default_rng(number), 34, "plain")
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    words = "--QS_mode local --qs_layers 13,15 --qs_window 3 --num_patches 5 --nce_layers 8,13,15 --qs_pool 4"
    make_run(tmp_path, *words.split())
    words = f"--name run --checkpoints_dir {tmp_path} --gpu_ids -1 --input {tmp_path} --output {tmp_path}/out"
    assert visualize_queries.main([*words.split(), "--modes", "local"]) == 1  # for the broken one
    said = capsys.readouterr()
    assert "broken.jpg" in said.err
    assert all(f"layer {layer}, local: 5 of 16 positions" in said.out for layer in (13, 15))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.html", "1.html"]
    assert '"window":3' in (tmp_path / "out" / "0.html").read_text()


def test_a_generator_without_layers_is_named(tmp_path, monkeypatch, capsys):
    make_run(tmp_path, "--model", "cycle_gan")
    opt = SimpleNamespace(input_nc=3, translate_size=None, precision="fp32", channels_last=False)
    monkeypatch.setattr(visualize_queries, "load_generator", lambda *_: Translator(nn.Identity(), "cpu", opt))
    words = f"--name run --checkpoints_dir {tmp_path} --gpu_ids -1 --input {tmp_path}"
    assert visualize_queries.main(words.split()) == 2
    assert "no layers to choose queries in" in capsys.readouterr().err
