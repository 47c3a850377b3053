"""Networks, PatchNCE and schedules against golden numbers of the released code."""

import json

import pytest
import torch
import torch.nn.functional as F
from golden import DATA, load_golden

from models.discriminator import NLayerDiscriminator
from models.generator import ResnetGenerator
from models.layers import BlurDownsample, BlurUpsample
from models.optimizers import Schedule
from models.patch_sampler import random_locations
from models.patchnce import PatchNCELoss
from models.weights import load_weights
from options.train_options import TrainOptions


@torch.no_grad()
def test_generator_and_its_taps():
    golden = load_golden("generator_resnet9")
    net = ResnetGenerator(ngf=8)
    load_weights(net, DATA / "generator_resnet9_net_G.pth")
    layers = [0, 4, 8, 12, 16]
    image, features = net(golden["input"], layers)
    torch.testing.assert_close(image, golden["output"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(golden["input"]), image)
    for layer, feature, encoded in zip(layers, features, net.encode(golden["input"], layers), strict=True):
        torch.testing.assert_close(feature, golden[f"feature_{layer}"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoded, feature)
        assert net.tap_channels()[layer] == feature.shape[1]


@torch.no_grad()
def test_discriminator():
    golden = load_golden("discriminator_patchgan")
    net = NLayerDiscriminator(ndf=8)
    load_weights(net, DATA / "discriminator_patchgan_net_D.pth")
    torch.testing.assert_close(net(golden["input"]), golden["output"], rtol=1e-4, atol=1e-5)


def test_published_sizes():
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert round(count(ResnetGenerator()) / 1e6, 3) == 11.378
    assert round(count(NLayerDiscriminator()) / 1e6, 3) == 2.765


@pytest.mark.parametrize("h, w", [(8, 12), (7, 5)])
def test_blurred_resampling_is_its_filter(h, w):
    """Resampling as depthwise convolutions with the buffer `filt`, as the released layers are described."""
    x = torch.randn(2, 3, h, w)
    down, up = BlurDownsample(3), BlurUpsample(3)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), down.filt, stride=2, groups=3)
    torch.testing.assert_close(down(x), expected)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    expected = F.conv_transpose2d(padded, up.filt, stride=2, padding=2, groups=3)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(up(x), expected, rtol=1e-5, atol=1e-6)
    assert up(x).shape == (2, 3, 2 * h, 2 * w)


@pytest.mark.parametrize("number", [0, 1])
def test_patchnce_agrees_with_the_released_loss(number):
    golden = load_golden(f"patchnce_{number}")
    batch, temperature = int(golden["batch"]), float(golden["temperature"])
    queries = golden["queries"].unflatten(0, (batch, -1)).requires_grad_()
    keys = golden["keys"].unflatten(0, (batch, -1)).requires_grad_()
    loss = PatchNCELoss(temperature)(queries, keys)
    torch.testing.assert_close(loss.flatten(), golden["loss"], rtol=1e-4, atol=1e-5)
    loss.sum().backward()
    torch.testing.assert_close(queries.grad.flatten(0, 1), golden["grad_queries"], rtol=1e-4, atol=1e-5)
    assert keys.grad is None


@pytest.mark.parametrize("case", json.loads((DATA / "linear_lr.json").read_text()))
def test_linear_decay(case):
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=2e-4)
    given = [f"--{name}={case[name]}" for name in ("n_epochs", "n_epochs_decay", "epoch_count")]
    schedule = Schedule(TrainOptions().parse(given), [optimizer])
    rates = []
    for _ in case["lr_by_epoch"]:
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.advance()
    assert rates == pytest.approx(case["lr_by_epoch"], rel=1e-9, abs=1e-15)


def test_random_locations_are_distinct_and_uniform():
    drawn = torch.stack([random_locations(10, 4, "cpu") for _ in range(3000)])
    assert drawn.dtype == torch.int64 and drawn.shape == (3000, 4)
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    assert (drawn.flatten().bincount(minlength=10) / 3000 - 0.4).abs().max() < 0.05
    assert sorted(random_locations(5, 9, "cpu").tolist()) == [0, 1, 2, 3, 4]
