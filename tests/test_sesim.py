"""FSeSim and LSeSim: steps of the released code, the textbook step, what a step spares itself, views, refusals."""

from __future__ import annotations

import pytest
import torch
from golden import load_baseline, under
from textbook import assert_gradients_close, load_before, run_steps

from data.color_jitter import draw_jitter, jitter
from models import create_model, sesim_model
from models.spatial_correlation import correlation_loss, self_similarity
from models.textbook import textbook_step
from models.textbook.sesim import plain_similarity
from models.vgg import VGG16Features, draw_weights
from options.train_options import TrainOptions
from util import distributed
from util.errors import UserError

NARROW = (4, 8, 16, 24, 24)
FIXED, LEARNED = "", "--learned_attn --patch_size 3"
VARIANTS = [
    FIXED,
    LEARNED,
    "--patch_size 5 --loss_mode l1",
    "--use_norm --patch_nums 0 --attn_layers 1,4",
    f"{LEARNED} --augment false --use_norm",
    f"{LEARNED} --gan_mode wgangp",
]


@pytest.fixture(autouse=True)
def narrow_vgg(monkeypatch):
    """VGG-16 of a few channels, as the released numbers were made with."""

    def load(weights, layers, device):
        network = VGG16Features(layers, NARROW).requires_grad_(False)
        draw_weights(network)
        return network.to(device)

    monkeypatch.setattr(sesim_model, "load_vgg16", load)


def model_of(line: str = "", *more: str):
    torch.manual_seed(0)
    small = "--model sesim --vgg_weights random --gpu_ids -1 --ngf 4 --ndf 4 --patch_nums 24 --netG resnet_4blocks"
    return create_model(TrainOptions().parse([*small.split(), *line.split(), *more]))


def images(batch: int = 1, size: tuple[int, int] = (32, 48), seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(batch, 3, *size, generator=generator) * 2 - 1 for name in "AB"}


GOLDEN = {
    "fsesim_step": "--patch_nums 256 --patch_size 64",
    "lsesim_step": "--learned_attn --augment --patch_nums 20 --patch_size 6",
}


@pytest.mark.parametrize("kind", ["step", "textbook"])
@pytest.mark.parametrize("name", GOLDEN)
def test_two_steps_are_the_released_codes(float64, name, kind):
    """Every loss, image and gradient, and the translation after both updates."""
    golden = load_baseline(name)
    model = model_of(GOLDEN[name], *"--ngf 3 --netG resnet_9blocks --netD n_layers --n_layers_D 2".split())
    load_before(model, golden)
    model.vgg.load_state_dict(under(golden, "vgg."))
    views, updates = (("A", "B", "A_aug", "B_aug"), "FG") if model.augments else ("AB", "G")
    batches = [{view: golden[f"step{number}.{view}"] for view in views} for number in (1, 2)]
    locations = [
        [golden[f"step{number}.ids_{update}_layer{layer}"] for update in updates for layer in (4, 7, 9)]
        for number in (1, 2)
    ]
    step = model if kind == "step" else textbook_step(model)
    for number, (losses, gradients) in enumerate(run_steps(step, model, batches, locations), 1):
        expected = {loss: value.item() for loss, value in under(golden, f"step{number}.loss_").items()}
        assert losses == pytest.approx(expected, rel=1e-5)
        if number == 1:
            for key, expected in under(golden, "grad1.").items():
                largest = max(g.abs().max().item() for k, g in gradients.items() if k[0] == key[0])
                torch.testing.assert_close(gradients[key], expected, rtol=1e-5, atol=1e-6 * largest)
        if kind == "step":
            expected = golden[f"step{number}.fake_B"]
            torch.testing.assert_close(model.results["fake_B"], expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        translated = model.netG(golden["step1.A"])
    torch.testing.assert_close(translated, golden["final.fake_B_of_step1_A"], rtol=1e-5, atol=1e-6)
