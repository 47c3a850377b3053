"""What each option of networks, losses and optimisers does to a model that takes a step: option -> check.

What options do to files, data and the course of a run is in test_run_options.py.
"""

import copy
import math

import pytest
import torch
from torch import nn

from models import create_model
from models.gan_loss import GAN_LOSSES, gradient_penalty
from models.generator import ResnetBlock
from models.layers import BlurDownsample, BlurUpsample
from models.patch_sampler import PatchSelection
from models.qs_attn import QuerySelection
from models.qs_released import ReleasedLocalSelection
from options.train_options import TrainOptions

TINY = (
    "--gpu_ids -1 --ngf 2 --ndf 2 --num_patches 6 --netG resnet_4blocks --nce_layers 0,4,8,12,15 "
    "--load_size 40 --crop_size 32"
).split()


def model_of(line):
    """A tiny model of these options, the same weights for the same architecture."""
    heads = [] if "--netF sample" in line else ["--netF_nc", "4"]
    opt = TrainOptions().parse([*TINY, *heads, *line.split()])
    torch.manual_seed(0)
    return create_model(opt)


def images(opt, seed=1):
    shape, generator = (opt.crop_size, opt.crop_size), torch.Generator().manual_seed(seed)
    channels = {"A": opt.input_nc, "B": opt.output_nc}
    return {name: torch.rand(1, n, *shape, generator=generator) * 2 - 1 for name, n in channels.items()}


def stepped(line, steps=1):
    """A model after `steps`, with `chosen` (each layer's selection) and `embedded` (shapes given to F)."""
    model = model_of(line)
    model.chosen, model.embedded = [], []
    choose = model.choose_patches
    model.choose_patches = lambda *args: (model.chosen.append(choose(*args)), model.chosen[-1])[1]
    model.netF.register_forward_pre_hook(lambda _, args: model.embedded.append(tuple(args[1].shape)))
    for step in range(steps):
        torch.manual_seed(step)
        model.set_input(images(model.opt, step))
        model.optimize_parameters()
    assert all(math.isfinite(value) for value in model.get_current_losses().values())
    assert model.results["fake_B"].shape == model.batch["B"].shape
    return model


def count(net, kind):
    return sum(isinstance(module, kind) for module in net.modules())


def loss(model, name):
    return model.get_current_losses()[name]


def settings(model, name="G"):
    return model.optimizers[name].param_groups[0]


def kinds(model):
    return [type(selection) for selection in model.chosen]


def spread(model):
    return model.netG.model[4].weight.std().item()


def keys(model):
    """Keys of each attention row, layer by layer."""
    return [selection.attention.shape[2] for selection in model.chosen if hasattr(selection, "attention")]


P, Q = PatchSelection, QuerySelection

