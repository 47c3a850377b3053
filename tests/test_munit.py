"""MUNIT's networks and training step against the released code's numbers, its norms, and what is refused."""

from __future__ import annotations

import ast
import re
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from golden import load_baseline, under
from textbook import run_steps

from models import create_model, munit_networks
from models.layers import initialise
from models.munit_networks import AdaIN, AdaINGenerator, LayerNorm, MultiScaleDiscriminator
from options.train_options import TrainOptions
from util.errors import UserError

GOLDEN = {"rtol": 1e-5, "atol": 1e-6}
TINY = (
    "--model munit --gpu_ids -1 --ngf 4 --ndf 4 --mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2 "
    "--crop_size 32"
).split()


def model_of(*words: str):
    torch.manual_seed(0)
    return create_model(TrainOptions().parse([*TINY, *words]))


def batch_of(count: int = 1, height: int = 32, width: int = 48) -> dict:
    images = torch.rand(2, count, 3, height, width) * 2 - 1
    return {"A": images[0], "B": images[1]}


@contextmanager
def given_styles(*styles: torch.Tensor):
    """Styles to hand out in place of random ones, in this order."""
    given = iter(styles)
    with patch.object(munit_networks, "random_styles", lambda *_: next(given)):
        yield
    assert next(given, None) is None  # all were drawn


# Networks


@pytest.fixture(scope="module")
def forward():
    """The released networks' numbers, and a generator and a discriminator of their weights, in float64."""
    golden = load_baseline("munit_forward")
    settings = ast.literal_eval(golden["meta.settings"])
    sizes = {name: settings["gen"][name] for name in ("dim", "mlp_dim", "style_dim", "n_downsample", "n_res")}
    dis = settings["dis"]
    nets = {
        "G": AdaINGenerator(3, 3, **sizes).double(),
        "D": MultiScaleDiscriminator(3, dis["dim"], dis["n_layer"], dis["num_scales"]).double(),
    }
    for name, net in nets.items():
        weights = under(golden, f"before.{name}.")
        assert list(net.state_dict()) == list(weights)  # a released optimizer counts them
        net.load_state_dict(weights)
    return golden, nets["G"], nets["D"]


@torch.no_grad()
def test_released_networks(forward):
    golden, net, netD = forward
    content, style = net.encode(golden["x"])
    found = {
        "content": content,
        "style_of_x": style,
        "adain_params": net.mlp(golden["style"].flatten(1)),
        "decoded": net.decode(content, golden["style"]),
        "reconstruction": net(golden["x"]),
        "downsampled": netD.downsample(golden["x"]),
        **{f"dis_scale{scale}": scores for scale, scores in enumerate(netD(golden["x"]))},
    }
    for name, value in found.items():
        torch.testing.assert_close(value, golden[name], **GOLDEN)
    torch.testing.assert_close(net(golden["x"], golden["style"].flatten(1)), golden["decoded"], **GOLDEN)


def test_unused_statistics_of_released_files_are_ignored(forward):
    _, net, _ = forward
    state = net.state_dict()
    for part in ("dec.model.0.model.1.model.0.norm", "enc_content.model.0.norm"):
        state |= {f"{part}.running_mean": torch.zeros(16), f"{part}.running_var": torch.ones(16)}
    net.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected"):
        net.load_state_dict({**state, "dec.model.0.model.1.model.0.norm.gamma": torch.ones(16)})


def layer_norm(x, gamma, beta):
    net = LayerNorm(len(gamma))
    return torch.func.functional_call(net, {"gamma": gamma, "beta": beta}, (x,))


# the norms, and the shape of their arguments
NORMS = {layer_norm: lambda batch: (3,), AdaIN(): lambda batch: (batch, 3)}
norms = pytest.mark.parametrize("norm", NORMS, ids=["layer", "adain"])


