"""Feature networks and their weights files: numbers as the libraries', files found, fetched and refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from util.errors import UserError
from util.metrics import networks
from util.metrics.networks import extract, load_classifier, load_inception
from util.metrics.published import Published


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory) -> Path:
    """A weights file of torchvision's squeezenet1_1, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


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
    network = load_inception(path)
    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *_, **__: dict(state))
    reference = library.InceptionV3().eval()

    images = pictures((40, 50), (40, 50))
    found, _ = extract(network, images)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    with torch.no_grad():
        expected = reference(pixels.permute(0, 3, 1, 2) / 255)[0].flatten(1)
    assert found.shape == (2, 2048)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert (network.label("frechet"), network.label("kernel")) == ("FID", "KID")
    clean = networks.clean(network)
    assert clean.label("frechet") == "FID-clean" and clean.module is network.module


def test_clean_resizing_by_loops() -> None:
    """Each channel by itself as floats, by Pillow's bicubic filter (a = -0.5), widened when it shrinks."""

    def weights(before: int) -> np.ndarray:
        scale = max(before / 299, 1)
        places = (np.arange(299)[:, None] + 0.5) * before / 299 - 0.5 - np.arange(before)  # (299, before)
        x = np.abs(places) / scale
        kernel = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * (x**3 - 5 * x**2 + 8 * x - 4))
        kernel = np.where(x < 2, kernel, 0)
        return kernel / kernel.sum(axis=1, keepdims=True)

    (image,) = pictures((350, 40))
    pixels = np.asarray(image).astype(float)  # (350, 40, 3)
    expected = np.einsum("yh,xw,hwc->cyx", weights(350), weights(40), pixels).clip(0, 255)
    np.testing.assert_allclose(networks.prepare_clean(image), (expected - 128) / 128, atol=1e-4)


def test_classifier_features_are_what_the_last_layer_sees(squeezenet) -> None:
    """For squeezenet1_1 the mean over space of its 512 feature maps, preprocessed as by torchvision."""
    network = load_classifier("squeezenet1_1", squeezenet)
    (image,) = pictures((70, 90))
    found, classes = extract(network, [image])
    model = torchvision.models.squeezenet1_1()
    model.load_state_dict(torch.load(squeezenet, weights_only=True))
    prepared = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()(image)[None]
    with torch.no_grad():
        expected, logits = model.features(prepared).mean(dim=(2, 3)), model.eval()(prepared)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert classes.tolist() == logits.argmax(1).tolist()
    assert (network.label("frechet"), network.label("kernel")) == ("FD-squeezenet1_1", "KD-squeezenet1_1")


def test_features_do_not_depend_on_the_batch_size(squeezenet) -> None:
    network = load_classifier("squeezenet1_1", squeezenet)
    images = pictures((40, 40), (30, 50), (64, 20))
    one, classes = extract(network, images, batch_size=1)
    several, same = extract(network, images, batch_size=2)
    np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-5)
    assert same.tolist() == classes.tolist()


def test_wrong_and_damaged_weights_are_named(squeezenet, tmp_path) -> None:
    """Damage that torch.load does not notice would give other numbers in silence."""
    with pytest.raises(UserError, match="not hold the weights of torchvision's resnet18. Fetch https://"):
        load_classifier("resnet18", squeezenet)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="damaged.pth: it is a web page"):
        load_classifier("squeezenet1_1", damaged)
    content = bytearray(squeezenet.read_bytes())
    content[len(content) // 2] ^= 16  # within the numbers of a tensor
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_classifier("squeezenet1_1", damaged)


# Files that are not given lie in torch's cache, or are fetched to there.


def test_weights_are_fetched_to_torchs_cache_and_found_there(server, tmp_path) -> None:
    folder, address = server
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    (folder / f"net-{digits}.pth").write_bytes(b"weights")
    published = Published("a network", "--net_weights", f"{address}/net-{digits}.pth")
    with pytest.raises(UserError, match=rf"--net_weights: no file .*net-{digits}.pth .*--download_weights"):
        published.find()
    path = published.find(download=True)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / f"net-{digits}.pth" == published.find()
    assert path.read_bytes() == b"weights"
    assert published.find(folder / f"net-{digits}.pth") != path


def test_what_cannot_be_fetched_is_said_in_one_line(server) -> None:
    """A file that is not there, one with another checksum, no network: nothing is left in the cache."""
    folder, address = server
    (folder / "net-01234567.pth").write_bytes(b"other weights")
    for url in (f"{address}/none.pth", f"{address}/net-01234567.pth", "http://127.0.0.1:9/net.pth"):
        published = Published("a network", "--net_weights", url)
        with pytest.raises(UserError, match="cannot fetch http://127.*put it at .*checkpoints") as error:
            published.find(download=True)
        assert "\n" not in str(error.value) and not published.cached.exists()
