"""How different two images are: DINO's structure distance of a translation from its input, and LPIPS."""

import warnings
from collections.abc import Iterable, Sequence
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import VisionTransformer

from util.errors import UserError
from util.metrics.networks import classifier_weights, exact_convolutions
from util.weight_files import Published

FILES = "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain"
DINO = Published("DINO's ViT-B/8", "--dino_weights", f"{FILES}/dino_vitbase8_pretrain.pth")
SIDE = 224  # pixels, of the images that DINO's position embedding belongs to
SQUEEZENET = "squeezenet1_1"

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
        attention = self.last.self_attention  # parameters of queries, keys, values in one
        weight, bias = attention.in_proj_weight.chunk(3)[1], attention.in_proj_bias.chunk(3)[1]
        return F.linear(self.seen, weight, bias)


def load_dino(path: Path, device: torch.device | str = "cpu") -> tuple[DinoKeys, dict[str, str]]:
    """DINO's ViT-B/8 from its official file, ready for use, and what a receipt says of it."""
    keys = DinoKeys()
    record = DINO.fill(keys.network, path, torchvision_name)
    return keys.eval().requires_grad_(False).to(device), record


def torchvision_name(name: str) -> str:
    """The name that torchvision's vision transformer gives to a parameter of DINO's."""
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    return f"encoder.ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


@torch.inference_mode()
def structure_distance(
    inputs: Iterable[Image.Image], translations: Iterable[Image.Image], network: nn.Module, batch_size=4
) -> list[float]:
    """How much each translation changes its input's layout: RGB images in the same order -> [0, 4] each.

    As published by Splice (Tumanyan et al., CVPR 2022, sec. 3), with k_1 ... k_T the keys of the last
    attention layer, all heads side by side, the class token among them:

        S_ij = cos(k_i, k_j)        distance = mean_ij (S_ij(input) - S_ij(translation))^2

    Computed in float32 without TF32, each pair apart from the others: the batch size moves only the rounding.
    """
    device = next(network.parameters()).device
    distances: list[float] = []
    pairs = zip(inputs, translations, strict=True)
    with exact_convolutions():
        while batch := [prepare(image) for pair in islice(pairs, batch_size) for image in pair]:
            keys = F.normalize(network(torch.stack(batch).to(device)), dim=-1)  # (2 n, T, D)
            maps = (keys @ keys.mT).unflatten(0, (-1, 2))  # (n, 2, T, T)
            distances += (maps[:, 0] - maps[:, 1]).square().mean((1, 2)).tolist()
    return distances


def check_pairs(inputs: Sequence[Path], translations: Sequence[Path]) -> None:
    """UserError unless the files, each in its order, belong together by name; endings may differ."""
    sides = [[path.stem for path in paths] for paths in (inputs, translations)]
    if sides[0] != sides[1]:
        lone = [*sorted(set(sides[0]) ^ set(sides[1])), "some names twice"][0]
        folders = f"{inputs[0].parent} and {translations[0].parent}"
        raise UserError(f"each translation needs the input of its name, but of {folders} only one has {lone}")


def load_lpips(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, str]]:
    """LPIPS 0.1 (Zhang et al., CVPR 2018, arXiv 1801.03924) on SqueezeNet, and what a receipt says of it.

    `path` is torchvision's file of SqueezeNet; the package lpips brings the weights that people's judgements
    gave. Raises `UserError` for other weights, or if the package is not installed.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise UserError("LPIPS needs the package lpips: pip install lpips") from error
    squeezenet = torchvision.models.squeezenet1_1(weights=None)
    record = classifier_weights(SQUEEZENET).fill(squeezenet, path)
    with warnings.catch_warnings():  # it calls torchvision by names of old
        warnings.simplefilter("ignore")
        network = LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    features = squeezenet.features.state_dict()
    trunk = {name: features[name.partition(".")[2]] for name in network.net.state_dict()}  # slice1.0.weight
    network.net.load_state_dict(trunk)
    return network.eval().requires_grad_(False).to(device), record


@torch.inference_mode()
def diversity(inputs: Iterable[Iterable[Image.Image]], network: nn.Module) -> list[float]:
    """Of each input, given as its translations of one size, their mean LPIPS over all pairs."""
    device = next(network.parameters()).device
    found = []
    with exact_convolutions():
        for images in inputs:
            translations = [
                2 * transforms.functional.to_tensor(image)[None].to(device) - 1 for image in images
            ]
            distances = [network(a, b).item() for a, b in combinations(translations, 2)]
            found.append(float(np.mean(distances)))
    return found
