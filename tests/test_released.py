"""The released code's arithmetic (`--qs_variant released`) against its own numbers, and its layouts."""

import pytest
import torch
from golden import DATA, load_golden
from textbook import close

from models.discriminator import NLayerDiscriminator, PixelDiscriminator
from models.generator import ResnetGenerator, UnetGenerator
from models.patch_sampler import PatchHeads
from models.qs_released import select_queries_released
from options.train_options import TrainOptions


def unit(vectors):
    """(B, N, C) -> (B*N, C) of unit length, as the released code hands routed features on."""
    vectors = vectors.flatten(0, 1)
    return vectors / (vectors.norm(dim=1, keepdim=True) + 1e-7)


@pytest.mark.parametrize("number", [0, 1])
def test_local_global_agrees_with_the_released_code(number):
    golden = load_golden(f"qs_local_global_released_{number}")
    source, target = golden["source"].requires_grad_(), golden["target"].requires_grad_()
    count, window = int(golden["num_queries"]), int(golden["window"])
    selection = select_queries_released(source, "local_global", count, window)
    close(selection.attention, golden["attention"], rtol=1e-4)
    routed = {"source": unit(selection.route(source)), "target": unit(selection.route(target))}
    for side, vectors in routed.items():
        close(vectors, golden[f"routed_{side}"], rtol=1e-4, atol=1e-5)
    (routed["target"] * golden["cotangent"]).sum().backward()
    close(source.grad, golden["grad_source"], rtol=1e-3, atol=1e-4)
    close(target.grad, golden["grad_target"], rtol=1e-3, atol=1e-4)


def test_local_agrees_with_the_released_code():
    golden = load_golden("qs_local_released")
    count, window = int(golden["num_queries"]), int(golden["window"])
    selection = select_queries_released(golden["source"], "local", count, window)
    assert selection.indices.tolist() == golden["indices"].tolist()
    close(selection.attention[0], golden["attention"][:, 0], rtol=1e-4)
    for side in ("source", "target"):
        close(unit(selection.route(golden[side])), golden[f"routed_{side}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_global_is_the_same_but_for_the_entropy(number):
    golden = load_golden(f"qs_global_{number}")
    selection = select_queries_released(golden["source"], "global", int(golden["num_queries"]))
    close(selection.attention, golden["attention"], rtol=1e-4)
    close(unit(selection.route(golden["target"])), golden["routed_target"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["global", "local", "local_global"])
def test_images_of_a_batch_do_not_mix(mode):
    """As when each image comes alone, which is all that the released code's local mode gives a meaning."""
    features = torch.randn(3, 6, 5, 7)
    together = select_queries_released(features, mode, 6, 3)
    for b in range(3):
        alone = select_queries_released(features[b : b + 1], mode, 6, 3)
        assert together.indices[b].tolist() == alone.indices[0].tolist()
        torch.testing.assert_close(together.route(features)[b], alone.route(features[b : b + 1])[0])


def test_released_key_names_in_their_order():
    for file, net in {
        "generator_resnet9_net_G.pth": ResnetGenerator(ngf=8),
        "discriminator_patchgan_net_D.pth": NLayerDiscriminator(ndf=8),
    }.items():
        assert list(net.state_dict()) == list(torch.load(DATA / file, weights_only=True))


def numbers(net, part):
    """Of the modules with a kernel, or of the residual blocks."""
    keys = [key for key in net.state_dict() if part in key and key.endswith("weight")]
    return sorted({int(key.split(".")[1]) for key in keys})


@pytest.mark.parametrize("antialias, antialias_up, down, first, up", [
    (True, True, [1, 4, 8], 12, [22, 26, 30]),
    (False, True, [1, 4, 7], 10, [20, 24, 28]),
    (True, False, [1, 4, 8], 12, [21, 24, 28]),
])  # fmt: skip
def test_resampling_shifts_the_numbers_of_modules(antialias, antialias_up, down, first, up):
    """As CUT builds these networks."""
    net = ResnetGenerator(ngf=2, antialias=antialias, antialias_up=antialias_up)
    blocks = list(range(first, first + 9))
    assert numbers(net, "conv_block") == blocks and numbers(net, "model") == [*down, *blocks, *up]
    expected = [0, 3, 7, 11, 14] if antialias else [0, 2, 5, 8, 11]
    assert numbers(NLayerDiscriminator(ndf=2, antialias=antialias), "model") == expected


def test_layout_of_the_other_networks():
    parts = ("weight", "bias")
    assert set(PixelDiscriminator(ndf=2).state_dict()) == {f"net.{n}.{of}" for n in (0, 2, 5) for of in parts}
    heads = {f"mlp_{head}.{n}.{of}" for head in (0, 1) for n in (0, 2) for of in parts}
    assert set(PatchHeads([3, 8]).state_dict()) == heads
    unet = [key for key in UnetGenerator(3, 3, 7, 1).state_dict() if key.endswith("weight")]
    # Down: the outermost convolution is number 0, the others follow a LeakyReLU. Up: they follow the inner
    # block and a ReLU.
    block = ["", *("model.1." + "model.3." * depth for depth in range(6))]
    down = [f"model.{block[depth]}model.{min(depth, 1)}.weight" for depth in range(7)]
    up = [f"model.{block[depth]}model.{3 if depth == 6 else 5}.weight" for depth in range(6, 0, -1)]
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
