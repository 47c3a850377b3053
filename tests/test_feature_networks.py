"""Networks of metrics and their weights files: numbers as the libraries', files found, fetched, refused."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from util.errors import UserError
from util.metrics import networks
from util.metrics.networks import DinoKeys, extract, load_classifier, load_dino, load_inception
from util.metrics.pairs import structure_distance
from util.weight_files import Published


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
    torch.save(state, tmp_path / "pt_inception.pth")
    network = load_inception(tmp_path / "pt_inception.pth")
    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *_, **__: dict(state))
    reference = library.InceptionV3().eval()

    images = pictures((40, 50), (40, 50))
    found, _ = extract(network, images)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    with torch.no_grad():
        expected = reference(pixels.permute(0, 3, 1, 2) / 255)[0].flatten(1)
    assert found.shape == (2, 2048) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert (network.label("frechet"), network.label("kernel")) == ("FID", "KID")
    clean = networks.clean(network)
    assert clean.label("frechet") == "FID-clean" and clean.module is network.module
    assert replace(network, name="inception_v3").label("kernel") == "KD-inception_v3"  # torchvision's


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
    """For squeezenet1_1 the mean over space of its 512 feature maps; the batch size changes nothing."""
    network = load_classifier("squeezenet1_1", squeezenet)
    images = pictures((70, 90), (40, 40), (64, 20))
    found, classes = extract(network, images, batch_size=2)
    model = torchvision.models.squeezenet1_1()
    model.load_state_dict(torch.load(squeezenet, weights_only=True))
    prepared = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()(images[0])[None]
    with torch.no_grad():
        expected, logits = model.features(prepared).mean(dim=(2, 3)), model.eval()(prepared)
    np.testing.assert_allclose(found[:1], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert classes[0] == logits.argmax()
    one, same = extract(network, images, batch_size=1)
    np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5)
    assert same.tolist() == classes.tolist() and network.label("kernel") == "KD-squeezenet1_1"


def test_wrong_and_damaged_weights_are_named(squeezenet, tmp_path) -> None:
    """Damage that torch.load does not notice would give other numbers in silence."""
    with pytest.raises(UserError, match="not hold the weights of torchvision's resnet18. Fetch https://"):
        load_classifier("resnet18", squeezenet)
    damaged = tmp_path / "damaged.pth"
    content = bytearray(squeezenet.read_bytes())
    content[len(content) // 2] ^= 16  # within the numbers of a tensor
    for data in (b"<html>404</html>", content):
        damaged.write_bytes(data)
        with pytest.raises(UserError, match=r"damaged.pth: it is .* is published at https://"):
            load_classifier("squeezenet1_1", damaged)


# Files that are not given lie in torch's cache, or are fetched to there.


def test_weights_are_fetched_to_torchs_cache_and_found_there(server, tmp_path) -> None:
    folder, address = server
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    (folder / f"net-{digits}.pth").write_bytes(b"weights")
    published = Published("a network", "--net_weights", f"{address}/net-{digits}.pth")
    with pytest.raises(UserError, match=rf"--net_weights: no file .*net-{digits}.pth .*--download_weights"):
        published.find(download=False)
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


# DINO's structure distance: the transformer beside DINO's own arithmetic

LAYERS, HEADS, WIDTH = 2, 2, 8


def dinos_weights(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """Random weights under the names, and of the shapes, of DINO's official files with patches of 8."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 785, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 8, 8), "patch_embed.proj.bias": (WIDTH,)}
    sizes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    sizes |= {
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
        "norm1": (WIDTH,),
        "norm2": (WIDTH,),
    }
    for block in range(layers):
        for name, size in sizes.items():
            shapes |= {f"blocks.{block}.{name}.weight": size, f"blocks.{block}.{name}.bias": size[:1]}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float32}
    return {name: torch.randn(shape, **draw) / 2 for name, shape in shapes.items()}


@pytest.fixture
def dino(tmp_path, monkeypatch) -> networks.FeatureNetwork:
    """A small transformer with `dinos_weights`, from a file."""
    monkeypatch.setattr(networks, "DinoKeys", lambda: DinoKeys(LAYERS, HEADS, WIDTH))
    path = tmp_path / "dino.pth"
    torch.save(dinos_weights(layers=3), path)
    with pytest.raises(UserError, match="does not hold the weights of DINO's ViT-B/8"):
        load_dino(path)
    torch.save(dinos_weights(), path)
    network = load_dino(path)
    record = network.record
    assert record["weights"] == "dino.pth" and len(record["sha256"]) == 64 and not network.module.training
    return network


def test_keys_are_those_of_dinos_last_layer(dino, float64) -> None:
    state = {name: value.double() for name, value in dinos_weights().items()}
    images = torch.randn(2, 3, 224, 224)
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 8)
    tokens = torch.cat([state["cls_token"].expand(2, -1, -1), patches.flatten(2).mT], 1) + state["pos_embed"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for block in (f"blocks.{number}" for number in range(LAYERS)):
        qkv = linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv").view(2, 785, 3, HEADS, -1)
        expected = qkv[:, :, 1].flatten(2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v  # (B, heads, T, D / heads)
        tokens = tokens + linear(mixed.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1"))
        tokens = tokens + linear(hidden, f"{block}.mlp.fc2")
    torch.testing.assert_close(dino.module.double()(images), expected)


def test_structure_distance_by_definition(dino) -> None:
    """0 from itself; pairs in one batch do not mix."""
    inputs = pictures((40, 40), (40, 40), (40, 40))
    translations = [inputs[0], *pictures((20, 20), (60, 40))]
    expected = []
    for pair in zip(inputs, translations, strict=True):
        keys = [dino.module(dino.prepare(image)[None])[0] for image in pair]
        lengths = [of.norm(dim=1) for of in keys]
        a, b = ((of @ of.T) / (length[:, None] * length) for of, length in zip(keys, lengths, strict=True))
        expected.append(((a - b) ** 2).sum().item() / 785**2)
    assert expected[0] == 0 and min(expected[1:]) > 1e-3
    found = structure_distance(inputs, translations, dino, batch_size=2)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)
