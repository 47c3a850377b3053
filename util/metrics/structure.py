"""DINO structure distance: how much a translation changes the layout of its input.

As published by Splice (Tumanyan et al., CVPR 2022, sec. 3) and reported for unpaired translation by
img2img-turbo (Parmar et al., 2024): with k_1 ... k_T the keys of the last attention layer of DINO's ViT-B/8
(Caron et al., ICCV 2021), all heads side by side, the class token among them,

    S_ij = cos(k_i, k_j)        distance = mean_ij (S_ij(input) - S_ij(translation))^2

Preprocessing, the same for both: RGB, 224 x 224 bilinear with antialiasing as Pillow does, [0, 1],
ImageNet's mean and standard deviation. 0 is equal structure; img2img-turbo's tables print 100 times the mean
over images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import VisionTransformer

from util.errors import UserError
from util.metrics.networks import exact_convolutions
from util.metrics.published import Published

DINO = Published(
    "DINO's ViT-B/8",
    "--dino_weights",
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
)
SIDE = 224  # pixels, of the images that DINO's position embedding belongs to

# DINO's names of parameters, and those of torchvision's vision transformer.
NAMES = [
    ("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"), ("patch_embed.proj", "conv_proj"),
    ("blocks.", "encoder.layers.encoder_layer_"), ("norm1.", "ln_1."), ("norm2.", "ln_2."),
    ("attn.qkv.", "self_attention.in_proj_"), ("attn.proj.", "self_attention.out_proj."),
    ("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.3."),
]  # fmt: skip

prepare = transforms.Compose(
    [
        transforms.Resize((SIDE, SIDE), transforms.InterpolationMode.BILINEAR, antialias=True),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class DinoKeys(nn.Module):
    """A vision transformer with patches of 8 pixels: images (B, 3, 224, 224) -> keys (B, 1 + 28 * 28, D)."""

    def __init__(self, layers: int = 12, heads: int = 12, width: int = 768) -> None:
        super().__init__()
        self.network = VisionTransformer(SIDE, 8, layers, heads, width, 4 * width)
        self.network.heads = nn.Identity()  # DINO has no classes
        self.last = self.network.encoder.layers[-1]
        self.last.ln_1.register_forward_hook(lambda _, inputs, output: setattr(self, "seen", output))

    def forward(self, images: Tensor) -> Tensor:
        self.network(images)
        (_, weight, _), (_, bias, _) = (
            values.chunk(3)  # of queries, keys, values
            for values in (self.last.self_attention.in_proj_weight, self.last.self_attention.in_proj_bias)
        )
        return F.linear(self.seen, weight, bias)


def load_dino(path: str | Path, device: torch.device | str = "cpu") -> tuple[DinoKeys, dict[str, str]]:
    """DINO's ViT-B/8 from its official file, ready for use, and what a receipt says of it."""
    keys = DinoKeys()
    state = {torchvision_name(name): value for name, value in DINO.read(Path(path)).items()}
    record = DINO.fill(keys.network, Path(path), state)
    return keys.eval().requires_grad_(False).to(device), record


def torchvision_name(name: str) -> str:
    """The name that torchvision's vision transformer gives to a parameter of DINO's."""
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    return f"encoder.ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


@torch.inference_mode()
def structure_distance(
    inputs: Iterable[Image.Image],
    translations: Iterable[Image.Image],
    network: nn.Module,
    batch_size: int = 4,
) -> list[float]:
    """The distance of each input from its translation, RGB images in the same order; each in [0, 4].

    Computed in float32 without TF32, each pair apart from the others: `batch_size` (pairs) moves only the
    rounding.
    """
    device = next(network.parameters()).device
    distances: list[float] = []
    pairs = zip(inputs, translations, strict=True)
    with exact_convolutions():
        while batch := [prepare(image) for pair in islice(pairs, batch_size) for image in pair]:
            keys = network(torch.stack(batch).to(device))  # (2 n, T, D)
            maps = key_similarity(keys).unflatten(0, (-1, 2))  # (n, 2, T, T)
            distances += (maps[:, 0] - maps[:, 1]).square().mean((1, 2)).tolist()
    return distances


def key_similarity(keys: Tensor) -> Tensor:
    """Cosine similarity of all pairs of keys (B, T, D): (B, T, T)."""
    keys = F.normalize(keys, dim=-1)
    return keys @ keys.transpose(1, 2)


def check_pairs(inputs: Sequence[Path], translations: Sequence[Path]) -> None:
    """UserError unless the files, each in its order, belong together by name; endings may differ."""
    sides = [[path.stem for path in paths] for paths in (inputs, translations)]
    if sides[0] != sides[1]:
        lone = sorted(set(sides[0]) ^ set(sides[1]))
        raise UserError(
            f"each translation needs the input of its name, but of {inputs[0].parent} and "
            f"{translations[0].parent} only one has {lone[0] if lone else 'some names twice'}"
        )
