"""DCLGAN and two-sided QS-Attn: the released steps in float64, the textbook step, negatives, what is refused."""

from __future__ import annotations

import pytest
import torch
from golden import load_baseline, under
from textbook import load_before, run_steps

from models import create_model
from models.textbook import textbook_step
from options.train_options import TrainOptions

TINY = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 12 --num_patches 24"
GOLDEN = f"--model dcl {TINY} --netG resnet_6blocks --netD n_layers --n_layers_D 2"
LAYERS = (4, 8, 12, 16)


def model_of(words):
    torch.manual_seed(0)
    return create_model(TrainOptions().parse(words.split()))


def batch(seed=0, count=1, size=(32, 32)):
    generator = torch.Generator().manual_seed(seed)
    return {domain: torch.rand(count, 3, *size, generator=generator) * 2 - 1 for domain in "AB"}


def close(found, expected, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(found.detach(), expected, rtol=rtol, atol=atol)


def golden_positions(golden, number):
    """The positions of step `number` in the order in which they are drawn."""
    return [golden[f"step{number}.ids_NCE{term}_layer{layer}"] for layer in LAYERS for term in (1, 2)]


@pytest.mark.parametrize("kind", ["step", "textbook"])
def test_two_steps_of_the_released_code(float64, kind):
    golden = load_baseline("dclgan_step")
    model = model_of(GOLDEN)
    load_before(model, golden)
    step = model if kind == "step" else textbook_step(model)
    batches = [{domain: golden[f"step{n}.real_{domain}"] for domain in "AB"} for n in (1, 2)]
    positions = [golden_positions(golden, n) for n in (1, 2)]
    for number, (losses, gradients) in enumerate(run_steps(step, model, batches, positions), start=1):
        assert losses.keys() == {key.split("loss_")[1] for key in under(golden, "lsgan_step1.")}
        for loss, value in losses.items():
            assert value == pytest.approx(golden[f"step{number}.loss_{loss}"].item(), rel=1e-5), loss
        if number == 1:
            expected = under(golden, "grad1.")
            assert {key.split(".")[0] for key in expected} == model.networks.keys()
            for key, value in expected.items():
                close(gradients[key], value, atol=1e-6 * value.abs().max().item() + 1e-9)
        for image in ("fake_B", "fake_A", "idt_A", "idt_B") if kind == "step" else ():
            if f"step{number}.{image}" in golden:
                close(model.results[image], golden[f"step{number}.{image}"])
    translated = model.networks["G_A"](golden["step1.real_A"])
    close(translated, golden["final.fake_B_of_step1_A"])
    close(model.networks["D_A"](translated), golden["final.D_A_of_it"])
    close(model.networks["G_B"](golden["step1.real_B"]), golden["final.fake_A_of_step1_B"])
    for name in ("weight", "bias"):
        close(model.networks["F1"].mlp_3[2].get_parameter(name), golden[f"after.F1.mlp_3.2.{name}"])


def test_the_first_released_step_with_lsgan(float64):
    golden = load_baseline("dclgan_step")
    model = model_of(f"{GOLDEN} --gan_mode lsgan")
    load_before(model, golden)
    images = [{domain: golden[f"step1.real_{domain}"] for domain in "AB"}]
    ((losses, _),) = run_steps(model, model, images, [golden_positions(golden, 1)])
    for loss, value in losses.items():
        assert value == pytest.approx(golden[f"lsgan_step1.loss_{loss}"].item(), rel=1e-5), loss
