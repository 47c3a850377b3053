"""Weights files of feature networks: FID's Inception as in pytorch-fid, and files that are refused."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from util.errors import UserError
from util.metrics import features


def test_inception_is_that_of_pytorch_fid(tmp_path, monkeypatch) -> None:
    """The same 2048 numbers as the library's own class, with random weights in the layout of its file."""
    library = pytest.importorskip("pytorch_fid.inception")
    torch.manual_seed(0)
    bare = {"weights": None, "aux_logits": False, "init_weights": False}
    state = torchvision.models.inception_v3(**bare, num_classes=1008).state_dict()
    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    for value in state.values():
        if value.dim() == 4:  # torch's own first weights would leave features of 1e-8
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
    path = tmp_path / "pt_inception.pth"
    torch.save(state, path)
    network = features.load_inception(path)
    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *_, **__: dict(state))
    reference = library.InceptionV3().eval()

    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    found, _ = features.extract(network, [Image.fromarray(image) for image in pixels])
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)[0].flatten(1)
    assert found.shape == (2, 2048)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert (network.frechet_label, network.kernel_label) == ("FID", "KID")

    with pytest.raises(UserError, match=r"inception_v3, but of an Inception v3 network with 1008 classes"):
        features.load_classifier("inception_v3", path)


def test_inception_refuses_other_weights_and_needs_its_package(tmp_path, monkeypatch) -> None:
    pytest.importorskip("pytorch_fid.inception")
    squeezenet = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), squeezenet)
    with pytest.raises(
        UserError, match=r"FID Inception network, but of a SqueezeNet with 1000 classes: 0 of"
    ):
        features.load_inception(squeezenet)
    monkeypatch.setitem(sys.modules, "pytorch_fid", None)
    with pytest.raises(UserError, match="pip install pytorch-fid"):
        features.load_inception(squeezenet)


def test_missing_weights_say_what_to_fetch(tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"no file .*none.pth .* Fetch https://github.com/mseitzer/pytorch-fid"
    ):
        features.load_inception(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"--classifier_weights: not given.*Fetch https://.*/resnet18-"):
        features.load_classifier("resnet18", None)
    with pytest.raises(UserError, match="not a torchvision classifier; there are alexnet"):
        features.load_classifier("inception_v9", tmp_path / "none.pth")


def test_wrong_weights_are_named(tmp_path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"torchvision's squeezenet1_1, but of a ResNet with 7 classes"):
        features.load_classifier("squeezenet1_1", tmp_path / "resnet.pth")
    with pytest.raises(
        UserError, match=r"torchvision's resnet50, but of a ResNet .*: \d+ of the \d+ tensors fit"
    ):
        features.load_classifier("resnet50", tmp_path / "resnet.pth")
    torch.save({"model.12.conv_block.1.weight": torch.zeros(1)}, tmp_path / "latest_net_G.pth")
    with pytest.raises(UserError, match="a generator of this project"):
        features.load_classifier("squeezenet1_1", tmp_path / "latest_net_G.pth")


def test_files_that_hold_no_state_dict_are_refused(tmp_path) -> None:
    """Among them a pickle that could run code, which weights_only prevents."""
    (tmp_path / "page.pth").write_bytes(b"<html>404</html>")
    (tmp_path / "empty.pth").touch()
    torch.save(types.SimpleNamespace(a=1), tmp_path / "object.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    for name in ("page", "empty", "object", "other"):
        with pytest.raises(UserError, match=rf"{name}.pth (is not|does not hold) a state dict"):
            features.load_classifier("squeezenet1_1", tmp_path / f"{name}.pth")
