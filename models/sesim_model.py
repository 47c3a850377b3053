"""FSeSim and LSeSim (Zheng, Cham and Cai, CVPR 2021): a translation keeps the self-similarity of its source.

G learns from D and from the spatially-correlative loss between an image and its translation. They should
agree in self-similarity maps: how a feature correlates with the features around it. With f the features of
one layer of VGG-16, centred per channel over the image,

    S_ij = tanh(f_i . f_j / (10 C))          or cos(f_i, f_j) with `--use_norm`

for a few random queries i, and for j in the window of keys around i. The loss compares both maps, per query,
where the translation's similarities are largest:

    loss = mean_i (1 - cos(S_i(source), S_i(translation)))         up to the criterion, see `correlation_loss`

With `--learned_attn` (LSeSim) features first pass through F, 1 x 1 convolutions that learn by contrast: the
map of an image should be closer to those of its translation and of the image in other colours than to those
of another image.

Terms of the released code whose weight is 0 unless asked for are left out: identity, perceptual and style
distances, D's penalty.

Shapes: B images, C channels, L = H*W positions (row * W + column), N queries, M keys of a query (P*P, or L).
"""

import random
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from data.transforms import draw_jitter, jitter
from models import patch_sampler
from models.layers import full, initialise, run_layers
from models.sides import OneSidedModel
from util import distributed
from util.arguments import integer, layer_list, real_number
from util.device import get_device
from util.errors import UserError
from util.weight_files import Published

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16 = Published("torchvision's VGG-16", "--vgg_weights", VGG16_URL)
RANDOM = "random"  # in place of a file
WIDTHS = tuple(cfgs["D"])  # channels of each convolution of VGG-16 and its ReLU; "M": a 2 x 2 maximum
LAYERS, LAST_LAYER = (4, 7, 9), 12  # ReLUs, numbered from 0: relu3_1, relu4_1 and relu4_3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]

WINDOW, LEARNED_WINDOW = 64, 32  # --patch_size of FSeSim and of LSeSim
SCALE = 10.0  # of a correlation inside the tanh
MODES = ("cos", "l1")
KEPT = 4  # the loss compares the largest quarter of each map
LEAST_MAP = 2  # side of a map and of a window: fewer than four keys have no quarter
MIN_HIDDEN, REDUCTION = 32, 4  # channels of the learned convolutions: C / REDUCTION, but at least MIN_HIDDEN