def test_released_norms(forward):
    golden, *_ = forward
    y = layer_norm(golden["ln.in"], golden["ln.gamma"], golden["ln.beta"])
    torch.testing.assert_close(y, golden["ln.out"], **GOLDEN)
    y = AdaIN()(golden["adain.in"], *golden["adain.params_shift_then_scale"].chunk(2, 1))
    torch.testing.assert_close(y, golden["adain.out"], **GOLDEN)


@norms
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_by_finite_differences(norm, batch):
    """Whatever the strides: at a batch of one, PyTorch's own instance norm returns wrong gradients."""
    torch.manual_seed(0)
    affine = [torch.randn(NORMS[norm](batch)).double().requires_grad_() for _ in range(2)]
    x = torch.randn(batch, 3, 4, 5, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.autograd.gradcheck(norm, [x.to(memory_format=layout).requires_grad_(), *affine])


@norms
def test_constant_images_have_finite_gradients(norm):
    x = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    affine = [torch.tensor([0.5, 1.0, 2.0]).view(NORMS[norm](1)).requires_grad_() for _ in range(2)]
    y = norm(x, *affine)
    torch.testing.assert_close(y, torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1).expand_as(y))
    y.square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *affine))


@norms
def test_half_precision_statistics_are_float32(norm):
    x = (torch.randn(2, 3, 8, 8) + 100).bfloat16()
    affine = torch.ones(NORMS[norm](2)), torch.zeros(NORMS[norm](2))
    assert torch.equal(norm(x, *affine), norm(x.float(), *affine))


@pytest.mark.parametrize("n_downsample", [2, 3, 4])
def test_smallest_image_of_the_generator(n_downsample):
    net = AdaINGenerator(dim=2, mlp_dim=8, n_res=1, n_downsample=n_downsample)
    side, multiple = net.smallest_side, net.size_multiple
    assert net(torch.randn(1, 3, side, side + multiple)).shape == (1, 3, side, side + multiple)
    with pytest.raises(RuntimeError, match="[Pp]adding"):
        net(torch.randn(1, 3, side - multiple, side))


@pytest.mark.parametrize("n_layers, num_scales, side", [(4, 3, 61), (3, 1, 8), (2, 2, 7)])
def test_smallest_image_of_the_discriminator(n_layers, num_scales, side):
    net = MultiScaleDiscriminator(3, 2, n_layers, num_scales)
    assert net.smallest_side == side
    assert net(torch.randn(1, 3, side, side))[-1].shape == (1, 1, 1, 1)
    with pytest.raises(UserError, match=f"{side} x {side}"):
        net(torch.randn(1, 3, side - 1, 2 * side))
    net.smallest_side = 0
    with pytest.raises(RuntimeError, match="[Pp]adding"):
        net(torch.randn(1, 3, side - 1, side - 1))


def test_a_second_call_leaves_the_first_ones_gradient_as_it_was():
    """Two calls before a backward are independent: AdaIN parameters are not stored on the layers."""
    net = AdaINGenerator(dim=4, mlp_dim=8, n_res=1)
    content, styles = torch.randn(1, 16, 4, 4), torch.randn(2, 1, 8)

    def gradient(*calls: int) -> torch.Tensor:
        images = [net.decode(content, styles[i]) for i in calls]
        return torch.autograd.grad(images[0].square().sum(), net.mlp.model[2].fc.weight)[0]

    assert torch.equal(gradient(0, 1), gradient(0)) and not torch.equal(gradient(0), gradient(1))


def test_released_initialisation():
    torch.manual_seed(0)
    net = initialise(AdaINGenerator(dim=32, n_res=1), "kaiming")
    for key, p in net.named_parameters():
        if key.endswith("gamma"):
            assert 0 <= p.min() < 0.2 and 0.8 < p.max() < 1
        elif p.dim() == 1:
            assert not p.any()
        elif p.numel() > 3000:
            assert p.std().item() == pytest.approx((2 / p[0].numel()) ** 0.5, rel=0.05), key
    model = model_of("--ndf", "16")
    assert model.networks["dis_b"].cnns[1][1].conv.weight.std().item() == pytest.approx(0.02, rel=0.05)


