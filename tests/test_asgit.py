"""ASGIT: the released steps in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from golden import load_baseline, under
from textbook import run_steps

from models import create_model
from models.attention.fusion import FUSIONS, resize_map
from options.train_options import TrainOptions

TINY = "--model asgit --gpu_ids -1 --ngf 4 --ndf 4 --netG resnet_6blocks"
V1, V2 = TINY, f"{TINY} --netD trainable_attn --attention_fusion alpha --attention_source discriminator"
GOLDEN = {"asgit_step_v1": V1, "asgit_step_v2": V2}


def model_of(words=TINY):
    torch.manual_seed(0)
    return create_model(TrainOptions().parse(words.split()))


def close(found, expected, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(found.detach(), expected, rtol=rtol, atol=atol)


def load_before(model, golden):
    """The weights that the golden steps began with; the file lacks the unused counts of batches."""
    for name, net in model.networks.items():
        missing, unexpected = net.load_state_dict(under(golden, f"before.{name}."), strict=False)
        assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)


def golden_batches(golden):
    """The batches of the golden steps, with the paths of the images."""
    for a, b in golden["order"].tolist():
        images = {"A": golden["images_A"][a : a + 1], "B": golden["images_B"][b : b + 1]}
        yield {**images, "A_paths": [f"A/{a}.png"], "B_paths": [f"B/{b}.png"]}


def sized(maps):
    return resize_map(maps, (32, 32))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_released_steps(float64, name):
    golden = load_baseline(name)
    model = model_of(GOLDEN[name])
    load_before(model, golden)
    for number, (losses, gradients) in enumerate(run_steps(model, model, golden_batches(golden)), start=1):
        for loss, value in losses.items():
            assert value == pytest.approx(golden[f"step{number}.loss_{loss}"].item(), rel=1e-5), loss
        if number == 1:
            for key, expected in under(golden, "grad1.").items():
                close(gradients[key], expected, atol=1e-6 * expected.abs().max().item() + 1e-9)
        for image in ("fake_B", "fake_A"):
            close(model.results[image], golden[f"step{number}.{image}"])
        for domain in "AB":
            close(sized(model.results[f"attn_{domain}"]), golden[f"step{number}.attn_{domain}_used"])
            if model.memory:
                close(sized(model.results[f"next_{domain}"]), golden[f"step{number}.attn_{domain}_stored"])
    assert number == len(golden["order"])
    for key, expected in under(golden, "after.").items():  # running statistics
        net, _, key = key.partition(".")
        close(model.networks[net].state_dict()[key], expected)
    *_, last = golden_batches(golden)
    fake_B = model.translator()(last["A"])
    close(fake_B, golden["test.fake_B"])
    if "test.attn_A_used" in golden:
        close(sized(model.translator().attention(last["A"])), golden["test.attn_A_used"])
    back = model.look("B", fake_B)
    close(model.networks["G_B"](fake_B, back), golden["test.rec_A"])


def test_discriminators_see_reconstructions_with_use_rec(float64):
    """As fakes, with weight 0.5 beside the halved terms; images are as without."""
    golden = load_baseline("asgit_step_v1")
    batch = next(golden_batches(golden))
    losses = {}
    for words in ("", "--use_rec"):
        model = model_of(f"{V1} {words}")
        netD = copy.deepcopy(model.networks["D_A"])
        model.set_input(batch)
        model.optimize_parameters()
        losses[words] = model.losses["D_A"]
    seen = netD(model.results["rec_B"]).square().mean()
    close(losses["--use_rec"], losses[""] + 0.5 * seen.detach())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_identities_and_reconstructions_have_no_map_from_a_memory(float64, fusion):
    golden = load_baseline("asgit_step_v1")
    model = model_of(f"{V1} --attention_fusion {fusion} --lambda_identity 0.5")
    G_A, G_B = (copy.deepcopy(model.networks[name]) for name in ("G_A", "G_B"))
    batch = next(golden_batches(golden))
    model.set_input(batch)
    model.optimize_parameters()
    with torch.no_grad():
        close(model.results["fake_B"], G_A(batch["A"], torch.ones(1, 1, 1, 1)))
        close(model.results["rec_A"], G_B(model.results["fake_B"]))
        close(model.results["idt_A"], G_A(batch["B"]))


def test_the_supervised_step(float64):
    """Of the second visit of an image, straight from the definition, with the map of the first one."""
    words = (
        "--model asgit_supervised --gpu_ids -1 --ngf 2 --ndf 4 --crop_size 128 --load_size 128 --no_dropout"
    )
    model = model_of(words)
    images = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    a, b = images
    for _ in range(2):
        model.set_input({"A": a, "B": b, "A_paths": ["a.png"], "B_paths": ["b.png"]})
        netG, netD = (copy.deepcopy(model.networks[name]) for name in "GD")
        maps = model.batch["A_attention"]
        model.optimize_parameters()
    assert 0 <= maps.min() < maps.max() <= 1
    fake = netG(a, maps).detach()
    scores = [netD(torch.cat([a, of], 1)) for of in (fake, b)]
    close(model.results["fake_B"], fake)
    close(model.losses["D_fake"], F.softplus(scores[0]).mean().detach())
    close(model.losses["D_real"], F.softplus(-scores[1]).mean().detach())
    close(model.losses["G_L1"], 100 * (fake - b).abs().mean())
    close(model.losses["G"], model.losses["G_GAN"] + model.losses["G_L1"])
