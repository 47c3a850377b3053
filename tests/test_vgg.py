"""VGG-16's features: the released numbers, torchvision's own network, and files that are not its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from golden import DATA

from models.vgg import VGG16_URL, VGG16Features, draw_weights, load_vgg16
from util.errors import UserError

NARROW = (4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 24, 24, 24, "M", 24, 24, 24)


@pytest.mark.parametrize("name", ["fsesim_step", "lsesim_step"])
def test_features_agree_with_the_released_code(name):
    network = VGG16Features(widths=NARROW).double()
    with np.load(DATA / "baselines" / f"{name}.npz") as arrays:
        weights = {key.removeprefix("vgg."): arrays[key] for key in arrays.files if key.startswith("vgg.")}
        image = torch.from_numpy(arrays["step1.A"]).double()
        expected = [torch.from_numpy(arrays[f"vggfeat{layer}_of_step1_A"]).double() for layer in (4, 7, 9)]
    network.load_state_dict({key: torch.from_numpy(value).double() for key, value in weights.items()})
    with torch.no_grad():
        found = network(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert network.channels == [16, 24, 24]


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's VGG-16 without its classifier, with seeded weights."""
    with torch.device("meta"):
        network = torchvision.models.vgg16(init_weights=False)
    network.classifier = torch.nn.Identity()
    network.to_empty(device="cpu")
    draw_weights(network)
    return network.eval()


@pytest.fixture
def weights_file(torchvisions, tmp_path):
    path = tmp_path / "vgg16.pth"
    torch.save(torchvisions.state_dict(), path)
    return path


@torch.no_grad()
def test_weights_of_torchvision_in_their_places(torchvisions, weights_file):
    """Every ReLU of torchvision's network, on a non-square image with torchvision's normalisation."""
    network = load_vgg16(weights_file, layers=range(13))
    image = torch.rand(1, 3, 32, 48)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x, expected = normalise(image), []
    for module in torchvisions.features:
        x = module(x)
        if isinstance(module, torch.nn.ReLU):
            expected.append(x.clone())
    torch.testing.assert_close(network(2 * image - 1), expected, rtol=1e-4, atol=1e-5)
    assert network.state_dict().keys() == torchvisions.state_dict().keys()


def test_weights_are_frozen_and_the_image_gets_a_gradient(weights_file):
    network = load_vgg16(weights_file, layers=(1,))
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    image = torch.zeros(1, 3, 8, 8, requires_grad=True)
    network(image)[0].sum().backward()
    assert image.grad.abs().sum() > 0


def test_random_weights_are_the_same_each_time():
    one, two = load_vgg16("random", layers=(0,)), load_vgg16("random", layers=(0,))
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    assert one.features[0].weight.std() == pytest.approx((2 / 27) ** 0.5, rel=0.1)


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        load_vgg16(path)
    assert VGG16_URL in str(error.value)
    return str(error.value)


def test_a_missing_file_is_named_with_the_address(tmp_path):
    assert "--vgg_weights: no file" in refusal(tmp_path / "nowhere.pth") and "--vgg_weights" in refusal(None)


class Trap:
    """Would end the process if it were unpickled."""

    def __reduce__(self):
        return exit, (1,)


OTHERS = torchvision.models.squeezenet1_1(weights=None).state_dict()


@pytest.mark.parametrize("content", [b"<html>", Trap(), {"epoch": 3}, OTHERS])
def test_what_is_not_its_weights_is_refused(content, tmp_path):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert str(path) in refusal(path)


def test_other_trainings_of_vgg16_are_refused(weights_file, tmp_path):
    """torchvision also has weights for unscaled BGR images, with a classifier of NaN."""
    state = torch.load(weights_file)
    torch.save(state | {"classifier.0.weight": torch.full((2, 2), torch.nan)}, weights_file)
    assert "not finite" in refusal(weights_file)