# option -> what is seen on the model after a step on one pair of 32 x 32 (or, of a U-Net, 128 or 256)
SEEN = {
    # networks
    "--netG resnet_4blocks": lambda m: count(m.netG, ResnetBlock) == 4,
    "--netG resnet_9blocks": lambda m: count(m.netG, ResnetBlock) == 9,
    "--netG unet_128 --crop_size 128 --load_size 128 --nce_layers 0,1,2,3,4": lambda m: count(m.netG, nn.ConvTranspose2d) == 7,
    "--normG batch": lambda m: count(m.netG, nn.BatchNorm2d) == 13 and m.netG.model[1].bias is None,
    "--normD batch": lambda m: count(m.netD, nn.BatchNorm2d) == 3,
    "--no_dropout false": lambda m: count(m.netG, nn.Dropout) == 4 and not torch.equal(*(m.netG(m.batch["A"]) for _ in range(2))),
    "--no_antialias --nce_layers 0,4,7,10,13": lambda m: count(m.netG, BlurDownsample) == count(m.netD, BlurDownsample) == 0,
    "--no_antialias_up": lambda m: count(m.netG, BlurUpsample) == 0 and count(m.netG, nn.ConvTranspose2d) == 2,
    "--netD n_layers --n_layers_D 2": lambda m: m.netD(m.batch["B"]).shape == (1, 1, 6, 6),
    "--input_nc 1 --output_nc 1": lambda m: m.results["fake_B"].shape[1] == 1 and m.embedded[0][2] == 1,
    "--input_nc 3 --output_nc 1 --lambda_NCE 0": lambda m: m.results["fake_B"].shape[1] == 1 and m.batch["A"].shape[1] == 3,
    # the choice of patches
    "--CUT_mode FastCUT": lambda m: kinds(m) == [P] * 5 and "NCE_Y" not in m.losses and m.opt.lambda_NCE == 10,
    "--QS_mode local": lambda m: keys(m) == [49, 49],
    "--QS_mode local_global": lambda m: kinds(m) == [P, P, P, Q, Q] and keys(m) == [64, 64],
    "--QS_mode local --qs_window 3": lambda m: keys(m) == [9, 9],
    "--qs_layers 0,4,8,12,15 --qs_pool 8": lambda m: kinds(m) == [Q] * 5 and keys(m) == [64] * 5,
    "--qs_variant released --QS_mode local --num_patches 8": lambda m: kinds(m)[3:] == [ReleasedLocalSelection] * 2,
    "--num_patches 5000": lambda m: [shape[1] for shape in m.embedded[:5]] == [38 * 38, 32 * 32, 16 * 16, 64, 64],
    "--nce_layers 4,8": lambda m: [shape[2] for shape in m.embedded[:2]] == [4, 8] and len(m.netF.heads) == 2,
    # initialisation: the standard deviation of a kernel of 3 x 3, 16 -> 32 channels
    "--init_type normal --init_gain 0.1 --ngf 16 --lr 1e-9": lambda m: spread(m) == pytest.approx(0.1, rel=0.08),
    "--init_type xavier --init_gain 0.1 --ngf 16 --lr 1e-9": lambda m: spread(m) == pytest.approx(0.1 * (2 / (9 * 16 + 9 * 32)) ** 0.5, rel=0.08),
    "--init_type kaiming --ngf 16 --lr 1e-9": lambda m: spread(m) == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.08),
    # losses
    "--netF sample": lambda m: "F" not in m.optimizers and m.netF(0, torch.rand(1, 2, 5)).shape == (1, 2, 5),
    "--netF_nc 7": lambda m: m.netF(0, torch.rand(1, 2, 3)).shape == (1, 2, 7),
    "--nce_T 1000": lambda m: loss(m, "NCE") == pytest.approx(math.log(6), abs=0.01),  # all 6 patches look alike
    "--nce_idt false": lambda m: "NCE_Y" not in m.losses and loss(m, "G") == pytest.approx(loss(m, "G_GAN") + loss(m, "NCE")),
    "--lambda_GAN 3": lambda m: loss(m, "G_GAN") == pytest.approx(3 * loss(stepped("--lambda_GAN 1"), "G_GAN")),
    "--lambda_NCE 3": lambda m: loss(m, "NCE") == pytest.approx(3 * loss(stepped("--lambda_NCE 1"), "NCE")),
    "--lambda_NCE 0": lambda m: not m.chosen and loss(m, "G") == pytest.approx(loss(m, "G_GAN")),
    # optimisers
    "--lr 0.01": lambda m: {settings(m, name)["lr"] for name in "GDF"} == {0.01} == {m.learning_rate},
    "--beta1 0.1 --beta2 0.9": lambda m: {settings(m, name)["betas"] for name in "GDF"} == {(0.1, 0.9)},
    "--pool_size 2": lambda m: m.pool.count.item() == 1,
    "--precision bf16": lambda m: m.results["fake_B"].dtype == torch.bfloat16 and {p.dtype for p in m.netG.parameters()} == {torch.float32},
    "--channels_last": lambda m: m.batch["A"].is_contiguous(memory_format=torch.channels_last),
}  # fmt: skip


@pytest.mark.parametrize("line", SEEN)
def test_seen_after_a_step(line):
    assert SEEN[line](stepped(line))


# What D's scores are charged: (should look real, should look fake).
GAN_FORMULAS = {
    "lsgan": (lambda s: (s - 1) ** 2, lambda s: s**2),
    "vanilla": (lambda s: -math.log(1 / (1 + math.exp(-s))), lambda s: -math.log(1 - 1 / (1 + math.exp(-s)))),
    "wgangp": (lambda s: -s, lambda s: s),
    "nonsaturating": (lambda s: math.log(1 + math.exp(-s)), lambda s: math.log(1 + math.exp(s))),
}


@pytest.mark.parametrize("mode", GAN_FORMULAS)
def test_adversarial_objectives(mode):
    scores = torch.tensor([[-2.0, 0.5], [0.0, 3.0]])
    for real, formula in zip((True, False), GAN_FORMULAS[mode], strict=True):
        expected = sum(map(formula, scores.flatten().tolist())) / 4
        assert GAN_LOSSES[mode](scores, real).item() == pytest.approx(expected, abs=1e-6)
    stepped(f"--gan_mode {mode}", steps=2)


def test_wgangp_holds_the_slope_of_D_at_one():
    model = stepped("--gan_mode wgangp")
    flat, steep = (lambda x: 0 * x.sum((1, 2, 3))), (lambda x: 3 * x[:, 0, 0, 0])  # slopes 0 and 3
    fake, real = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    assert gradient_penalty(flat, real, fake).item() == pytest.approx(10.0)
    assert gradient_penalty(steep, real, fake).item() == pytest.approx(40.0)
    terms = (model.losses["D_fake"] + model.losses["D_real"]).detach() / 2
    torch.manual_seed(0)
    assert model.compute_D_loss(model.batch["B"], model.results["fake_B"]).item() > terms.item()


