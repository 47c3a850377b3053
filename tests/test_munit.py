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
from models.munit_networks import AdaIN, AdaINGenerator, LayerNorm, MultiScaleDiscriminator
from options.train_options import TrainOptions

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


RATES = {
    # one iteration early, as in the released code, whose schedule is stepped before an iteration's updates
    "--lr_decay_iters 3": [1, 1, 0.5, 0.5, 0.5, 0.25],
    "--n_epochs 2 --n_epochs_decay 3": [1, 1, 0.75, 0.5, 0.25, 0],
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


REFUSALS = {
    "--gan_mode wgangp": "give lsgan or vanilla",
    "--input_nc 1": "to be the same",
    "--crop_size 30 --load_size 30": "the generator needs a multiple of 4.* Take 32",
    "--n_layer 4 --num_scales 3 --crop_size 56": "the discriminator at least 61 pixels. Take 64",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refusals(line, capsys):
    with pytest.raises(SystemExit) as exit:
        model_of(*line.split())
    assert exit.value.code == 2
    assert re.search(REFUSALS[line], capsys.readouterr().err)
