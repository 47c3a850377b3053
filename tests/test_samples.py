"""The images that a training shows in every epoch: the same ones, and nothing of the training changes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from trained_run import TINY, draw

from models import MODELS, create_model
from models.samples import Samples
from options.train_options import TrainOptions

WORDS = {
    "pix2pix": "--dataset_mode unaligned",
    "sesim": "--vgg_weights random --patch_nums 4 --patch_size 8",
    "qs_multi": "--nce_layers 4,8,12",
    "cut_multi": "--nce_layers 4,8,12",
    "munit": "--mlp_dim 8 --load_size 64 --crop_size 64",
    "stargan": "--load_size 64 --crop_size 64",
    "qs": "--normG batch --no_dropout false",
    "asgit_supervised": "--dataset_mode unaligned --load_size 140 --crop_size 128",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for folder, count in {"trainA": 2, "trainB": 2, "testA": 5, "testB": 2}.items():
        for number in range(count):
            draw(root / folder / f"{number}.png", size=(36, 34), seed=number)
    return root


def state_of(value) -> list:
    """Every tensor and number within, in order."""
    if isinstance(value, dict):
        return [part for name in value for part in state_of(value[name])]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in state_of(item)]
    return [value.clone() if isinstance(value, torch.Tensor) else value]


@pytest.mark.parametrize("name", MODELS)
def test_samples_change_nothing_of_a_training(name, data):
    words = [*TINY, "--dataroot", str(data), "--model", name, *WORDS.get(name, "").split()]
    if name in ("munit", "stargan"):
        del words[words.index("--netG") : words.index("--netG") + 2]
    opt = TrainOptions().parse(words)
    model = create_model(opt)
    model.expect_images({domain: [f"{data}/train{domain}/0.png"] for domain in "AB"})
    before = state_of(model.training_state())
    modes = [module.training for net in model.networks.values() for module in net.modules()]
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    samples = Samples(opt, model)
    first = samples.pictures()
    assert len(samples.images) == 4 and first["samples"].shape == first["sample_inputs"].shape
    assert (first["samples"] == samples.pictures()["samples"]).all()
    for one, other in zip(before, state_of(model.training_state()), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert modes == [module.training for net in model.networks.values() for module in net.modules()]
    assert numbers == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_without_test_images_those_of_the_training_are_shown(data, tmp_path):
    for number in range(2):
        draw(tmp_path / "trainA" / f"{number}.png", size=(36, 34))
        draw(tmp_path / "trainB" / f"{number}.png")
    opt = TrainOptions().parse([*TINY, "--dataroot", str(tmp_path)])
    assert len(Samples(opt, create_model(opt)).images) == 2