# Steps


def golden_model(golden):
    """A float64 model of the released options and weights."""
    settings = ast.literal_eval(golden["meta.settings"])
    gen, dis = settings["gen"], settings["dis"]
    words = f"--model munit --gpu_ids -1 --ngf {gen['dim']} --ndf {dis['dim']}"
    words += f" --n_layer {dis['n_layer']} --num_scales {dis['num_scales']}"
    words += "".join(f" --{name} {gen[name]}" for name in ("mlp_dim", "style_dim", "n_downsample", "n_res"))
    names = "lr beta1 beta2 weight_decay gan_w recon_x_w recon_s_w recon_c_w recon_x_cyc_w".split()
    words += "".join(f" --{name} {settings[name]}" for name in names)
    model = create_model(TrainOptions().parse(words.split()))
    for name, net in model.networks.items():
        net.double().load_state_dict(under(golden, f"before.{name}."))
    return model


def test_two_released_steps():
    """Every loss, gradient and image of two released steps, and an image after them, in float64."""
    golden = load_baseline("munit_step")
    model = golden_model(golden)
    for number in (1, 2):
        arrays = under(golden, f"step{number}.")
        batch = {"A": arrays["x_a"], "B": arrays["x_b"]}
        with given_styles(*(arrays[name] for name in ("dis_s_a", "dis_s_b", "gen_s_a", "gen_s_b"))):
            ((losses, gradients),) = run_steps(model, model, [batch])
        expected = {name: value.item() for name, value in under(arrays, "loss_").items()}
        assert losses == pytest.approx(expected, rel=1e-5, abs=1e-6) and len(losses) == 14
        for name, image in {"recon_B": "x_b_recon", "fake_B": "x_ab", "cycle_B": "x_bab"}.items():
            torch.testing.assert_close(model.results[name], arrays[image], **GOLDEN)
        for key, value in under(golden, "grad1.").items() if number == 1 else ():
            torch.testing.assert_close(gradients[key], value, **GOLDEN)
    with torch.no_grad():
        x_ab = model.translator()(golden["step1.x_a"], golden["step1.gen_s_b"].flatten(1))
    torch.testing.assert_close(x_ab, golden["final.x_ab"], **GOLDEN)


def test_defaults_are_the_released_ones():
    opt = TrainOptions().parse(["--model", "munit", "--gpu_ids", "-1"])
    weights = (opt.gan_w, opt.recon_x_w, opt.recon_s_w, opt.recon_c_w, opt.recon_x_cyc_w)
    assert weights == (1, 10, 1, 1, 10) and opt.gan_mode == "lsgan"
    assert (opt.lr, opt.beta1, opt.beta2, opt.weight_decay) == (1e-4, 0.5, 0.999, 1e-4)
    assert (opt.n_iterations, opt.lr_policy, opt.lr_decay_iters) == (1_000_000, "step", 100_000)
    assert (opt.preprocess, opt.load_size, opt.crop_size) == ("scale_shortside_and_crop", 256, 256)
    assert (opt.lr_decay_gamma, opt.ngf, opt.ndf, opt.mlp_dim, opt.style_dim) == (0.5, 64, 64, 256, 8)
    assert (opt.n_downsample, opt.n_res, opt.n_layer, opt.num_scales) == (2, 4, 4, 3)


RATES = {
    # one iteration early, as in the released code, whose schedule is stepped before an iteration's updates
    "--lr_decay_iters 3": [1, 1, 0.5, 0.5, 0.5, 0.25],
    "--lr_policy step --lr_decay_iters 2 --n_epochs 6": [1, 1, 0.5, 0.5, 0.25, 0.25],
    "--n_epochs 2 --n_epochs_decay 3": [1, 1, 0.75, 0.5, 0.25, 0],
    "--n_iterations 0 --n_epochs 1 --n_epochs_decay 4": [1, 0.8, 0.6, 0.4, 0.2, 0],
}


