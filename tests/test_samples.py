"""The images that a training shows in every epoch: the same ones, and nothing of the training changes."""

import io
import random

import numpy as np
import pytest
import torch
from trained_run import SMALL, draw_set

from models import create_model
from models.samples import Samples
from options.train_options import TrainOptions

MODELS = {
    "qs": "--normG batch --no_dropout false --netG resnet_4blocks",
    "munit": "--mlp_dim 8 --load_size 64 --crop_size 64",  # with a style
    "stargan": "--load_size 64 --crop_size 64",  # with domains
    "asgit_supervised": "--dataset_mode unaligned --load_size 140 --crop_size 128 --netG resnet_4blocks",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_set(tmp_path_factory.mktemp("set"), (36, 34), trainA=2, trainB=2, testA=5, testB=2)


def everything(model) -> list:
    """The state of a training, of its modules and of random numbers."""
    state = io.BytesIO()
    torch.save(model.training_state(), state)
    modes = [module.training for net in model.networks.values() for module in net.modules()]
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return [state.getvalue(), modes, numbers]


@pytest.mark.parametrize("name", MODELS)
def test_samples_change_nothing_of_a_training(name, data):
    opt = TrainOptions().parse([*SMALL, "--dataroot", str(data), "--model", name, *MODELS[name].split()])
    model = create_model(opt)
    model.expect_images({domain: [f"{data}/train{domain}/{domain}0.png"] for domain in "AB"})
    before = everything(model)
    samples = Samples(opt, model)
    first = samples.pictures()
    assert len(samples.inputs) == 4 and first["samples"].shape == first["sample_inputs"].shape
    assert (first["samples"] == samples.pictures()["samples"]).all()
    assert before == everything(model)
