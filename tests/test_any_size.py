"""Training steps of any size, number of patches, batch, window: finite losses, right shapes, nets moved."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import create_model
from options.train_options import TrainOptions

SIDES = st.integers(6, 10).map(lambda quarter: 4 * quarter)  # from 24, the least that the PatchGAN can judge


@pytest.mark.parametrize(
    "argv", ["--QS_mode global", "--QS_mode local", "--QS_mode local_global", "--model cut"]
)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_step_on_anything(argv, data):
    height, width, batch = data.draw(SIDES), data.draw(SIDES), data.draw(st.integers(1, 3))
    patches = data.draw(st.integers(1, 400))
    words = "--gpu_ids -1 --ngf 2 --ndf 2 --netF_nc 4 --netG resnet_4blocks --nce_layers 0,4,8,12,15"
    words += f" --num_patches {patches} {argv}"
    if "local" in argv:
        words += f" --qs_window {2 * data.draw(st.integers(0, 6)) + 1}"
    torch.manual_seed(0)
    model = create_model(TrainOptions().parse(words.split()))
    shapes = []
    model.netF.register_forward_pre_hook(lambda _, args: shapes.append((args[0], tuple(args[1].shape))))
    before = {name: [p.clone() for p in net.parameters()] for name, net in model.networks.items()}
    real = torch.rand(2, batch, 3, height, width) * 2 - 1
    model.set_input({"A": real[0], "B": real[1]})
    model.optimize_parameters()
    assert model.results["fake_B"].shape == real[0].shape
    assert all(math.isfinite(value) for value in model.get_current_losses().values())
    assert model.guard.failure() is None
    moved = {n for n, net in model.networks.items() if not all(map(torch.equal, net.parameters(), before[n]))}
    positions = [(height + 6) * (width + 6), height * width, height * width // 4, *[height * width // 16] * 2]
    channels = model.netG.tap_channels()
    for number, shape in shapes:
        layer = model.opt.nce_layers[number]
        assert shape == (batch * (1 + model.contrast_B), min(patches, positions[number]), channels[layer])
    # A single patch has no negatives, so F has no gradient.
    assert moved >= {"G", "D"} and ("F" in moved or patches == 1)
