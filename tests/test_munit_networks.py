"""MUNIT's networks against golden numbers, and their norms against formulas."""

from __future__ import annotations

import pytest
import torch
from munit_golden import (
    golden_discriminator,
    golden_generator,
    load_munit_golden,
    weights_before,
)

from models.layers import initialise
from models.munit_networks import (
    AdaINGenerator,
    LayerNorm,
    MultiScaleDiscriminator,
    adain,
    discriminator_loss,
    generator_loss,
    layer_norm,
)
from util.errors import UserError

GOLDEN = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def forward():
    return load_munit_golden("munit_forward")


def tiny_generator(**sizes: int) -> AdaINGenerator:
    torch.manual_seed(0)
    return AdaINGenerator(**{"dim": 4, "mlp_dim": 8, "n_res": 1, **sizes})


# Golden numbers


@torch.no_grad()
def test_generator_golden(forward):
    golden, settings = forward
    net = golden_generator(golden, settings, "G")
    content, style = net.encode(golden["x"])
    torch.testing.assert_close(content, golden["content"], **GOLDEN)
    torch.testing.assert_close(style, golden["style_of_x"], **GOLDEN)
    torch.testing.assert_close(net.mlp(golden["style"]), golden["adain_params"], **GOLDEN)
    torch.testing.assert_close(net.decode(content, golden["style"]), golden["decoded"], **GOLDEN)
    torch.testing.assert_close(net(golden["x"], golden["style"].flatten(1)), golden["decoded"], **GOLDEN)
    torch.testing.assert_close(net(golden["x"]), golden["reconstruction"], **GOLDEN)


@torch.no_grad()
def test_discriminator_golden(forward):
    golden, settings = forward
    net = golden_discriminator(golden, settings, "D")
    torch.testing.assert_close(net.downsample(golden["x"]), golden["downsampled"], **GOLDEN)
    scores = net(golden["x"])
    assert len(scores) == 3
    for scale, map in enumerate(scores):
        torch.testing.assert_close(map, golden[f"dis_scale{scale}"], **GOLDEN)


def test_norms_golden(forward):
    golden, _ = forward
    y = layer_norm(golden["ln.in"], golden["ln.gamma"], golden["ln.beta"])
    torch.testing.assert_close(y, golden["ln.out"], **GOLDEN)
    y = adain(golden["adain.in"], *golden["adain.params_shift_then_scale"].chunk(2, 1))
    torch.testing.assert_close(y, golden["adain.out"], **GOLDEN)


def test_state_dict_keys_are_the_released_ones(forward):
    """In the released order too: the optimizers' state of a released snapshot counts parameters."""
    golden, settings = forward
    assert list(golden_generator(golden, settings, "G").state_dict()) == list(weights_before(golden, "G"))
    assert list(golden_discriminator(golden, settings, "D").state_dict()) == list(weights_before(golden, "D"))


def test_unused_statistics_of_released_files_are_ignored(forward):
    golden, settings = forward
    net = golden_generator(golden, settings, "G")
    state = weights_before(golden, "G")
    for part in ("dec.model.0.model.1.model.0.norm", "enc_content.model.0.norm"):
        state |= {f"{part}.running_mean": torch.zeros(16), f"{part}.running_var": torch.ones(16)}
    given = set(state)
    net.load_state_dict(state)
    assert set(state) == given
    with pytest.raises(RuntimeError, match="Unexpected"):
        net.load_state_dict({**state, "dec.model.0.model.1.model.0.norm.gamma": torch.ones(16)})


# Norms


def test_layer_norm_is_its_formula():
    x, gamma, beta = 3 * torch.randn(2, 3, 5, 4) + 1, torch.rand(3), torch.randn(3)
    y = layer_norm(x, gamma, beta)
    for b in range(2):
        normalised = (x[b] - x[b].mean()) / (x[b].std(correction=1) + 1e-5)
        for c in range(3):
            torch.testing.assert_close(y[b, c], gamma[c] * normalised[c] + beta[c], rtol=1e-5, atol=1e-5)


def test_adain_is_its_formula():
    x, shift, scale = 3 * torch.randn(2, 3, 5, 4) + 1, torch.randn(2, 3), torch.randn(2, 3)
    y = adain(x, shift, scale)
    for b in range(2):
        for c in range(3):
            plane = x[b, c]
            normalised = (plane - plane.mean()) / (plane.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(y[b, c], scale[b, c] * normalised + shift[b, c], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [layer_norm, adain])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_by_finite_differences(norm, batch):
    torch.manual_seed(0)
    affine = (3,) if norm is layer_norm else (batch, 3)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in ((batch, 3, 4, 5), affine, affine)]
    for layout in (torch.contiguous_format, torch.channels_last):
        x = inputs[0].to(memory_format=layout)
        assert torch.autograd.gradcheck(norm, [t.requires_grad_() for t in (x, *inputs[1:])])


