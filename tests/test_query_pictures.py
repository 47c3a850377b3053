"""Pictures of the chosen queries: positions, the pixels that they see, and the page in a browser."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import browser, chromium
from PIL import Image
from trained_run import make_run

from datasets.make_stripes import draw_animal_scene
from models import qs_attn
from models.generator import ResnetGenerator
from models.layers import initialise
from models.qs_attn import log_entropy, select_queries
from models.qs_model import pooled
from scripts import visualize_queries
from scripts.queries.page import write_page
from scripts.queries.pictures import attention_level, heat_picture, score_level
from scripts.queries.view import view_queries
from util.errors import UserError
from util.images import to_uint8

MODES = ("global", "local", "local_global")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scene():
    """A small generator, a drawn image (1, 3, 48, 64), its mask and its views at layers 8 and 16."""
    torch.manual_seed(0)
    net = initialise(ResnetGenerator(ngf=4, n_blocks=5)).eval()
    picture, mask = draw_animal_scene(np.random.default_rng(3), 64, "plain")
    picture, mask = picture[8:56], mask[8:56]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        target = to_uint8(net(image))
    views = view_queries(net, image, [8, 16], MODES, num_patches=20, window=5, seed=7)
    return SimpleNamespace(net=net, image=image, picture=picture, mask=mask, target=target, views=views)


# ---- positions
# ------------------------------------------------------------------------------------------------


def test_views_show_what_select_queries_chooses(scene):
    for layer in (8, 16):
        features = scene.net.encode(scene.image, [layer])[0]
        for view in (view for view in scene.views if view.layer == layer):
            selection = select_queries(features, view.mode, 20, 5)
            np.testing.assert_array_equal(view.indices, selection.indices[0])
            np.testing.assert_allclose(view.attention, selection.attention[0].detach(), atol=1e-6)
            np.testing.assert_array_equal(view.log_entropy.ravel(), log_entropy(features, view.mode, 5)[0])
            assert view.grid == features.shape[2:] and view.window == selection.window
            flat = features[0].flatten(1)
            np.testing.assert_allclose(
                view.scores, (flat[:, view.indices].T @ flat).detach(), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    ("layer", "pool", "grid", "stride", "border"),
    [
        (0, 0, (54, 70), 1, 3),
        (4, 0, (48, 64), 1, 0),
        (8, 0, (24, 32), 2, 0),
        (16, 0, (12, 16), 4, 0),
        (4, 16, (16, 16), None, None),  # 3 x 4 positions averaged
        (12, 8, (8, 8), None, None),
    ],
)
def test_a_position_lies_at_the_pixel_in_the_middle_of_what_it_sees(layer, pool, grid, stride, border):
    net = ResnetGenerator(ngf=2, n_blocks=5, norm="none")
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.05)  # equal weights: the gradient is symmetric about its centre
    image = torch.ones(1, 3, 48, 64, requires_grad=True)
    view = view_queries(net, image.detach(), [layer], ["global"], 4, pool=pool)[0]
    features = pooled(net.encode(image, [layer])[0], pool)
    assert features.shape[2:] == view.grid == grid
    y, x = grid[0] // 2, grid[1] // 2
    features[0, 0, y, x].backward()
    seen = image.grad[0, 0] / image.grad[0, 0].sum()
    middle = [(seen.sum(1) * torch.arange(48)).sum().item(), (seen.sum(0) * torch.arange(64)).sum().item()]
    places = view.pixels(np.array([y * grid[1] + x, 0]))
    # at layer 16 the receptive field is wider than the image; an average of 12 in 8 is uneven
    assert places[0].tolist() == pytest.approx(middle, abs=2 if layer == 12 else 0.6)
    if stride:
        assert places[0].tolist() == [stride * y - border, stride * x - border]
        assert places[1].tolist() == [border, border]  # the padding mirrors: three outside is three inside


def test_maps_over_the_image_meet_positions_at_their_pixels(scene):
    view = next(view for view in scene.views if view.layer == 8)  # 24 x 32 of 48 x 64
    values = np.random.default_rng(0).random((24, 32)).astype(np.float32)
    y, x = view.pixels(np.arange(values.size)).T
    for smooth in (True, False):
        large = view.over_image(values, smooth)
        assert large.shape == (48, 64)
        np.testing.assert_allclose(large[y, x], values.ravel(), rtol=1e-6)
    assert view.over_image(values, True)[0, 1] == pytest.approx(values[0, :2].mean())
    assert view.over_image(values, False)[2, 3] == values[1, 2]


def test_a_local_row_lies_around_its_query(scene):
    view = next(view for view in scene.views if view.mode == "local" and view.layer == 16)
    for rank, index in enumerate(view.indices):
        row, column = divmod(index, 16)
        expected = np.zeros((12, 16), np.float32)
        for k, weight in enumerate(view.attention[rank]):
            y, x = row + k // 5 - 2, column + k % 5 - 2
            if 0 <= y < 12 and 0 <= x < 16:
                expected[y, x] = weight
        np.testing.assert_array_equal(view.row_map(rank), expected)


def test_scales():
    np.testing.assert_allclose(attention_level(np.array([0, 1e-5, 1e-2, 1])), [0, 0, 0.6, 1], atol=1e-6)
    np.testing.assert_allclose(score_level(np.array([[1.0, 3, 2], [5, 5, 5]])), [[0, 1, 0.5], [0, 0, 0]])


def test_a_rule_of_ones_own_is_shown(scene, folder, monkeypatch):
    def brightest(features, window):
        return -features.sum(1).flatten(1)

    monkeypatch.setitem(qs_attn.MODES, "mine", qs_attn.Rule(brightest, qs_attn.global_attention))
    (view,) = view_queries(scene.net, scene.image, [8], ["mine"], 5)
    chosen = scene.net.encode(scene.image, [8])[0].sum(1).flatten().topk(5).indices
    np.testing.assert_array_equal(view.indices, chosen)
    assert run(folder, "--layers", "8", "--modes", "mine") == 1  # for the broken image alone
    assert '"mode":"mine"' in (folder / "out" / "0.html").read_text()


def test_layers_and_modes_that_do_not_exist_are_named(scene):
    with pytest.raises(UserError, match="no layer 99.* 0 to"):
        view_queries(scene.net, scene.image, [99], ["global"])
    with pytest.raises(ValueError, match="mode is 'nearby'"):
        view_queries(scene.net, scene.image, [8], ["nearby"])


# ---- figures
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_figures(scene, tmp_path, ending):
    pytest.importorskip("matplotlib")
    from scripts.queries.figure import draw_figure

    path = tmp_path / "new" / f"figure.{ending}"
    draw_figure(scene.views[1], scene.picture, scene.target, path, rank=3)
    if ending == "png":
        assert Image.open(path).size[0] == 10 * 240
    else:
        assert path.read_bytes().startswith(b"%PDF")


# ---- the page
# -------------------------------------------------------------------------------------------------


@pytest.fixture
def page(scene, tmp_path):
    path = tmp_path / "page.html"
    write_page(scene.views, scene.picture, scene.target, path, "a </script><b>&title")
    return path


def test_the_page_is_one_file(page):
    text = page.read_text()
    assert not re.search(
        r"""(src|href)\s*=|url\(|https?://|@import""", text.split('type="application/json"')[0]
    )
    assert text.count("</script>") == 2 and "<b>" not in text


