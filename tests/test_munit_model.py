"""MUNIT's training step against the released code's numbers."""

from __future__ import annotations

import math
import re

import pytest
import torch
from munit_golden import given_styles, golden_munit_model, load_munit_golden
from textbook import run_steps

from models import create_model, munit_networks
from models.munit_networks import AdaINGenerator, MultiScaleDiscriminator
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


def test_two_steps_golden():
    """Every loss, gradient and image of two released steps, and an image after them, in float64."""
    golden, settings = load_munit_golden("munit_step")
    model = golden_munit_model(golden, settings)
    for number in (1, 2):
        arrays = {key.removeprefix(f"step{number}."): v for key, v in golden.items()}
        batch = {"A": arrays["x_a"], "B": arrays["x_b"]}
        with given_styles(*(arrays[name] for name in ("dis_s_a", "dis_s_b", "gen_s_a", "gen_s_b"))):
            ((losses, gradients),) = run_steps(model, model, [batch])
        names = [key.removeprefix("loss_") for key in arrays if key.startswith("loss_")]
        assert sorted(losses) == sorted(names) and len(names) == 14
        for name in names:
            assert losses[name] == pytest.approx(arrays[f"loss_{name}"].item(), rel=1e-5, abs=1e-6)
        for name, image in {"recon_B": "x_b_recon", "fake_B": "x_ab", "cycle_B": "x_bab"}.items():
            torch.testing.assert_close(model.results[name], arrays[image], **GOLDEN)
        if number == 1:
            check_first_gradients(golden, model, gradients)
    translator = model.translator()
    with torch.no_grad():
        x_ab = translator(golden["step1.x_a"], golden["step1.gen_s_b"].flatten(1))
    torch.testing.assert_close(x_ab, golden["final.x_ab"], **GOLDEN)


def check_first_gradients(golden, model, gradients) -> None:
    compared = 0
    for name, net in model.networks.items():
        keys = [key for key, _ in net.named_parameters()]
        norms = torch.stack([gradients[f"{name}.{key}"].norm() for key in keys])
        torch.testing.assert_close(norms, golden[f"grad1norm.{name}"], **GOLDEN)
        for key in keys:
            if f"grad1.{name}.{key}" in golden:
                compared += 1
                torch.testing.assert_close(
                    gradients[f"{name}.{key}"], golden[f"grad1.{name}.{key}"], **GOLDEN
                )
    assert compared == sum(key.startswith("grad1.") for key in golden)


def test_defaults_are_the_released_ones():
    opt = TrainOptions().parse(["--model", "munit"])
    weights = (opt.gan_w, opt.recon_x_w, opt.recon_s_w, opt.recon_c_w, opt.recon_x_cyc_w)
    assert weights == (1, 10, 1, 1, 10) and opt.gan_mode == "lsgan"
    assert (opt.lr, opt.beta1, opt.beta2, opt.weight_decay) == (1e-4, 0.5, 0.999, 1e-4)
    assert (opt.n_iterations, opt.lr_policy, opt.lr_decay_iters, opt.lr_decay_gamma) == (
        *(1_000_000, "step"),
        *(100_000, 0.5),
    )
    assert (opt.preprocess, opt.load_size, opt.crop_size) == ("scale_shortside_and_crop", 256, 256)
    with torch.device("meta"):
        model_sizes = AdaINGenerator(3, 3), MultiScaleDiscriminator(3)
    model = create_model(TrainOptions().parse(["--model", "munit", "--gpu_ids", "-1", "--dry_run"]))
    for name, net in zip(("gen_b", "dis_a"), model_sizes, strict=True):
        shapes = {key: value.shape for key, value in net.state_dict().items()}
        assert {key: value.shape for key, value in model.networks[name].state_dict().items()} == shapes
    weight = model.networks["dis_a"].cnns[0][1].conv.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    weight = model.networks["gen_a"].mlp.model[1].fc.weight  # kaiming: variance 2 / fan-in
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)


@pytest.mark.parametrize("unit", ["iterations", "epochs"])
def test_the_rate_halves_one_iteration_early(unit):
    """As in the released code, whose schedule is stepped before an iteration's updates."""
    model = model_of("--lr_decay_iters", "3", *(["--n_epochs", "9"] if unit == "epochs" else []))
    rates = []
    for _ in range(7):
        rates.append(model.learning_rate / 1e-4)
        model.set_input(batch_of())
        model.optimize_parameters()
        if unit == "epochs":
            model.update_learning_rate()
    halvings = {"iterations": [0, 0, 1, 1, 1, 2, 2], "epochs": [0, 0, 0, 1, 1, 1, 2]}[unit]
    assert rates == pytest.approx([0.5**halving for halving in halvings])


