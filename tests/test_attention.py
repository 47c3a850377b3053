"""ASGIT's discriminators against the released numbers; fusion by hand, its export; the memory under crops."""

import random

import pytest
import torch
from golden import load_baseline, under
from textbook import close

from data.transforms import Preprocess, to_input
from models.attention import (
    FUSIONS,
    STAGES,
    GuidedResnetGenerator,
    GuidedTranslator,
    PostHocAttention,
    TrainableAttention,
    normalise_map,
    resize_map,
)
from models.attention_memory import AttentionMemory
from models.generator import ResnetGenerator

KINDS = {"pha": PostHocAttention, "tam": TrainableAttention}


def released(kind):
    """The discriminator of a golden file, in training mode, and the file."""
    golden, net = load_baseline(f"asgit_{kind}"), KINDS[kind](input_nc=3, ndf=4).double()
    missing, unexpected = net.load_state_dict(under(golden, "before.D."), strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    return net, golden


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", [0, 1])
def test_released_scores_and_maps(kind, b):
    net, golden = released(kind)
    x = golden["x"][b : b + 1]
    last = net.model_p1[-1] if kind == "pha" else net.mask_brunch
    channels = []
    last.register_forward_hook(lambda module, inputs, output: channels.append(output))
    score, raw = net.attend(x)
    close(score, golden[f"one{b}.score"])
    close(channels[0] if kind == "pha" else channels[0].sigmoid(), golden[f"one{b}.raw"])
    close(raw if kind == "pha" else raw + 0.5, golden[f"one{b}.A_unscaled"])
    close(resize_map(normalise_map(raw), (64, 64)), golden[f"one{b}.A"])
    for key, buffer in net.named_buffers():
        if not key.endswith("num_batches_tracked"):
            close(buffer, golden[f"one{b}.after_one_forward.{key}"])
    assert torch.equal(net(x), score), "scores alone are the same"


@pytest.mark.parametrize("kind", KINDS)
def test_released_gradients_of_a_batch(kind):
    net, golden = released(kind)
    x = golden["x"].requires_grad_()
    score, _ = net.attend(x)
    loss = (score - 1).square().mean()
    loss.backward()
    close(score, golden["batch.score"])
    close(loss, golden["batch.loss_real"])
    close(x.grad[:1], golden["batch.dx0"])
    gradients = {key: parameter.grad for key, parameter in net.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values() if gradient is not None)
    full = under(golden, "batchgrad.D.")
    assert len(full) == {"pha": 6, "tam": 17}[kind]
    for key, expected in full.items():
        close(gradients[key], expected, atol=1e-6 * largest)
    for key, norm in zip(golden["keys.D"], golden["batchgradnorm.D"], strict=True):
        if norm.isnan():
            assert gradients[key] is None, f"{key} is unused"
        else:
            close(gradients[key].norm(), norm, atol=1e-6 * largest)


def test_released_tam_in_evaluation_mode():
    net, golden = released("tam")
    score, raw = net.eval().attend(golden["x"][:1])
    close(score, golden["eval0.score"])
    close(resize_map(normalise_map(raw), (64, 64)), golden["eval0.A"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_images_one_by_one(kind):
    """Where no batch norm mixes them. The released extremes over the whole batch gave other maps."""
    net, golden = released(kind)
    net.eval()
    score, raw = net.attend(golden["x"])
    maps = normalise_map(raw)
    for b in range(2):
        alone_score, alone_raw = net.attend(golden["x"][b : b + 1])
        torch.testing.assert_close(score[b : b + 1], alone_score)
        torch.testing.assert_close(maps[b : b + 1], normalise_map(alone_raw))
    assert torch.equal(maps.amin((1, 2, 3)), torch.zeros(2)) and maps.amax((1, 2, 3)).eq(1).all()
    assert normalise_map(torch.full((1, 1, 4, 4), 0.3)).eq(0).all()
    released_maps = (raw - raw.min()) / (raw.max() - raw.min())
    assert (maps - released_maps).abs().max() > 0.01
    if kind == "pha":
        close(resize_map(released_maps, (64, 64)), golden["batch.A"])


# Fusion


def inputs(height=24, width=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    return images, torch.rand(2, 1, height // 8, width // 8, generator=generator)


def guided(**settings):
    torch.manual_seed(1)
    return GuidedResnetGenerator(3, 3, 4, n_blocks=9, **settings)


@torch.no_grad()
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_the_resnet_generator(stage, antialias):
    """h (1 + A) at the place the paper names, with positions counted by hand."""
    net = guided(stage=stage, antialias=antialias)
    plain = ResnetGenerator(3, 3, 4, n_blocks=9, antialias=antialias)
    plain.load_state_dict(net.state_dict())
    images, attention = inputs()
    down = 8 if antialias else 6  # modules of the two halvings
    at = {"F0": 0, "F1": 4, "F2": 4 + down, "F3": 4 + down + 4, "F4": 4 + down + 9}[stage]
    h = plain.model[:at](images)
    assert h.shape[1:] == {"F0": (3, 24, 32), "F1": (4, 24, 32)}.get(stage, (16, 6, 8))
    expected = plain.model[at:](h * (1 + resize_map(attention, h.shape[2:])))
    torch.testing.assert_close(net(images, attention), expected)
    torch.testing.assert_close(net(images), plain(images), msg="without attention it is the plain generator")
    assert not torch.allclose(net(images, attention), plain(images), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusions_of_the_image(fusion):
    net = guided(fusion=fusion)
    images, attention = inputs()
    plain = ResnetGenerator(4 if fusion == "alpha" else 3, 3, 4, n_blocks=9)
    plain.load_state_dict(net.state_dict())
    large = resize_map(attention, (24, 32))
    ones = torch.ones_like(large)
    by_hand = {
        "rmult": (images + images * large, images, 1.5 * images),
        "alpha": (torch.cat([images, large], 1), *[torch.cat([images, ones], 1)] * 2),
        "mult": (images * large, images, images),
    }[fusion]
    found = net(images, attention), net(images), GuidedTranslator(net)(images)
    for one, expected in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, plain(expected))
    torch.testing.assert_close(net(images, large), found[0], msg="maps may come at any size")


@torch.no_grad()
@pytest.mark.parametrize("kind, stage", [(PostHocAttention, "F0"), (TrainableAttention, "F3"), (None, "F1")])
def test_torch_export_at_any_size(kind, stage):
    discriminator = None if kind is None else kind(ndf=4)
    translator = GuidedTranslator(guided(stage=stage), discriminator).eval()
    images, _ = inputs(64, 64)
    eight = {axis: 8 * torch.export.Dim(f"eighth_{axis}", min=5, max=64) for axis in (2, 3)}
    batch = {0: torch.export.Dim("batch", min=1, max=16)}
    program = torch.export.export(translator, (images,), dynamic_shapes=({**batch, **eight},)).module()
    for height, width in ((64, 64), (40, 56)):
        images, _ = inputs(height, width)
        torch.testing.assert_close(program(images[:1]), translator(images[:1]), rtol=1e-4, atol=1e-5)


PATHS = ["set/trainA/0.png", "set/trainA/1.png", "set/trainA/2.png"]


def fractions(window, crop, image):
    """A window (top, left, flip) of the size `crop` in pixels, as the memory wants it."""
    (top, left, flip), (height, width) = window, image
    return [top / height, left / width, crop[0] / height, crop[1] / width, float(flip)]


def maps(count, *size, seed=0):
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(seed))


def memory(*paths, **settings):
    attention = AttentionMemory(**settings).double()
    attention.add(paths or PATHS)
    return attention


def test_maps_follow_crops_and_mirroring():
    """Bilinear resampling keeps planes: a plane stored from one random crop and looked up for another must be
    what the other crop cuts out of the image, wherever the two overlap.
    """
    preprocess, generator = Preprocess("resize_and_crop", load_size=60, crop_size=40), random.Random(3)
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    image = (x + 2 * y)[None, ..., None].expand(1, 60, 60, 3).to(torch.uint8)  # below 256

    def sample():
        window = preprocess.draw_window(generator, 60, 60)
        crop = image[:, window[0] : window[0] + 40, window[1] : window[1] + 40]
        plane = to_input(crop, torch.tensor([window[2]]))[:, :1].double()
        return window, torch.tensor([fractions(window, (40, 40), (60, 60))], dtype=torch.float64), plane

    flips = set()
    for _ in range(12):
        attention = memory()
        rows = attention.rows(PATHS[:1])
        (top, left, flip), windows, plane = sample()
        attention.store(rows, plane, windows)  # here a map has one number per pixel
        (new_top, new_left, new_flip), windows, expected = sample()
        found = attention.lookup(rows, (40, 40), windows)[0, 0]
        flips.add((flip, new_flip))
        for row in range(40):
            for column in range(40):
                at_y = new_top + row
                at_x = new_left + (39 - column if new_flip else column)
                inside = top <= at_y < top + 40 and left <= at_x < left + 40
                target = expected[0, 0, row, column].item() if inside else 1.0
                assert found[row, column].item() == pytest.approx(target, abs=1e-6)
    assert len(flips) == 4, "each combination of mirroring was seen"


def test_the_last_map_of_an_image_stays():
    attention, stored = memory(), maps(4, 3, 3).double()
    rows = attention.rows([PATHS[i] for i in (0, 1, 0, 0)])
    attention.store(rows, stored)
    assert torch.equal(attention.lookup(rows, (3, 3)), stored[[3, 1, 3, 3]])


def test_saved_by_path_and_exact(tmp_path):
    """Maps are exact after loading, also where the data set grew, shrank or has another order."""
    attention = memory()
    windows = torch.tensor([[0.1, 0.2, 0.5, 0.6, 1.0], [0.0, 0.3, 0.9, 0.7, 0.0]])
    attention.store(attention.rows(PATHS[1:]), maps(2, 3, 4).double(), windows)
    torch.save(attention.state_dict(), tmp_path / "memory.pth")
    state = torch.load(tmp_path / "memory.pth", weights_only=True)
    assert state["_extra_state"]["paths"] == PATHS[1:], "images without a map are not saved"

    changed = memory("set/trainA/new.png", PATHS[2], PATHS[0])
    changed.store(changed.rows(["set/trainA/new.png"]), maps(1, 2, 2).double())
    changed.load_state_dict(state)
    crops = torch.tensor([[0.2, 0.1, 0.5, 0.5, 0.0]] * 3)
    for paths in (PATHS, list(reversed(PATHS))):
        expected = attention.lookup(attention.rows(paths), (9, 9), crops)
        assert torch.equal(changed.lookup(changed.rows(paths), (9, 9), crops), expected)
    new = changed.lookup(changed.rows(["set/trainA/new.png"]), (9, 9))
    assert new.eq(1).all(), "what a load does not bring is as at first"
    assert changed.get_extra_state()["paths"] == [PATHS[2], PATHS[1]], "the image that is gone keeps its map"
