"""DINO structure distance: the transformer beside torch's own layers, the distance beside loops."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import nn

from util.errors import UserError
from util.metrics import dino
from util.metrics.dino import DINO_URL, DinoNetwork, VisionTransformer, load_dino
from util.metrics.structure import key_similarity, prepare, structure_distance

SMALL = {"width": 16, "depth": 3, "heads": 4, "patch": 8, "side": 32}


def small_transformer(seed: int = 0, **sizes) -> VisionTransformer:
    """A transformer with random weights, biases and norms included."""
    network = VisionTransformer(**SMALL | sizes).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.normal_(0, 0.5, generator=generator)
    return network


@pytest.fixture
def network():
    return DinoNetwork(small_transformer(side=224), record={})


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.byte().numpy())


def torchs_layers(network: VisionTransformer) -> list[nn.TransformerEncoderLayer]:
    """The same layers as modules of torch, from the state dict's names alone."""
    state, layers = network.state_dict(), []
    for number in range(len(network.blocks)):
        layer = nn.TransformerEncoderLayer(
            16, 4, 64, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        ).eval()
        ours = {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
            "norm1.": "norm1.",
            "norm2.": "norm2.",
        }
        layer.load_state_dict(
            {
                theirs + kind: state[f"blocks.{number}.{name}{kind}"]
                for theirs, name in ours.items()
                for kind in ("weight", "bias")
            }
        )
        layers.append(layer)
    return layers


def tokens_by_definition(network: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Class token and patches, each patch by itself, with the position embedding at its own size."""
    state, p = network.state_dict(), network.patch
    weight, bias = state["patch_embed.proj.weight"].flatten(1), state["patch_embed.proj.bias"]
    tokens = []
    for image in images:
        rows = [state["cls_token"][0, 0]]
        for top in range(0, image.shape[1] - p + 1, p):
            for left in range(0, image.shape[2] - p + 1, p):
                rows.append(weight @ image[:, top : top + p, left : left + p].flatten() + bias)
        tokens.append(torch.stack(rows) + state["pos_embed"][0])
    return torch.stack(tokens)


@torch.no_grad()
def test_tokens_agree_with_torchs_layers():
    network = small_transformer()
    images = torch.randn(2, 3, 32, 32)
    tokens = tokens_by_definition(network, images)
    for layer in torchs_layers(network):
        tokens = layer(tokens)
    expected = nn.functional.layer_norm(tokens, (16,), network.norm.weight, network.norm.bias, 1e-6)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_keys_are_those_of_the_last_layer():
    network = small_transformer()
    images = torch.randn(2, 3, 32, 32)
    tokens = tokens_by_definition(network, images)
    *before, last = torchs_layers(network)
    for layer in before:
        tokens = layer(tokens)
    middle = slice(16, 32)  # queries, keys, values
    weight, bias = last.self_attn.in_proj_weight[middle], last.self_attn.in_proj_bias[middle]
    expected = last.norm1(tokens) @ weight.T + bias
    torch.testing.assert_close(network.keys(images), expected, rtol=1e-4, atol=1e-4)


def cubic(x: float) -> float:
    """The bicubic kernel (a = -0.75)."""
    a, x = -0.75, abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def cubic_weights(before: int, after: int) -> torch.Tensor:
    """(after, before): resizes `before` numbers to `after`, at DINO's scale (after + 0.1) / before."""
    weights = torch.zeros(after, before)
    for i in range(after):
        place = (i + 0.5) * before / (after + 0.1) - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(j, 0), before - 1)] += cubic(place - j)
    return weights


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(3, 7), (6, 4), (5, 5), (4, 5)])
def test_other_sizes_interpolate_the_position_embedding(height, width):
    """Bicubic along rows and columns; the class token keeps its own; left-over pixels do not count."""
    network = small_transformer()
    images = torch.randn(1, 3, height * 8 + 5, width * 8 + 3)
    own, grid = network.pos_embed[:, :1], network.pos_embed[0, 1:].view(4, 4, 16)
    grid = torch.einsum("ya,xb,abd->yxd", cubic_weights(4, height), cubic_weights(4, width), grid)
    resized = small_transformer()
    resized.pos_embed = nn.Parameter(torch.cat([own, grid.flatten(0, 1)[None]], 1), requires_grad=False)
    tokens = tokens_by_definition(resized, images)
    for layer in torchs_layers(network):
        tokens = layer(tokens)
    torch.testing.assert_close(network(images), network.norm(tokens), rtol=1e-4, atol=1e-4)


def test_similarity_of_keys_by_definition():
    keys = torch.randn(2, 5, 7)
    found = key_similarity(keys)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                cosine = torch.cosine_similarity(keys[b, i], keys[b, j], dim=0)
                torch.testing.assert_close(found[b, i, j], cosine)


def test_preparation():
    """Shorter side 224, longer in proportion, rounded down; channels normalised by ImageNet's numbers."""
    assert prepare(picture(256, 256)).shape == (3, 224, 224)
    assert prepare(picture(100, 71)).shape == (3, 224, 315)
    assert prepare(picture(300, 500)).shape == (3, 373, 224)
    grey = prepare(Image.new("RGB", (10, 10), (51, 102, 204)))
    for channel, (value, mean, std) in enumerate(
        [(0.2, 0.485, 0.229), (0.4, 0.456, 0.224), (0.8, 0.406, 0.225)]
    ):
        torch.testing.assert_close(grey[channel], torch.full((224, 224), (value - mean) / std))