@pytest.mark.parametrize(
    "words", ["", "--precision bf16", "--channels_last", "--precision bf16 --channels_last"]
)
def test_speed_options_change_rounding_alone(words):
    plain, model = model_of(), model_of(*words.split())
    torch.manual_seed(1)
    batch, styles = batch_of(2), [torch.randn(2, 8, 1, 1) for _ in range(4)]
    with given_styles(*styles):
        ((expected, _),) = run_steps(plain, plain, [batch])
    with given_styles(*styles):
        ((losses, gradients),) = run_steps(model, model, [batch])
    assert losses == pytest.approx(expected, rel=0.05 if "bf16" in words else 1e-4, abs=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for name, image in model.results.items():
        assert image.shape == batch["A"].shape and image.abs().max() <= 1, name
    assert set(model.visual_names) == {*model.results, "real_A", "real_B"}


def test_images_of_a_batch_do_not_mix():
    """Losses of a batch are the means of those of its images, so processes and batches agree."""
    model, other = model_of(), model_of()
    batch, styles = batch_of(2), [torch.randn(2, 8, 1, 1) for _ in range(4)]
    with given_styles(*styles):
        ((whole, _),) = run_steps(model, model, [batch])
    parts = []
    for number in range(2):
        for name, net in model_of().networks.items():
            other.networks[name].load_state_dict(net.state_dict())
        other.optimizers["dis_a"].param_groups[0]["lr"] = other.optimizers["dis_b"].param_groups[0]["lr"] = (
            0.0
        )
        with given_styles(*(style[number : number + 1] for style in styles)):
            one = {domain: images[number : number + 1] for domain, images in batch.items()}
            ((losses, _),) = run_steps(other, other, [one])
        parts.append(losses)
    for name in whole:
        if "adv" not in name and name != "gen_total":  # these follow the discriminators' update
            assert (parts[0][name] + parts[1][name]) / 2 == pytest.approx(whole[name], rel=1e-4), name


def test_random_styles_are_normal_and_drawn_anew(monkeypatch):
    torch.manual_seed(0)
    styles = munit_networks.random_styles(4000, 8, "cpu")
    assert styles.shape == (4000, 8, 1, 1)
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
    "--n_layers_D 5": "--n_layers_D has no effect with --model munit",
    "--pool_size 50": "--pool_size has no effect with --model munit",
    "--gan_mode wgangp": "give lsgan, vanilla or nonsaturating",
    "--gan_w 0": "--gan_w is 0",
    "--input_nc 1": "--input_nc 1 and --output_nc 3 differ",
    "--crop_size 30 --load_size 30": "the generator needs a multiple of 4.* Take 32",
    "--n_layer 4 --num_scales 3 --crop_size 56": "the discriminator at least 61 pixels. Take 64",
    "--n_downsample 3 --crop_size 36 --load_size 36": "a multiple of 8.* Take 32",
    "--n_downsample 4": "at least 1 and at most 3",
    "--n_downsample 3 --preprocess none": "the generator needs multiples of 8",
    "--n_iterations 0 --n_epochs 0 --n_epochs_decay 0": "nothing would be trained",
    "--lambda_NCE 2": "--lambda_NCE has no effect with --model munit",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refusals(line, capsys):
    with pytest.raises(SystemExit) as exit:
        TrainOptions().parse([*TINY, *line.split()])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(REFUSALS[line], error), error


def test_options_of_other_models_do_not_reach_munit(capsys):
    for words in (["--model", "cut", "--style_dim", "4"], ["--gan_w", "2"]):
        with pytest.raises(SystemExit):
            TrainOptions().parse(words)
        assert "has no effect with --model" in capsys.readouterr().err


def test_images_too_small_for_the_discriminator_are_named():
    model = model_of("--n_layer", "4", "--num_scales", "3", "--preprocess", "none")
    model.set_input(batch_of(1, 32, 64))
    with pytest.raises(UserError, match=r"64 x 32 pixels is too small.* needs 61 x 61"):
        model.optimize_parameters()
