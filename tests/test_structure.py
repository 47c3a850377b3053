"""DINO structure distance: the transformer beside DINO's own arithmetic, the distance beside loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from util.errors import UserError
from util.metrics import structure
from util.metrics.structure import DinoKeys, load_dino, prepare, structure_distance

LAYERS, HEADS, WIDTH = 2, 2, 8


def dinos_weights(layers: int = LAYERS, width: int = WIDTH) -> dict[str, torch.Tensor]:
    """Random weights under the names, and of the shapes, of DINO's official files with patches of 8."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 785, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 8, 8), "patch_embed.proj.bias": (width,)}
    sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in (f"blocks.{number}" for number in range(layers)):
        for name, size in sizes.items():
            shapes |= {f"{block}.{name}.weight": size, f"{block}.{name}.bias": size[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float32) / 2
        for name, shape in shapes.items()
    }


@pytest.fixture
def network() -> DinoKeys:
    keys = DinoKeys(LAYERS, HEADS, WIDTH).eval().requires_grad_(False)
    named = {structure.torchvision_name(name): value for name, value in dinos_weights().items()}
    keys.network.load_state_dict(named)
    return keys


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.byte().numpy())


def test_keys_are_those_of_dinos_last_layer(network, float64):
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
    torch.testing.assert_close(network.double()(images), expected)


def test_distance_by_definition(network):
    inputs, translations = [picture(40, 40)], [picture(40, 40, seed=1)]
    maps = []
    for image in inputs + translations:
        keys = network(prepare(image)[None])[0]
        length = keys.norm(dim=1)
        maps.append((keys @ keys.T) / (length[:, None] * length))
    expected = ((maps[0] - maps[1]) ** 2).sum().item() / 785**2
    assert structure_distance(inputs, translations, network) == [pytest.approx(expected, rel=1e-4)]
    assert expected > 1e-3


def test_no_distance_from_itself_and_batches_do_not_mix(network):
    inputs = [picture(40, 40, seed) for seed in range(3)]
    translations = [inputs[0], picture(20, 20, 5), picture(60, 40, 6)]
    apart = [structure_distance([a], [b], network)[0] for a, b in zip(inputs, translations, strict=True)]
    assert apart[0] == pytest.approx(0, abs=1e-9) and min(apart[1:]) > 1e-3
    assert structure_distance(inputs, translations, network, 2) == pytest.approx(apart, rel=1e-4, abs=1e-9)


def test_weights_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, "DinoKeys", lambda: DinoKeys(LAYERS, HEADS, WIDTH))
    path = tmp_path / "dino.pth"
    torch.save(dinos_weights(), path)
    keys, record = load_dino(path)
    assert record["weights"] == "dino.pth" and len(record["sha256"]) == 64
    assert not keys.training and not any(p.requires_grad for p in keys.parameters())
    torch.save(dinos_weights(layers=3), path)
    with pytest.raises(UserError, match="does not hold the weights of DINO's ViT-B/8"):
        load_dino(path)