# Policy -> the share of the initial rate in each of 4 + 4 epochs, and behind the last.
SCHEDULES = {
    "linear": [1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0],
    "step": [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01],  # every 3 epochs
    "cosine": [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)],  # 0 where training ends
}


@pytest.mark.parametrize("policy, first", [("linear", 1), ("linear", 4), ("step", 1), ("cosine", 4)])
def test_schedules(policy, first):
    line = f"--lr_policy {policy} --n_epochs 4 --n_epochs_decay 4 --lr 0.1 --epoch_count {first}"
    model, rates = model_of(line + " --lr_decay_iters 3" * (policy == "step")), []
    for _ in range(first, 10):
        rates.append(model.learning_rate / 0.1)
        model.update_learning_rate(1.0)
    assert rates == pytest.approx(SCHEDULES[policy][first - 1 :], abs=1e-9)


def test_the_plateau_schedule_waits_for_the_loss():
    model = model_of("--lr_policy plateau --lr 0.1")
    for mean_loss in [3.0, 2.0, *[2.0] * 5]:
        model.update_learning_rate(mean_loss)
    assert model.learning_rate == 0.1  # five epochs without progress are borne
    model.update_learning_rate(2.0)
    assert [settings(model, name)["lr"] for name in "GDF"] == pytest.approx([0.02] * 3)


@pytest.mark.parametrize("model_name", ["--model fastcut", "--QS_mode global --flip_equivariance"])
def test_a_mirrored_step_compares_mirrored_features(model_name):
    """Both branches: G sees the mirrored image in half of the steps; its features are mirrored back for NCE."""
    branches = set()
    for seed in range(8):
        torch.manual_seed(0)
        model = model_of(model_name)
        net, contrasted, real = copy.deepcopy(model.netG), contrasted_features(model), real_images(model)
        torch.manual_seed(seed)
        mirrored = bool(torch.rand(()) < 0.5)
        torch.manual_seed(seed)
        model.optimize_parameters()
        branches.add(mirrored)
        fake = net(real.flip(3) if mirrored else real)
        expected = [net.encode(images, model.opt.nce_layers) for images in (real, fake)]
        for source, target, was_source, was_target in zip(*expected, *contrasted, strict=True):
            torch.testing.assert_close(was_source, source)
            torch.testing.assert_close(was_target, target.flip(3) if mirrored else target)
    assert branches == {True, False}


def contrasted_features(model) -> tuple[list, list]:
    """Lists that a step fills with the features of sources and of translations that it contrasts."""
    model.set_input(images(model.opt))
    found, count = ([], []), len(model.opt.nce_layers)

    def keep(number, features):
        found[len(found[0]) == count].append(features.detach())
        return features

    model.prepare_features = keep
    return found


def real_images(model) -> torch.Tensor:
    return torch.cat([model.batch["A"], model.batch["B"]]) if model.contrast_B else model.batch["A"]


def test_running_statistics_of_a_batch_norm_see_each_pass_once():
    """The generating pass, then each domain's real images and translations (released: docs/options.md)."""
    model = stepped("--normG batch", steps=2)
    assert model.netG.model[2].num_batches_tracked == 2 * 5
    assert model.netG.model[-5].num_batches_tracked == 2  # the decoder takes part in generating alone


def test_sources_have_a_dropout_mask_of_their_own():
    """As in the released step: what is contrasted of the real images is not what the generating pass saw."""
    model = model_of("--no_dropout false --nce_layers 0,4,8,12,15")
    net, (sources, _), taps = copy.deepcopy(model.netG), contrasted_features(model), model.opt.nce_layers
    torch.manual_seed(3)
    model.optimize_parameters()
    torch.manual_seed(3)
    _, generating = net(real_images(model), taps)
    fresh = net.encode(real_images(model), taps)
    for found, expected, reused in zip(sources[3:], fresh[3:], generating[3:], strict=True):
        assert torch.equal(found, expected) and not torch.equal(found, reused)


@pytest.mark.parametrize("line", ["--normG batch", "--netG unet_128 --crop_size 128 --load_size 128"])
def test_a_tap_is_the_same_in_either_pass(line):
    """No later module changes a tap in place, and encoding stops at the last tap without changing it."""
    net = model_of(f"{line} --nce_layers 0,1").netG
    taps = range(len(net.tap_channels()))
    image = torch.rand(1, 3, 128, 128)
    _, features = net(image, taps)
    for tap in taps:
        assert torch.equal(net.encode(image, [tap])[0], features[tap])
        assert features[tap].shape[1] == net.tap_channels()[tap]
