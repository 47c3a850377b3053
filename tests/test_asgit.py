"""ASGIT: the released steps in float64."""

from __future__ import annotations

import pytest
import torch
from golden import load_baseline, under
from textbook import run_steps

from models import create_model
from models.attention.fusion import resize_map
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
