"""Guided generators: each fusion at each stage against the plain generator run by hand, and their export."""

from __future__ import annotations

import pytest
import torch

from models.attention.discriminator import PostHocAttention, TrainableAttention
from models.attention.fusion import (
    FUSIONS,
    STAGES,
    GuidedResnetGenerator,
    GuidedTranslator,
    GuidedUnetGenerator,
    normalise_map,
    resize_map,
)
from models.generator import ResnetGenerator
from models.unet import UnetGenerator
from util.errors import UserError


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
@pytest.mark.parametrize("fusion", ["rmult", "alpha"])
def test_unet_is_guided_at_its_input(fusion):
    net = GuidedUnetGenerator(3, 3, num_downs=5, ngf=4, fusion=fusion).eval()
    plain = UnetGenerator(net.tap_channels()[0], 3, num_downs=5, ngf=4).eval()
    plain.load_state_dict(net.state_dict())
    images, attention = inputs(64, 64)
    large = resize_map(attention, (64, 64))
    fused = images * (1 + large) if fusion == "rmult" else torch.cat([images, large], 1)
    torch.testing.assert_close(net(images, attention), plain(fused))


def test_stages_that_a_generator_has_not_are_refused():
    with pytest.raises(UserError, match="F3: this generator has no such stage; it has F0$"):
        GuidedUnetGenerator(3, 3, num_downs=5, ngf=4, stage="F3")
    with pytest.raises(UserError, match="F3: this generator has no such stage; it has F0, F1, F2, F4"):
        GuidedResnetGenerator(3, 3, 4, n_blocks=2, stage="F3")


@pytest.mark.parametrize("stage", ["F0", "F2"])
def test_gradient_reaches_images_attention_and_weights(stage):
    net = guided(stage=stage)
    images, attention = inputs()
    images.requires_grad_(), attention.requires_grad_()
    net(images, attention).square().sum().backward()
    for tensor in (images, attention, *net.parameters()):
        assert tensor.grad.isfinite().all()
    assert images.grad.abs().sum() > 0 and attention.grad.abs().sum() > 0


@torch.no_grad()
def test_translator_looks_through_its_discriminator():
    net, discriminator = guided(), TrainableAttention(ndf=4).eval()
    images, _ = inputs(32, 40)
    attention = normalise_map(discriminator.attend(images)[1])
    torch.testing.assert_close(GuidedTranslator(net, discriminator)(images), net(images, attention))


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