POINT_AND_PRESS = """((X, Y) => {
const result = {}, canvas = $("target"), box = canvas.getBoundingClientRect();
const query = () => Number($("facts").dataset.query);
const key = name => canvas.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const place = {clientX: box.left + (X + .5) / 64 * box.width, clientY: box.top + (Y + .5) / 48 * box.height};
const colour = id => {
    const c = $(id), s = c.width / 64;
    return [...c.getContext("2d").getImageData((X + .5) * s, (Y + .5) * s, 1, 1).data].slice(0, 3);
};
canvas.dispatchEvent(new PointerEvent("pointermove", {...place, bubbles: true}));
result.hovered = [query(), $("facts").dataset.kept];
canvas.dispatchEvent(new MouseEvent("click", {...place, bubbles: true}));
result.clicked = [query(), location.hash.includes("query=11")];
$("chosen").checked = false;
draw();
result.colours = [colour("source"), colour("target")];
result.keys = ["PageUp", "Home", "End"].map(name => (key(name), query()));
const before = view.chosen[query()];
key("ArrowUp");
result.up = before[0] - view.chosen[query()][0];
key("Escape");
result.kept = $("facts").dataset.kept;
return result;
})"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium")
def test_the_page_in_a_browser(scene, page, tmp_path):
    pytest.importorskip("websocket")
    with browser(tmp_path) as tab:
        tab.open(f"{page.as_uri()}#layer=16&mode=local&show=attention&query=5")
        tab.wait("$('facts').dataset.query === '5'")  # the address chooses
        view = next(view for view in scene.views if view.mode == "local" and view.layer == 16)
        facts = tab.run("({...$('facts').dataset})")
        ((y, x),) = view.pixels(view.indices[5:6])
        assert facts["position"] == str(view.indices[5]) and (facts["row"], facts["column"]) == (
            str(y),
            str(x),
        )
        assert (facts["layer"], facts["mode"], facts["kept"]) == ("16", "local", "true")
        row = attention_level(view.row_map(5)).ravel()  # rows arrive whole
        np.testing.assert_allclose(tab.run("[...levels()]"), row, atol=0.5 / 255 + 1e-6)

        view = next(view for view in scene.views if view.mode == "global" and view.layer == 8)
        tab.run("state.kept = false; location.hash = '#layer=8&mode=global&show=attention'")
        tab.wait("$('facts').dataset.layer === '8'")
        tab.run("state.kept = false")
        ((y, x),) = view.pixels(view.indices[11:12]).tolist()
        result = tab.run(f"{POINT_AND_PRESS}({x}, {y})")
        assert result["hovered"] == [11, "false"] and result["clicked"] == [11, True]
        level = attention_level(view.row_map(11))
        for shown, picture in zip(result["colours"], (scene.picture, scene.target), strict=True):
            np.testing.assert_allclose(shown, heat_picture(view, level, picture)[y, x], atol=4)
        assert result["keys"] == [10, 0, 19] and result["up"] >= 0 and result["kept"] == "false"
        assert tab.errors == []


# ---- the command
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two drawn images, of a size that is not a multiple of 4, and a broken one."""
    (tmp_path / "images").mkdir()
    for number in range(2):
        picture, _ = draw_animal_scene(np.random.default_rng(number), 34, "plain")
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"not an image")
    return tmp_path


