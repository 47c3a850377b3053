"""The released code's arithmetic (`--qs_variant released`) against its own numbers, and its layouts."""

from __future__ import annotations

import pytest
import torch
from golden import DATA, load_golden

from models.discriminator import NLayerDiscriminator, PixelDiscriminator
from models.generator import ResnetGenerator
from models.patch_sampler import PatchHeads
from models.qs_released import select_queries_released
from models.unet import UnetGenerator
from options.train_options import TrainOptions
from util.errors import UserError


def unit(vectors):
    """(B, N, C) -> (B*N, C) of unit length, as the released code hands routed features on."""
    vectors = vectors.flatten(0, 1)
    return vectors / (vectors.norm(dim=1, keepdim=True) + 1e-7)


@pytest.mark.parametrize("number", [0, 1])
def test_local_global_agrees_with_the_released_code(number):
    golden = load_golden(f"qs_local_global_released_{number}")
    source, target = golden["source"].requires_grad_(), golden["target"].requires_grad_()
    selection = select_queries_released(
        source, "local_global", int(golden["num_queries"]), int(golden["window"])
    )
    torch.testing.assert_close(selection.attention, golden["attention"], rtol=1e-4, atol=1e-6)
    routed_source, routed_target = unit(selection.route(source)), unit(selection.route(target))
    torch.testing.assert_close(routed_source, golden["routed_source"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(routed_target, golden["routed_target"], rtol=1e-4, atol=1e-5)
    (routed_target * golden["cotangent"]).sum().backward()
    torch.testing.assert_close(source.grad, golden["grad_source"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(target.grad, golden["grad_target"], rtol=1e-3, atol=1e-4)


def test_local_agrees_with_the_released_code():
    golden = load_golden("qs_local_released")
    selection = select_queries_released(
        golden["source"], "local", int(golden["num_queries"]), int(golden["window"])
    )
    assert selection.indices.tolist() == golden["indices"].tolist()
    torch.testing.assert_close(selection.attention[0], golden["attention"][:, 0], rtol=1e-4, atol=1e-6)
    for side in ("source", "target"):
        torch.testing.assert_close(
            unit(selection.route(golden[side])), golden[f"routed_{side}"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("number", [0, 1])
def test_global_is_the_same_but_for_the_entropy(number):
    golden = load_golden(f"qs_global_{number}")
    selection = select_queries_released(golden["source"], "global", int(golden["num_queries"]))
    torch.testing.assert_close(selection.attention, golden["attention"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        unit(selection.route(golden["target"])), golden["routed_target"], rtol=1e-4, atol=1e-5
    )


def test_saturated_rows_tie_in_the_released_ranking():
    """Why it is not the default: saturated rows have entropy 0 in float32, and the first positions win."""
    features = 40 * torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert select_queries_released(features, "global", 8).indices.tolist() == [list(range(8))]


@pytest.mark.parametrize("mode", ["global", "local", "local_global"])
def test_images_of_a_batch_do_not_mix(mode):
    """As when each image comes alone, which is all that the released code's local mode gives a meaning."""
    features = torch.randn(3, 6, 5, 7)
    together = select_queries_released(features, mode, 6, 3)
    for b in range(3):
        alone = select_queries_released(features[b : b + 1], mode, 6, 3)
        assert together.indices[b].tolist() == alone.indices[0].tolist()
        torch.testing.assert_close(together.route(features)[b], alone.route(features[b : b + 1])[0])


def test_local_mode_needs_as_many_patches_as_channels():
    with pytest.raises(UserError, match="found 4 patches of 5 x 7 positions, 6 channels"):
        select_queries_released(torch.randn(1, 6, 5, 7), "local", 4, 3)


def keys_of(name):
    return list(torch.load(DATA / name, weights_only=True))


def test_released_key_names_in_their_order():
    assert list(ResnetGenerator(ngf=8).state_dict()) == keys_of("generator_resnet9_net_G.pth")
    assert list(NLayerDiscriminator(ndf=8).state_dict()) == keys_of("discriminator_patchgan_net_D.pth")


# The numbers of the modules with a kernel, or of the residual blocks, as CUT builds these networks.


def numbers(net, part):
    return sorted(
        {int(key.split(".")[1]) for key in net.state_dict() if part in key and key.endswith("weight")}
    )


@pytest.mark.parametrize("antialias, antialias_up, down, first, up", [
    (True, True, [1, 4, 8], 12, [22, 26, 30]),
    (False, True, [1, 4, 7], 10, [20, 24, 28]),
    (True, False, [1, 4, 8], 12, [21, 24, 28]),
])  # fmt: skip
def test_resampling_shifts_the_numbers_of_modules(antialias, antialias_up, down, first, up):
    """Of those with a kernel, and of the residual blocks, as CUT builds these networks."""
    net = ResnetGenerator(ngf=2, antialias=antialias, antialias_up=antialias_up)
    blocks = list(range(first, first + 9))
    assert numbers(net, "conv_block") == blocks and numbers(net, "model") == [*down, *blocks, *up]
    expected = [0, 3, 7, 11, 14] if antialias else [0, 2, 5, 8, 11]
    assert numbers(NLayerDiscriminator(ndf=2, antialias=antialias), "model") == expected


def test_layout_of_the_other_networks():
    pixel = {key for key in PixelDiscriminator(ndf=2).state_dict()}
    assert pixel == {f"net.{number}.{part}" for number in (0, 2, 5) for part in ("weight", "bias")}
    heads = {key for key in PatchHeads([3, 8]).state_dict()}
    assert heads == {
        f"mlp_{head}.{number}.{part}" for head in (0, 1) for number in (0, 2) for part in ("weight", "bias")
    }
    unet = [key for key in UnetGenerator(ngf=1, num_downs=7).state_dict() if key.endswith("weight")]
    # Down: the outermost convolution is number 0, the others follow a LeakyReLU. Up: they follow the inner
    # block and a ReLU.
    down = [
        f"model.{'model.1.' * (depth > 0)}{'model.3.' * (depth - 1)}model.{min(depth, 1)}.weight"
        for depth in range(7)
    ]
    up = [
        f"model.model.1.{'model.3.' * (depth - 1)}model.{3 if depth == 6 else 5}.weight"
        for depth in range(6, 0, -1)
    ]
    assert unet == [*down, *up, "model.model.3.weight"]


@pytest.mark.parametrize("norm, bias", [("instance", True), ("batch", False), ("none", False)])
def test_convolutions_before_a_norm_have_a_bias_with_instance_norm_only(norm, bias):
    assert ("model.1.bias" in ResnetGenerator(ngf=2, norm=norm).state_dict()) == bias
    keys = NLayerDiscriminator(ndf=2, norm=norm).state_dict()
    assert ("model.3.bias" in keys) == bias and "model.0.bias" in keys and "model.14.bias" in keys


def test_taps_of_norms_are_what_in_place_relus_leave():
    """Without blurs tap 8 is a norm's output, which the released code's ReLU rectifies in place."""
    words = "--no_antialias --qs_variant {} --netG resnet_9blocks --gpu_ids -1 --ngf 2".format
    paper, released = (TrainOptions().parse(words(variant).split()) for variant in ("paper", "released"))
    assert paper.nce_layers == [0, 4, 8, 12, 16] and released.nce_layers == [0, 4, 9, 12, 16]
    net = ResnetGenerator(ngf=2, antialias=False)
    norm, rectified = net.encode(torch.randn(1, 3, 16, 16), [8, 9])
    assert torch.equal(rectified, norm.relu()) and not torch.equal(rectified, norm)