class SeSimModel(OneSidedModel):
    """`--model sesim`: G translates A to B, D judges B, F makes self-similarity maps of VGG's features."""

    network_names = ("G", "D", "F")
    groups = {"F": ("F",), "D": ("D",), "G": ("G",)}
    headline = ("G", "G_s")
    defaults = {"lr": 0.0001, "pool_size": 50, "crop_late": True}

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        learned = {"learned_attn": (True,)}
        window = {"type": integer(LEAST_MAP), "shown": f"{WINDOW}, or {LEARNED_WINDOW} with --learned_attn"}
        add("--lambda_spatial", 10.0, "weight of the spatially-correlative loss", type=real_number(0))
        add("--vgg_weights", None, f"torchvision's file vgg16-397923af.pth; {RANDOM}: random, for tests")
        add("--attn_layers", list(LAYERS), "ReLUs of VGG-16 compared, from 0", type=layer_list, scope="fixed")
        add("--patch_nums", 256, "queries per image and layer; 0: all positions", type=integer(-1))
        add("--patch_size", None, "side of the window of keys, in positions", **window)
        add("--loss_mode", "cos", "how self-similarity maps are compared", choices=MODES)
        add("--use_norm", False, "compare directions of features instead of inner products")
        add("--learned_attn", False, "LSeSim: learned convolutions on the features", scope="fixed")
        add("--augment", True, "contrast views in other colours too", only=learned)
        add("--T", 0.07, "temperature of that contrast", type=real_number(0, above=True), only=learned)

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if (opt.input_nc, opt.output_nc) != (3, 3):
            raise UserError("--model sesim needs --input_nc 3 and --output_nc 3: VGG-16 takes RGB images")
        if opt.attn_layers[-1] > LAST_LAYER:
            raise UserError(f"--attn_layers {opt.attn_layers[-1]}: VGG-16 has ReLUs 0 to {LAST_LAYER}")
        if opt.patch_size is None:
            opt.patch_size = LEARNED_WINDOW if opt.learned_attn else WINDOW
        if opt.vgg_weights != RANDOM:
            VGG16.find(opt.vgg_weights)

    @classmethod
    def size_limits(cls, opt: Namespace) -> tuple[int, int]:
        multiple, smallest = super().size_limits(opt)
        halvings = up_to(opt.attn_layers[-1]).count("M")
        return multiple, max(smallest, LEAST_MAP * 2**halvings)

    def __init__(self, opt: Namespace):
        self.augments = opt.isTrain and opt.learned_attn and opt.augment
        if opt.isTrain:
            self.vgg = load_vgg16(opt.vgg_weights, opt.attn_layers, get_device(opt.gpu_ids))
        super().__init__(opt)
        if opt.isTrain and opt.channels_last:
            self.vgg.to(memory_format=torch.channels_last)

    def build_network(self, name: str) -> nn.Module:
        if name != "F":
            return super().build_network(name)
        opt = self.opt
        channels = self.vgg.channels if opt.learned_attn else ()
        return initialise(SelfSimilarity(channels, opt.patch_size, opt.use_norm), "normal", 0.02)

    @property
    def loss_names(self) -> list[str]:
        return ["G_GAN", "G_s", "D_real", "D_fake", "D_A", "G"] + ["spatial"] * self.opt.learned_attn

    def set_input(self, batch: dict) -> None:
        """Also adds views in other colours, "A_aug" and "B_aug"; drawn for the whole global batch."""
        super().set_input(batch)
        if not self.augments or "A_aug" in self.batch:
            return
        generator = random.Random(int(torch.randint(2**62, ())))
        for domain in "AB":
            images = self.batch[domain]
            count, rank = len(images), distributed.rank()
            changes = [draw_jitter(generator) for _ in range(count * distributed.world_size())]
            self.batch[f"{domain}_aug"] = self.place(jitter(images, changes[rank * count :][:count]))

    def training_step(self) -> None:
        """Forward, F's update (LSeSim), D's update, G's update."""
        with self.autocast():
            fake = self.netG(self.batch["A"])
            fake_features = self.vgg(fake)
            real_features = self.encode_real()
        if self.opt.learned_attn:
            self.step_F(fake_features, real_features)
        self.losses["G_GAN"] = self.step_D(self.batch["B"], fake)
        self.step_G(fake_features, real_features["A"])
        self.results = {"fake_B": fake.detach()}

    @torch.no_grad()
    def encode_real(self) -> dict[str, list[Tensor]]:
        """VGG's features of the images that need no gradient, in one pass; B is turned by 180 degrees."""
        images = {"A": self.batch["A"]}
        if self.opt.learned_attn:
            images["B"] = self.batch["B"].rot90(2, (2, 3))
        if self.augments:
            images |= {"A_aug": self.batch["A_aug"], "B_aug": self.batch["B_aug"].rot90(2, (2, 3))}
        layers = [features.chunk(len(images)) for features in self.vgg(torch.cat(list(images.values())))]
        return dict(zip(images, map(list, zip(*layers, strict=True)), strict=True))

    def step_F(self, fake_features: list[Tensor], real: dict[str, list[Tensor]]) -> None:
        """Maps of A belong to those of its translation and of its view, not to those of B."""
        sides = [real["A"], [features.detach() for features in fake_features], real["B"]]
        if self.augments:
            pairs = zip(sides, (real["A"], real["A_aug"], real["B_aug"]), strict=True)
            sides = [[torch.cat(layers) for layers in zip(*pair, strict=True)] for pair in pairs]
        with self.autocast():
            contrast = partial(contrastive_loss, temperature=self.opt.T)
            self.losses["spatial"] = self.mean_of_layers(contrast, *sides)
        self.update("F", self.losses["spatial"], ["spatial"])

    def compute_D_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """As CUT's, also kept as "D_A"."""
        self.losses["D_A"] = super().compute_D_loss(real, fake)
        return self.losses["D_A"]

    def step_G(self, fake_features: list[Tensor], real_features: list[Tensor]) -> None:
        """Update G by "G_GAN" + lambda_spatial * S(x, G(x)); F and D are frozen."""
        self.freeze("F")
        with self.autocast():  # its own context: F's old weights are cached as casts in the one before
            distance = partial(correlation_loss, mode=self.opt.loss_mode, use_norm=self.opt.use_norm)
            loss = self.mean_of_layers(distance, real_features, fake_features)
            self.losses["G_s"] = self.opt.lambda_spatial * loss
        self.losses["G"] = self.losses["G_GAN"] + self.losses["G_s"]
        self.update("G", self.losses["G"], ["G_GAN", "G_s", "G"])
        self.freeze("F", False)
        self.freeze("D", False)

    def mean_of_layers(self, loss: Callable[..., Tensor], *sides: list[Tensor]) -> Tensor:
        """The mean over layers of a loss of self-similarity maps of `sides`, which share random queries."""
        losses, count = [], self.opt.patch_nums
        for number, layer in enumerate(zip(*sides, strict=True)):
            positions = layer[0][0, 0].numel()
            queries = patch_sampler.random_locations(positions, count, self.device) if count > 0 else None
            losses.append(loss(*(self.networks["F"](number, features, queries) for features in layer)))
        return torch.stack(losses).mean()