@torch.no_grad()
def test_distance_by_definition(network):
    inputs, translations = [picture(40, 40)], [picture(40, 40, seed=1)]
    maps = []
    for image in inputs + translations:
        keys = network.module.keys(prepare(image)[None])[0]
        length = keys.norm(dim=1)
        maps.append((keys @ keys.T) / (length[:, None] * length))
    tokens = 28 * 28 + 1
    expected = ((maps[0] - maps[1]) ** 2).sum().item() / tokens**2
    assert structure_distance(inputs, translations, network) == [pytest.approx(expected, rel=1e-4)]
    assert expected > 1e-3


def test_no_distance_from_itself_and_batches_do_not_mix(network):
    """Five pairs of three shapes in order, at several batch sizes."""
    inputs = [
        picture(40, 40, 0),
        picture(40, 40, 1),
        picture(40, 40, 2),
        picture(40, 60, 3),
        picture(60, 40, 4),
    ]
    translations = [inputs[0], picture(20, 20, 5), picture(40, 40, 6), picture(20, 30, 7), inputs[4]]
    apart = [structure_distance([a], [b], network)[0] for a, b in zip(inputs, translations, strict=True)]
    assert apart[0] == apart[4] == pytest.approx(0, abs=1e-9) and min(apart[1:4]) > 1e-3
    for batch_size in (1, 2, 4):
        assert structure_distance(inputs, translations, network, batch_size) == pytest.approx(
            apart, rel=1e-4, abs=1e-9
        )


def test_pairs_that_do_not_fit_are_refused(network):
    square, wide = picture(40, 40), picture(60, 40)
    with pytest.raises(UserError, match="input 2 is 40 x 40 and its translation 60 x 40 pixels"):
        structure_distance([square] * 2, [square, wide], network)
    with pytest.raises(UserError, match=r"more inputs than translations \(1\)"):
        structure_distance([square] * 2, [square], network)
    with pytest.raises(UserError, match=r"more translations than inputs \(0\)"):
        structure_distance([], [square], network)


def test_damaged_weights_are_reported(network):
    network.module.patch_embed.proj.bias[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        structure_distance([picture(20, 20)], [picture(20, 20)], network)


@pytest.fixture
def small_official(monkeypatch):
    """As if the official network had the small sizes."""
    monkeypatch.setattr(dino, "VisionTransformer", lambda: VisionTransformer(**SMALL))


def test_weights_from_a_file(small_official, tmp_path):
    theirs = small_transformer(seed=3)
    path = tmp_path / "dino.pth"
    torch.save(theirs.state_dict(), path)
    network = load_dino(path)
    images = torch.randn(1, 3, 32, 40)
    torch.testing.assert_close(network.module.keys(images), theirs.keys(images))
    assert network.record["weights"] == "dino.pth" and len(network.record["sha256"]) == 64
    assert not network.module.training and not any(p.requires_grad for p in network.module.parameters())


def test_state_dict_of_the_official_network():
    """Names and sizes as in the published file: 150 tensors, 85,807,872 numbers."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in VisionTransformer().state_dict().items()}
    assert len(shapes) == 150 and sum(map(math.prod, shapes.values())) == 85_807_872
    block = {
        "norm1": (768,),
        "attn.qkv": (2304, 768),
        "attn.proj": (768, 768),
        "norm2": (768,),
        "mlp.fc1": (3072, 768),
        "mlp.fc2": (768, 3072),
    }
    expected = {"cls_token": (1, 1, 768), "pos_embed": (1, 785, 768)}
    weights = {"patch_embed.proj": (768, 3, 8, 8), "norm": (768,)}
    weights |= {f"blocks.{number}.{name}": shape for number in range(12) for name, shape in block.items()}
    for name, shape in weights.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        load_dino(path)
    assert DINO_URL in str(error.value)
    return str(error.value)


def test_missing_and_foreign_files_are_refused_with_the_address(tmp_path):
    assert "--dino_weights: not given" in refusal(None)
    assert "no file" in refusal(tmp_path / "nowhere.pth")
    path = tmp_path / "file.pth"
    path.write_bytes(b"<html>")
    assert "not a state dict" in refusal(path)
    torch.save({"student": {}, "epoch": 3}, path)
    assert "state dict of tensors" in refusal(path)
    torch.save(small_transformer().state_dict(), path)
    message = refusal(path)
    assert (
        "width 16, depth 3, patches of 8 x 8" in message
        and "width 768, depth 12, patches of 8 x 8" in message
    )
    torch.save({"features.3.squeeze.weight": torch.zeros(1), "x.bias": torch.zeros(2)}, path)
    assert "a SqueezeNet with 2 classes" in refusal(path)


def test_a_transformer_with_missing_tensors_is_refused(small_official, tmp_path):
    state = small_transformer().state_dict()
    del state["blocks.1.mlp.fc1.bias"]
    torch.save(state, tmp_path / "file.pth")
    assert "of the 42 tensors fit" in refusal(tmp_path / "file.pth")
