"""Feature networks from the user's weights files: the FID Inception network, or a torchvision classifier.

The features are the input of the network's last layer, averaged over space (2048 numbers for Inception, 512
for squeezenet1_1). Nothing is downloaded: the message about a missing file names its address. Only the
numbers of the Inception network may be called FID and KID; a classifier's are `FD-name` and `KD-name`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from util.errors import UserError

_RELEASES = "https://github.com/mseitzer/pytorch-fid/releases/download"
INCEPTION_URL = f"{_RELEASES}/fid_weights/pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # its first digits, as in the file's name

# Keys of state dicts, and the networks they identify.
_SIGNATURES = [
    ("Mixed_5b.branch1x1.conv.weight", "an Inception v3 network"),
    ("features.3.squeeze.weight", "a SqueezeNet"),
    ("layer1.0.conv1.weight", "a ResNet"),
    ("features.denseblock1.denselayer1.conv1.weight", "a DenseNet"),
    ("features.0.0.block.0.weight", "a ConvNeXt"),
    ("features.1.conv.0.0.weight", "a MobileNet v2"),
    ("features.28.weight", "a VGG"),
    ("features.10.weight", "an AlexNet or a small VGG"),
    ("model.12.conv_block.1.weight", "a generator of this project (net_G)"),
    ("model.0.weight", "a discriminator of this project (net_D)"),
    ("mlp_0.0.weight", "the patch heads of this project (net_F)"),
]


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A loaded network: an RGB image -> `prepare` -> (3, S, S) -> `module` -> features (B, D), logits."""

    name: str  # "inception", or torchvision's name
    module: nn.Module
    prepare: Callable[[Image.Image], Tensor]
    record: dict[str, str] = field(repr=False)  # for the receipt: file, sha256, preprocessing

    @property
    def frechet_label(self) -> str:
        return "FID" if self.name == "inception" else f"FD-{self.name}"

    @property
    def kernel_label(self) -> str:
        return "KID" if self.name == "inception" else f"KD-{self.name}"


class PenultimateFeatures(nn.Module):
    """A classifier and the input of its last layer: images (B, 3, H, W) -> features (B, D), logits (B, K)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        last = [module for module in classifier.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
        last.register_forward_pre_hook(lambda _, inputs: setattr(self, "seen", inputs[0]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(images)
        features = self.seen.mean(dim=(2, 3)) if self.seen.dim() == 4 else self.seen  # (B, D)
        return features, logits


def load_inception(weights: str | Path | None, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The FID Inception network and the preprocessing of pytorch-fid, from its weights file.

    The image in RGB, scaled to 299 x 299 bilinearly without antialiasing, in [-1, 1]; 2048 features. Raises
    `UserError` for a missing file, another network's weights, or if pytorch-fid is not installed.
    """
    state = read_state_dict(weights, "--inception_weights", "the FID Inception network", INCEPTION_URL)
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
    fill_network(network, state, weights, "the FID Inception network", INCEPTION_URL)
    record = {
        "weights": Path(weights).name,
        "sha256": sha256(weights),
        "preprocessing": "RGB, 299 x 299 bilinear without antialiasing, [-1, 1] (as pytorch-fid)",
        "features": "2048, after the last average pooling",
    }
    module = PenultimateFeatures(network).eval().to(device)
    return FeatureNetwork("inception", module, _prepare_inception, record)


def load_classifier(
    name: str, weights: str | Path | None, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """A torchvision classifier, such as "squeezenet1_1", with its own weights file and preprocessing.

    Raises `UserError` for an unknown name, a missing file or another network's weights.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"--classifier {name} is not a torchvision classifier; there are {', '.join(known)}")
    published = torchvision.models.get_model_weights(name).DEFAULT
    state = read_state_dict(weights, "--classifier_weights", f"torchvision's {name}", published.url)
    extra = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    network = torchvision.models.get_model(name, weights=None, **extra)
    fill_network(network, state, weights, f"torchvision's {name}", published.url)
    transform = published.transforms()
    record = {
        "weights": Path(weights).name,
        "sha256": sha256(weights),
        "preprocessing": " ".join(repr(transform).split()),
        "features": "the input of the last layer, averaged over space",
    }
    return FeatureNetwork(name, PenultimateFeatures(network).eval().to(device), transform, record)


@torch.inference_mode()
def extract(
    network: FeatureNetwork, images: Iterable[Image.Image], batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) float64 and most likely class (N,) int64 of RGB images of any size, in order.

    Computed in float32 without TF32, each image independently: the batch size changes only rounding.
    """
    device = next(network.module.parameters()).device
    features, classes, waiting = [], [], []

    def flush() -> None:
        rows, logits = network.module(torch.stack(waiting).to(device))
        features.append(rows.cpu().double())
        classes.append(logits.argmax(dim=1).cpu())
        waiting.clear()

    with exact_convolutions():
        for image in images:
            waiting.append(network.prepare(image))
            if len(waiting) == batch_size:
                flush()
        if waiting:
            flush()
    if not features:
        raise UserError("feature extraction: a set without images")
    return torch.cat(features).numpy(), torch.cat(classes).numpy()


def require_file(path: str | Path | None, option: str, network: str, url: str) -> None:
    """UserError where `option` names no file, with the address to fetch it from."""
    if path is None or not Path(path).is_file():
        missing = "not given, but needed for" if path is None else f"no file {path} with"
        raise UserError(f"{option}: {missing} the weights of {network}. {_advice(option, url)}")


def read_state_dict(path: str | Path | None, option: str, network: str, url: str) -> dict[str, Tensor]:
    """The state dict in a weights file, on the CPU. `UserError` if it is missing or holds anything else."""
    require_file(path, option, network, url)
    advice = _advice(option, url)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{option}: {path} is not a state dict that torch.load can read ({_first_line(error)}). {advice}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{option}: {path} does not hold a state dict of tensors. {advice}")
    return state


def _advice(option: str, url: str) -> str:
    return f"Fetch {url} and pass it with {option} FILE"


def sha256(path: str | Path) -> str:
    """The checksum of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fill_network(
    network: nn.Module, state: dict[str, Tensor], path: str | Path, label: str, url: str
) -> None:
    """Load a state dict strictly, or report whose weights the file holds."""
    # Counters of batch norms are ignored: older files lack them, and nothing here reads them.
    wanted, found = (
        {key: value.shape for key, value in tensors.items() if "num_batches_tracked" not in key}
        for tensors in (network.state_dict(), state)
    )
    if wanted != found:
        fitting = sum(found.get(key) == shape for key, shape in wanted.items())
        raise UserError(
            f"{path} does not hold the weights of {label}, but of {_owner(found)}: {fitting} of the "
            f"{len(wanted)} tensors fit. Fetch {url}"
        )
    network.load_state_dict(state, strict=False)


def _owner(shapes: dict[str, torch.Size]) -> str:
    """The network that has parameters of these names, if it is known."""
    owner = next((owner for key, owner in _SIGNATURES if key in shapes), "an unknown network")
    classes = next((shape[0] for key, shape in reversed(shapes.items()) if key.endswith("bias")), None)
    return owner if classes is None or "project" in owner else f"{owner} with {classes} classes"


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


def _prepare_inception(image: Image.Image) -> Tensor:
    scaled = F.interpolate(to_tensor(image)[None], size=(299, 299), mode="bilinear", align_corners=False)
    return 2 * scaled[0] - 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
