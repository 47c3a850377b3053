"""ASGIT: the released steps in float64, and the textbook steps, supervised ones too."""

from __future__ import annotations

import pytest
import torch
from golden import load_baseline, under
from textbook import run_steps

from models import create_model
from models.attention_fusion import resize_map
from models.textbook import textbook_step
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


@pytest.mark.parametrize("kind", ["step", "textbook"])
@pytest.mark.parametrize("name", GOLDEN)
def test_the_released_steps(float64, name, kind):
    golden = load_baseline(name)
    model = model_of(GOLDEN[name])
    load_before(model, golden)
    step = model if kind == "step" else textbook_step(model)
    for number, (losses, gradients) in enumerate(run_steps(step, model, golden_batches(golden)), start=1):
        for loss, value in losses.items():
            assert value == pytest.approx(golden[f"step{number}.loss_{loss}"].item(), rel=1e-5), loss
        if number == 1:
            for key, expected in under(golden, "grad1.").items():
                close(gradients[key], expected, atol=1e-6 * expected.abs().max().item() + 1e-9)
        for image in ("fake_B", "fake_A") if kind == "step" else ():
            close(model.results[image], golden[f"step{number}.{image}"])
        for domain in "AB" if kind == "step" else ():
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


def batches(count=1, size=(32, 40), images=2, domains="AB"):
    """Pairs of a few images, which come again, as whole images."""
    generator = torch.Generator().manual_seed(3)
    pixels = {domain: torch.rand(images, 3, *size, generator=generator) * 2 - 1 for domain in domains}
    for step in range(3):
        chosen = [(step * count + place) % images for place in range(count)]
        yield {
            **{domain: pixels[domain][chosen] for domain in domains},
            **{f"{domain}_paths": [f"{domain}/{number}.png" for number in chosen] for domain in domains},
        }


def assert_textbook_agrees(words, **settings):
    """Each of three steps from the same weights; every memory is its own side's."""
    model, plain = model_of(words), model_of(words)
    textbook = textbook_step(plain)
    for number, batch in enumerate(batches(**settings)):
        for one in (model, plain):
            one.set_input(batch)
            torch.manual_seed(number)
            (one if one is model else textbook).optimize_parameters()
        assert model.get_current_losses() == pytest.approx(textbook.get_current_losses(), rel=1e-6)
        for name, net in plain.networks.items():
            for key, found in model.networks[name].state_dict().items():
                # The step takes maps without running the head, whose running statistics no map depends on.
                head = any(part in key for part in ("model_p2", "fin_phase", "trunk"))
                if not (key.endswith("num_batches_tracked") or ("running" in key and head)):
                    close(
                        found, net.state_dict()[key], atol=1e-4
                    )  # Adam amplifies rounding of zero gradients
            net.load_state_dict(model.networks[name].state_dict())
    return model


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "words",
    [
        V1,
        V2,
        f"{V1} --attention_stage F2 --use_rec --rec_coef 0.7",
        f"{V1} --attention_fusion alpha --lambda_identity 0.5 --pool_size 0",
        f"{V1} --attention_fusion mult --attention_stage F4 --netD trainable_attn --use_rec",
        f"{V2} --attention_fusion rmult --attention_stage F3 --lambda_identity 0.5",
        f"{V2} --netD posthoc_attn --gan_mode wgangp --normG batch --normD batch",
        f"{TINY} --attention_fusion none --netD basic --lambda_identity 0.5 --use_rec",
    ],
)
def test_the_step_agrees_with_the_textbook_step(float64, words, count):
    model = assert_textbook_agrees(words, count=count)
    assert model.opt.attention_source == "discriminator" or "none" in words or len(model.memory["A"]) == 2


SUPERVISED = (
    "--model asgit_supervised --gpu_ids -1 --ngf 2 --ndf 4 --crop_size 128 --load_size 128 --no_dropout"
)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--attention_fusion alpha --netD trainable_attn",
        "--attention_fusion none --netD basic --gan_mode wgangp --normG none --normD instance --pool_size 3",
        "--netG resnet_4blocks --attention_stage F2 --normG instance --normD instance",
    ],
)
def test_the_supervised_step_agrees_with_the_textbook_step(float64, more):
    assert_textbook_agrees(f"{SUPERVISED} {more}", count=2, size=(128, 128))
