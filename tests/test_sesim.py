"""FSeSim and LSeSim: the released loss and steps, what a step computes once, views, runs, refusals."""

import ast
import re
from functools import partial

import pytest
import torch
from golden import load_baseline, under
from textbook import assert_refused, close, images, model_of, released_steps, step
from trained_run import command_of, draw_set, picture

import train
from models import patch_sampler, sesim_model
from models.inference import load_generator
from models.layers import initialise
from models.sesim_model import SelfSimilarity, contrastive_loss, correlation_loss, self_similarity
from scripts import export
from util import distributed

NARROW = (4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 24, 24, 24, "M", 24, 24, 24)
TINY = "--model sesim --vgg_weights random --gpu_ids -1 --ngf 4 --ndf 4 --patch_nums 24 --netG resnet_4blocks"
LEARNED = "--learned_attn --patch_size 3"
URL = sesim_model.VGG16_URL


def load_narrow(weights, layers, device) -> sesim_model.VGG16Features:
    """In place of `load_vgg16`: VGG-16 of a few channels, as the released numbers were made with."""
    network = sesim_model.VGG16Features(layers, NARROW).requires_grad_(False)
    return initialise(network, "kaiming").to(device)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(sesim_model, "load_vgg16", load_narrow)


GOLDEN = {
    "fsesim_step": "--patch_nums 256 --patch_size 64",
    "lsesim_step": "--learned_attn --augment --patch_nums 20 --patch_size 6",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_two_steps_are_the_released_codes(float64, name):
    """Every loss, image and gradient, and the translation after both updates."""
    golden = load_baseline(name)
    model = model_of(TINY, GOLDEN[name], "--ngf 3 --netG resnet_9blocks --netD n_layers --n_layers_D 2")
    model.vgg.load_state_dict(under(golden, "vgg."))
    views, updates = (("A", "B", "A_aug", "B_aug"), "FG") if model.augments else ("AB", "G")
    batches = [{view: golden[f"step{number}.{view}"] for view in views} for number in (1, 2)]
    locations = [
        [golden[f"step{number}.ids_{update}_layer{layer}"] for update in updates for layer in (4, 7, 9)]
        for number in (1, 2)
    ]
    list(released_steps(model, golden, batches, ["fake_B"], locations))
    close(model.netG(golden["step1.A"]), golden["final.fake_B_of_step1_A"])


@pytest.fixture(scope="module")
def golden():
    return load_baseline("lsesim")


@pytest.fixture
def case(golden, request):
    """The numbers of one case in float64, and its settings."""
    numbers = under(golden, f"{request.param}.")
    return numbers, ast.literal_eval(numbers.pop("meta"))


assert_golden = partial(close, atol=1e-7)


def by_definition(features, queries, window, use_norm):
    """Self-similarity maps of features (B, C, H, W) by loops over images, queries and keys."""
    _, c, h, w = features.shape
    whole = queries is None or window >= h or window >= w
    maps = []
    for image in features:
        f = image - image.mean((1, 2))[:, None, None]
        rows = []
        for query in range(h * w) if queries is None else queries.tolist():
            i, j = divmod(query, w)
            top = 0 if whole else min(max(i - window // 2, 0), h - window)
            left = 0 if whole else min(max(j - window // 2, 0), w - window)
            down, across = (h, w) if whole else (window, window)
            row = []
            for y in range(top, top + down):
                for x in range(left, left + across):
                    a, b = f[:, i, j], f[:, y, x]
                    row.append(a @ b / a.norm() / b.norm() if use_norm else torch.tanh(a @ b / (10 * c)))
            rows.append(torch.stack(row))
        maps.append(torch.stack(rows))
    return torch.stack(maps)


@pytest.mark.parametrize("case", "abcdefgh", indirect=True)
def test_fixed_similarity_agrees_with_the_released_code(case):
    golden, settings = case
    queries, window, use_norm = golden.get("patch_ids"), settings["patch_size"], settings["use_norm"]
    target = golden["f_tgt"].requires_grad_()
    source_map, target_map = (
        self_similarity(f, queries, window, use_norm) for f in (golden["f_src"], target)
    )
    loss = correlation_loss(source_map, target_map, settings["loss_mode"], use_norm)
    loss.backward()
    assert_golden(source_map, golden["sim_src"])
    assert_golden(target_map, golden["sim_tgt"])
    assert_golden(loss, golden["loss"])
    assert_golden(target.grad, golden["d_f_tgt"])


@pytest.mark.parametrize("case", ("L1", "L2"), indirect=True)
def test_learned_similarity_agrees_with_the_released_code(case):
    golden, settings = case
    learned = SelfSimilarity([settings["C"]], settings["patch_size"], settings["use_norm"]).double()
    learned.load_state_dict({key: x for key, x in golden.items() if key.startswith("conv_")})
    features = {name: golden[f"f_{name}"].requires_grad_() for name in ("src", "tgt", "oth")}
    maps = {name: learned(0, of, golden["patch_ids"]) for name, of in features.items()}
    contrastive = contrastive_loss(maps["src"], maps["tgt"], maps["oth"], settings["T"])
    contrastive.backward()
    assert_golden(contrastive, golden["loss_contrastive"])
    assert_golden(correlation_loss(maps["src"], maps["tgt"]), golden["loss_generator"])
    for name, of in features.items():
        assert_golden(maps[name], golden[f"sim_{name}"])
        assert_golden(of.grad, golden[f"d_f_{name}"])
    for key, parameter in learned.named_parameters():
        assert_golden(parameter.grad, golden[f"grad.{key}"])


@pytest.mark.parametrize("use_norm", [False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_maps_by_definition_on_maps_of_any_shape(height, width, window, use_norm):
    """Windows inside the map, at its borders, and as large as its shorter side (all positions then)."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, height, width, dtype=torch.float64)
    queries = torch.randperm(height * width)
    found = self_similarity(features, queries, window, use_norm)
    torch.testing.assert_close(found, by_definition(features, queries, window, use_norm))
    everywhere = self_similarity(features, None, window, use_norm)
    torch.testing.assert_close(everywhere, by_definition(features, None, window, use_norm))


@pytest.mark.parametrize("line, real", [("", 1), (f"{LEARNED} --augment false", 2), (LEARNED, 4)])
def test_each_image_goes_through_vgg_once(line, real):
    """The translation alone with gradient; A, and in LSeSim B and both views, in one pass without."""
    model, passes = model_of(TINY, line), []
    model.vgg.register_forward_hook(lambda _, args, out: passes.append((len(args[0]), out[0].requires_grad)))
    step(model, images(2))
    assert passes == [(2, True), (2 * real, False)]


def test_queries_are_drawn_for_every_layer_and_shared_by_all_sides(monkeypatch):
    drawn = []

    def draw(num_locations, num_patches, device):
        drawn.append((num_locations, num_patches))
        return torch.arange(num_locations)[:num_patches]

    monkeypatch.setattr(patch_sampler, "random_locations", draw)
    step(model_of(TINY, LEARNED, "--attn_layers 4,7"), images(size=(32, 48)))
    assert drawn == [(96, 24), (24, 24)] * 2  # of F's update, then of G's
    drawn.clear()
    step(model_of(TINY, "--patch_nums 0 --use_norm --loss_mode l1"), images())
    assert not drawn, "all positions are compared"


def test_views_are_the_images_in_other_colours(monkeypatch):
    """Drawn anew in each step, from a state that a resume restores; two processes draw those of one."""
    model, views, batch = model_of(TINY, LEARNED), [], images(2)
    state = torch.get_rng_state()
    for again in (True, True, False):
        if again:
            torch.set_rng_state(state)
        model.set_input(batch)
        views.append(model.batch["A_aug"])
    assert views[0].shape == (2, 3, 32, 32) and not torch.equal(views[0], model.batch["A"])
    assert torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.set_rng_state(state)
        model.set_input({domain: image[rank : rank + 1] for domain, image in batch.items()})
        torch.testing.assert_close(model.batch["A_aug"], views[0][rank : rank + 1])


@pytest.mark.parametrize(
    "line, told",
    {
        "--vgg_weights nowhere.pth": f"--vgg_weights: no file nowhere.pth .*{re.escape(URL)}",
        "--attn_layers 4,13": "--attn_layers 13: VGG-16 has ReLUs 0 to 12",
        "--input_nc 1 --output_nc 1": "VGG-16 takes RGB images",
        "--attn_layers 12 --crop_size 28 --netD pixel": "--crop_size 28 cannot be used.* at least 32 pixels",
    }.items(),
)
def test_what_cannot_be_is_refused(line, told):
    assert_refused(f"{TINY} {line}", told)


@pytest.mark.parametrize("line", ["", LEARNED])
def test_a_whole_run_trains_translates_and_exports(tmp_path, line):
    """No command after the training needs VGG's file."""
    draw_set(tmp_path / "data", (40, 36), trainA=3, trainB=2, testA=3)
    place = ["--name", "run", "--checkpoints_dir", str(tmp_path)]
    words = f"{TINY} {line} --display_id 0 --num_threads 0 --n_epochs 1 --n_epochs_decay 1 --print_freq 1"
    words += f" --load_size 36 --crop_size 32 --dataroot {tmp_path}/data"
    assert train.main([*place, *words.split()]) == 0
    log = (tmp_path / "run" / "loss_log.txt").read_text()
    assert log.count("(epoch") == 6 and "G_s:" in log and ("spatial:" in log) == bool(line)
    assert (tmp_path / "run" / "web" / "images" / "epoch001_fake_B.png").is_file()
    assert command_of(tmp_path, tmp_path / "results", "--name", "run")() == 0
    assert load_generator("run", tmp_path, device="cpu")(picture((53, 41))).size == (53, 41)
    if line:  # G is the same network in both
        path = tmp_path / "run.onnx"
        assert export.main([*place, "--output", str(path)]) == 0
        assert path.is_file()