def run(folder, *words: str) -> int:
    common = "--random_weights --ngf 2 --gpu_ids -1 --num_patches 12".split()
    where = ["--input", str(folder / "images"), "--output", str(folder / "out")]
    return visualize_queries.main([*common, *where, *words])


def test_a_folder_of_images(folder, capsys):
    assert run(folder, "--layers", "16") == 1  # for the broken one
    assert "broken.jpg" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0.html", "1.html"]


def test_layers_window_and_queries_are_those_of_the_run(folder, tmp_path, capsys):
    """Of a 4-block generator's 8 x 8 map, as the run was trained: 5 of 64 positions, in windows of 3 x 3."""
    words = "--QS_mode local --qs_layers 13,15 --qs_window 3 --num_patches 5 --nce_layers 8,13,15"
    make_run(tmp_path / "runs", *words.split())
    name = ["--name", "run", "--checkpoints_dir", str(tmp_path / "runs"), "--gpu_ids", "-1"]
    where = [
        "--input",
        str(folder / "images" / "0.png"),
        "--output",
        str(folder / "out"),
        "--load_size",
        "32",
    ]
    assert visualize_queries.main([*name, *where, "--modes", "local"]) == 0
    out = capsys.readouterr().out
    assert "layer 13, local: 5 of 64 positions" in out and "layer 15, local: 5 of 64 positions" in out
    data = json.loads(re.search(r'id="data">(.*?)</script>', (folder / "out" / "0.html").read_text())[1])
    assert [(view["layer"], view["window"], len(view["positions"])) for view in data["views"]] == [
        (13, 3, 5),
        (15, 3, 5),
    ]
    assert visualize_queries.main([*name, *where, "--num_patches", "9", "--modes", "local"]) == 0
    assert "layer 13, local: 9 of 64 positions" in capsys.readouterr().out
    make_run(tmp_path / "runs", *words.split(), "--qs_pool", "4", name="pooled")
    name[1] = "pooled"
    assert visualize_queries.main([*name, *where, "--modes", "local"]) == 0
    assert "layer 13, local: 5 of 16 positions" in capsys.readouterr().out
    assert visualize_queries.main([*name, *where, "--layers", "12,16"]) == 2
    assert "layer 16 is in the decoder" in capsys.readouterr().err


def test_a_file_name_that_is_not_utf_8(folder, capsys):
    name = os.fsdecode(b"na\xefve {{data}}.png")
    (folder / "images" / "0.png").rename(folder / "images" / name)
    (folder / "images" / "broken.jpg").unlink()
    assert run(folder, "--layers", "16", "--modes", "global") == 0
    out = capsys.readouterr().out.encode().decode()  # whatever is printed is UTF-8
    assert "na\\udcefve" in out and "1.html" in out
    text = (folder / "out" / name).with_suffix(".html").read_text()
    assert "<h1>na\\udcefve {{data}}.png: queries of random weights</h1>" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--random_weights"], "--input is missing"),
        (["--input", "x.png"], "give either --name NAME"),
        (["--random_weights", "--input", "x.png", "--modes", "nearby"], "'nearby'"),
        (["--random_weights", "--input", "x.png", "--qs_window", "4"], "must be odd"),
    ],
)
def test_wrong_calls(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        visualize_queries.main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err