@pytest.mark.parametrize("norm", [layer_norm, adain])
def test_gradient_does_not_depend_on_strides(norm):
    """Batch of one: PyTorch's own instance norm returns wrong gradients here (see test_normalisation.py)."""
    torch.manual_seed(0)
    affine = (8,) if norm is layer_norm else (1, 8)
    shift, scale = torch.randn(affine), torch.randn(affine)
    x, cotangent = torch.randn(2, 1, 8, 16, 16)
    layouts = (torch.contiguous_format, torch.channels_last)
    grads = []
    for x_layout in layouts:
        for layout in layouts:
            leaf = x.to(memory_format=x_layout).requires_grad_()
            y = norm(leaf, shift, scale)
            assert y.is_contiguous(memory_format=x_layout)
            grads += torch.autograd.grad(y, leaf, cotangent.to(memory_format=layout))
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [layer_norm, adain])
def test_constant_images_have_finite_gradients(norm):
    affine = (3,) if norm is layer_norm else (1, 3)
    x = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    first, second = (torch.tensor([0.5, 1.0, 2.0]).view(affine).requires_grad_() for _ in range(2))
    y = norm(x, first, second)
    beta = second if norm is layer_norm else first
    torch.testing.assert_close(y, beta.view(1, 3, 1, 1).expand_as(y))
    y.square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, first, second))


@pytest.mark.parametrize("norm", [layer_norm, adain])
def test_half_precision_statistics_are_float32(norm):
    affine = (3,) if norm is layer_norm else (2, 3)
    x = (torch.randn(2, 3, 8, 8) + 100).bfloat16()
    first, second = torch.ones(affine), torch.zeros(affine)
    torch.testing.assert_close(norm(x, first, second), norm(x.float(), first, second), rtol=0, atol=0)


# Networks


def test_shapes_of_images_that_are_not_square():
    net = tiny_generator(input_nc=1, output_nc=2)
    content, style = net.encode(torch.randn(2, 1, 24, 36))
    assert content.shape == (2, 16, 6, 9) and style.shape == (2, 8, 1, 1)
    assert net.decode(content, style).shape == (2, 2, 24, 36)


@pytest.mark.parametrize("n_downsample", [2, 3, 4])
def test_smallest_image_of_the_generator(n_downsample):
    net = tiny_generator(dim=2, n_downsample=n_downsample)
    side, multiple = net.smallest_side, net.size_multiple
    assert net(torch.randn(1, 3, side, side + multiple)).shape == (1, 3, side, side + multiple)
    with pytest.raises(RuntimeError, match="[Pp]adding"):
        net(torch.randn(1, 3, side - multiple, side))


@pytest.mark.parametrize("n_layers, num_scales, side", [(4, 3, 61), (3, 3, 29), (3, 1, 8), (2, 2, 7)])
def test_smallest_image_of_the_discriminator(n_layers, num_scales, side):
    net = MultiScaleDiscriminator(3, 2, n_layers, num_scales)
    assert net.smallest_side == side
    assert net(torch.randn(1, 3, side, side))[-1].shape == (1, 1, 1, 1)
    with pytest.raises(UserError, match=f"{side} x {side}"):
        net(torch.randn(1, 3, side - 1, 2 * side))
    net.smallest_side = 0
    with pytest.raises(RuntimeError, match="[Pp]adding"):
        net(torch.randn(1, 3, side - 1, side - 1))


def test_images_of_a_batch_do_not_mix():
    net, x = tiny_generator().double(), torch.randn(2, 3, 16, 20, dtype=torch.float64)
    style = torch.randn(2, 8, dtype=torch.float64)
    alone = torch.cat([net(x[i : i + 1], style[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(net(x, style), alone)


def test_a_second_call_leaves_the_first_ones_gradient_as_it_was():
    """Two calls before a backward are independent: AdaIN parameters are not stored on the layers."""
    net = tiny_generator()
    content, styles = torch.randn(1, 16, 4, 4), torch.randn(2, 1, 8)

    def gradient(*calls: int) -> torch.Tensor:
        images = [net.decode(content, styles[i]) for i in calls]
        return torch.autograd.grad(images[0].square().sum(), net.mlp.model[2].fc.weight)[0]

    torch.testing.assert_close(gradient(0, 1), gradient(0), rtol=0, atol=0)
    assert not torch.equal(gradient(0), gradient(1))


def test_released_initialisation():
    torch.manual_seed(0)
    net = initialise(AdaINGenerator(dim=32, n_res=1), "kaiming")
    for key, p in net.named_parameters():
        if key.endswith("gamma"):
            assert 0 <= p.min() < 0.2 and 0.8 < p.max() < 1
        elif p.dim() == 1:
            assert not p.any()
        elif p.numel() > 3000:
            fan_in = p[0].numel()
            assert p.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), key
    netD = initialise(MultiScaleDiscriminator(dim=16), "normal", 0.02)
    assert netD.cnns[2][2].conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(not p.any() for key, p in netD.named_parameters() if key.endswith("bias"))
    assert isinstance(net.dec.model[2].norm, LayerNorm)


def test_losses_are_sums_over_scales():
    fake, real = [torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0]])], [torch.zeros(1, 3), torch.ones(1, 1)]
    assert discriminator_loss(fake, real).item() == (4 + 0) / 2 + 1 + 1 + 0
    assert generator_loss(fake).item() == (1 + 1) / 2 + 0