class SelfSimilarity(nn.Module):
    """Self-similarity maps; with `channels`, C of each layer, by learned convolutions (LSeSim)."""

    def __init__(self, channels: Sequence[int] = (), window: int = 64, use_norm: bool = False):
        super().__init__()
        self.window, self.use_norm, self.learned = window, use_norm, bool(channels)
        for number, c in enumerate(channels):
            hidden = max(MIN_HIDDEN, c // REDUCTION)
            layers = nn.Sequential(nn.Conv2d(c, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1))
            self.add_module(f"conv_{number}", layers)

    def forward(self, number: int, features: Tensor, queries: Tensor | None) -> Tensor:
        if self.learned:
            features = getattr(self, f"conv_{number}")(features)
        return self_similarity(features, queries, self.window, self.use_norm)


def self_similarity(features: Tensor, queries: Tensor | None, window: int, use_norm: bool = False) -> Tensor:
    """Similarity of each query's feature to those of its keys: (B, N, M), in [-1, 1], at least float32.

    `features` (B, C, H, W) have at least four positions. `queries` (N,) are positions, the same in all
    images; None: all. The keys are the P x P square (P is `window`) that begins P // 2 above and left of the
    query, moved inside the map; all positions where P reaches H or W, or without `queries`.
    """
    b, c, h, w = features.shape
    features = full(features)
    features = (features - features.mean((2, 3), keepdim=True)).flatten(2)  # (B, C, L)
    features = F.normalize(features, dim=1) if use_norm else features / c**0.5
    chosen = features if queries is None else features.index_select(2, queries)  # (B, C, N)
    # All L scores per query and then the window's: N x L numbers, where gathered keys would be N x M x C.
    scores = full(chosen.transpose(1, 2) @ features)  # (B, N, L)
    if queries is not None and window < min(h, w):
        scores = scores.gather(2, window_positions(queries, h, w, window).expand(b, -1, -1))  # (B, N, M)
    return scores if use_norm else torch.tanh(scores / SCALE)


def window_positions(queries: Tensor, height: int, width: int, window: int) -> Tensor:
    """Positions of the keys of each query (N,), row by row: (N, P*P) int64. P is less than both sides."""
    top = (queries // width - window // 2).clamp(0, height - window)
    left = (queries % width - window // 2).clamp(0, width - window)
    steps = torch.arange(window, device=queries.device)
    rows = top[:, None, None] + steps[:, None]  # (N, P, 1)
    columns = left[:, None, None] + steps  # (N, 1, P)
    return (rows * width + columns).flatten(1)  # (N, P*P)


def correlation_loss(source: Tensor, target: Tensor, mode: str = "cos", use_norm: bool = False) -> Tensor:
    """Distance of the self-similarity maps (B, N, M) of images and of their translations, a scalar.

    Only keys whose similarity in the translation is among its M // 4 + 1 largest count; both maps are zero
    elsewhere. "cos" compares each query's cosine similarity of the two maps with 1; "l1" compares the maps
    themselves, times M / (M // 4). The criterion is the L1 distance for normalised features, else smooth L1.
    """
    keys = target.shape[-1]
    threshold = target.detach().topk(keys // KEPT + 1).values[..., -1:]  # (B, N, 1)
    kept = target >= threshold
    source, target = source * kept, target * kept
    criterion = F.l1_loss if use_norm else F.smooth_l1_loss
    if mode == "l1":
        factor = keys / (keys // KEPT)
        return criterion(target * factor, source * factor)
    agreement = F.cosine_similarity(source, target, dim=-1)  # (B, N)
    return criterion(agreement, torch.ones_like(agreement))


def contrastive_loss(source: Tensor, target: Tensor, other: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE of self-similarity maps (B, N, M), a scalar: source query i belongs to target query i."""
    source, target, other = (F.normalize(maps, dim=-1) for maps in (source, target, other))
    b, n, _ = source.shape
    # 1 / T would amplify the rounding of half precision
    with torch.autocast(source.device.type, enabled=False):
        pairs = ((source, target), (source, other), (target, other))
        logits = torch.cat([left @ right.transpose(1, 2) for left, right in pairs], 2)  # (B, N, 3 N)
    own = torch.arange(n, device=source.device).repeat(b)
    return F.cross_entropy(logits.flatten(0, 1) / temperature, own)


# ---- VGG-16 (Simonyan and Zisserman, 2015): torchvision's network and weights ----


def up_to(layer: int, widths: Sequence[int | str] = WIDTHS) -> Sequence[int | str]:
    """The part of `widths` that ends with ReLU `layer`."""
    return widths[: [n for n, width in enumerate(widths) if width != "M"][layer] + 1]


class VGG16Features(nn.Module):
    """VGG-16 up to the last of `layers`, ascending numbers of ReLUs; with torchvision's keys."""

    def __init__(self, layers: Sequence[int] = LAYERS, widths: Sequence[int | str] = WIDTHS):
        super().__init__()
        self.features = make_layers(list(up_to(layers[-1], widths)))
        relus = [n for n, module in enumerate(self.features) if isinstance(module, nn.ReLU)]
        self.taps = [relus[layer] for layer in layers]
        self.channels = [self.features[tap - 1].out_channels for tap in self.taps]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        # ((x + 1) / 2 - mean) / std as one scale and shift
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Rectified features (B, C, H', W') of images (B, 3, H, W) in [-1, 1], one tensor per layer."""
        return run_layers(self.features, images * self.scale + self.shift, self.taps)[1]


def load_vgg16(
    weights: str | Path | None, layers: Sequence[int] = LAYERS, device: torch.device | str = "cpu"
) -> VGG16Features:
    """VGG-16, frozen, with the weights of torchvision's file (None: of torch's cache), or "random" ones."""
    network = VGG16Features(layers)
    if str(weights) == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # the same each time, as they are not saved
            initialise(network, "kaiming")
    else:
        wanted = network.state_dict()  # without deeper layers and the classifier
        VGG16.fill(network, VGG16.find(weights), lambda name: name if name in wanted else "")
    return network.eval().requires_grad_(False).to(device)