@pytest.mark.parametrize("line", RATES)
def test_the_rate_decays_as_the_length_says(line):
    """Counted in epochs as of other models."""
    model = model_of(*line.split())
    rates = []
    for _ in range(6):
        rates.append(model.learning_rate / 1e-4)
        model.set_input(batch_of())
        model.optimize_parameters()
        if "n_epochs" in line:
            model.update_learning_rate()
    assert rates == pytest.approx(RATES[line])


def test_speed_options_change_rounding_alone():
    plain, model = model_of(), model_of(*"--precision bf16 --channels_last".split())
    batch, styles = batch_of(2), [torch.randn(2, 8, 1, 1) for _ in range(4)]
    with given_styles(*styles):
        ((expected, _),) = run_steps(plain, plain, [batch])
    with given_styles(*styles):
        ((losses, gradients),) = run_steps(model, model, [batch])
    assert losses == pytest.approx(expected, rel=0.05, abs=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for name, image in model.results.items():
        assert image.shape == batch["A"].shape and image.abs().max() <= 1, name
    assert set(model.visual_names) == {*model.results, "real_A", "real_B"}


def test_images_of_a_batch_do_not_mix():
    """Losses of a batch are the means of those of its images, so processes and batches agree."""
    batch, styles = batch_of(2), [torch.randn(2, 8, 1, 1) for _ in range(4)]
    found = []
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
        model = model_of("--recon_x_cyc_w", "0")
        for name in ("dis_a", "dis_b"):
            model.optimizers[name].param_groups[0]["lr"] = 0.0
        with given_styles(*(style[part] for style in styles)):
            ((losses, _),) = run_steps(model, model, [{name: images[part] for name, images in batch.items()}])
        found.append(losses)
    whole, one, two = found
    assert "gen_cycrecon_x_a" not in whole
    assert whole == pytest.approx({name: (one[name] + two[name]) / 2 for name in whole}, rel=1e-4)


def test_random_styles_are_normal_and_drawn_anew(monkeypatch):
    torch.manual_seed(0)
    styles = munit_networks.random_styles(4000, 8, "cpu")
    assert abs(styles.mean().item()) < 0.02 and styles.std().item() == pytest.approx(1, abs=0.02)
    draw, drawn = munit_networks.random_styles, []
    monkeypatch.setattr(munit_networks, "random_styles", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    model = model_of()
    model.set_input(batch_of(3))
    model.optimize_parameters()
    assert [style.shape for style in drawn] == [(3, 8, 1, 1)] * 4
    assert all(not torch.equal(drawn[0], style) for style in drawn[1:])


REFUSALS = {
    "--netG unet_256": "--netG has no effect with --model munit: leave it out",
    "--pool_size 50": "--pool_size has no effect with --model munit",
    "--gan_mode wgangp": "give lsgan or vanilla",
    "--input_nc 1": "--input_nc 1 and --output_nc 3 differ",
    "--crop_size 30 --load_size 30": "the generator needs a multiple of 4.* Take 32",
    "--n_layer 4 --num_scales 3 --crop_size 56": "the discriminator at least 61 pixels. Take 64",
    "--n_downsample 3 --preprocess none": "the generator needs multiples of 8",
    "--n_iterations 0 --n_epochs 0 --n_epochs_decay 0": "nothing would be trained",
    "--n_epochs 9 --lr_decay_iters 3": "--lr_decay_iters has no effect with --lr_policy linear",
    "--model cut": "--mlp_dim has no effect with --model cut",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refusals(line, capsys):
    with pytest.raises(SystemExit) as exit:
        TrainOptions().parse([*TINY[2 if "--model" in line else 0 :], *line.split()])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(REFUSALS[line], error), error


def test_images_too_small_for_the_discriminator_are_named():
    model = model_of("--n_layer", "4", "--num_scales", "3", "--preprocess", "none")
    model.set_input(batch_of(1, 32, 64))
    with pytest.raises(UserError, match=r"64 x 32 pixels is too small.* needs 61 x 61"):
        model.optimize_parameters()
