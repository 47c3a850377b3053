"""VGG-16's features: torchvision's own network and weights, and files that are not its weights."""

import pytest
import torch
import torchvision

from models.layers import initialise
from models.sesim_model import VGG16_URL, load_vgg16
from util.errors import UserError


@pytest.fixture(scope="module")
def torchvisions():
    """The convolutions of torchvision's VGG-16, with drawn weights."""
    with torch.device("meta"):
        network = torchvision.models.vgg16(init_weights=False)
    del network.classifier
    return initialise(network.to_empty(device="cpu"), "kaiming")


@pytest.fixture
def weights_file(torchvisions, tmp_path):
    path = tmp_path / "vgg16.pth"
    torch.save(torchvisions.state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


@torch.no_grad()
def test_features_are_those_of_torchvision(torchvisions, weights_file):
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
    assert network.channels == [features.shape[1] for features in expected]


NAN = {"classifier.0.weight": torch.full((2,), torch.nan)}  # torchvision has such weights too, of BGR images
OTHERS = torchvision.models.squeezenet1_1(weights=None).state_dict()


@pytest.mark.parametrize("content", [None, b"<html>", exit, {"epoch": 3}, OTHERS, NAN])
def test_what_is_not_its_weights_is_refused(content, weights_file):
    if content is None:
        weights_file.unlink()
    elif isinstance(content, bytes):
        weights_file.write_bytes(content)
    else:
        torch.save(torch.load(weights_file) | NAN if content is NAN else content, weights_file)
    with pytest.raises(UserError) as error:
        load_vgg16(weights_file)
    assert VGG16_URL in str(error.value) and str(weights_file) in str(error.value)
