"""The textbook step of CUT and QS-Attn: straight from the definition, in the released code's order.

It is the oracle of the tests and the other side of `scripts/benchmark.py`, and shares no shortcut with
`models/cut_model.py`. One thing is not textbook: queries are ranked by the logarithm of their entropy,
because most would tie at zero otherwise.

Shapes as in `models/qs_attn.py`: B images, C channels, L = H*W positions, N queries, M keys of a query.
"""

import copy
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from models import patch_sampler
from models.cut_model import CUTModel
from models.gan_loss import gan_loss, gradient_penalty
from models.layers import BlurUpsample, InstanceNorm, with_contiguous_gradient
from models.qs_attn import select_queries
from models.qs_model import QuerySelected
from models.qs_released import RULES
from util.errors import UserError

TEXTBOOKS = ("qs", "cut", "fastcut")  # the models that have a textbook step


class TextbookStep:
    """The textbook step on the weights of a model, by its options, on its batch; with own optimisers."""

    def __init__(self, model: CUTModel):
        opt = model.opt
        if opt.model not in TEXTBOOKS or opt.qs_variant != "paper":
            raise UserError(f"only {', '.join(TEXTBOOKS)} with --qs_variant paper have a textbook step")
        self.model, self.opt = model, opt
        self.networks = {name: plain_network(net) for name, net in model.networks.items()}
        self.netG, self.netD, self.netF = (self.networks[name] for name in ("G", "D", "F"))
        self.losses: dict[str, Tensor] = {}
        self.optimizers = {
            name: Adam(net.parameters(), **model.optimizer_settings(name))
            for name, net in self.networks.items()
            if list(net.parameters())
        }

    def optimize_parameters(self) -> None:
        opt, real_A, real_B = self.opt, self.model.batch["A"], self.model.batch["B"]
        identity = opt.nce_idt and opt.lambda_NCE > 0
        self.mirrored = opt.flip_equivariance and torch.rand(()).item() < 0.5

        real = torch.cat([real_A, real_B]) if identity else real_A
        fake = self.netG(real.flip(3) if self.mirrored else real)
        fake_B, idt_B = fake[: len(real_A)], fake[len(real_A) :]

        self.netD.requires_grad_(True)
        self.update(["D"], self.D_loss(fake_B, real_B))

        self.netD.requires_grad_(False)
        pairs = [(real_A, fake_B)] + [(real_B, idt_B)] * identity
        self.update(["G", "F"], self.G_loss(fake_B, pairs))

    def update(self, names: list[str], loss: Tensor) -> None:
        optimizers = [self.optimizers[name] for name in names if name in self.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def D_loss(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        fake_B = self.model.pool(fake_B)
        self.losses["D_fake"] = gan_loss(self.opt.gan_mode, self.netD(fake_B), False)
        self.losses["D_real"] = gan_loss(self.opt.gan_mode, self.netD(real_B), True)
        loss = (self.losses["D_fake"] + self.losses["D_real"]) / 2
        if self.opt.gan_mode == "wgangp":
            loss = loss + gradient_penalty(self.netD, real_B, fake_B)
        return loss

    def G_loss(self, fake_B: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """lambda_GAN * GAN(G(x)) + (NCE(x, G(x)) + NCE(y, G(y))) / 2 of pairs (x, G(x)) and (y, G(y))."""
        self.losses["G_GAN"] = self.opt.lambda_GAN * gan_loss(self.opt.gan_mode, self.netD(fake_B), True)
        nce = self.NCE_losses(pairs) if self.opt.lambda_NCE > 0 else [fake_B.new_zeros(())]
        self.losses.update(zip(("NCE", "NCE_Y"), nce, strict=False))
        self.losses["G"] = self.losses["G_GAN"] + sum(nce) / len(nce)
        return self.losses["G"]

    def NCE_losses(self, pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """lambda_NCE * PatchNCE of each (image, translation), mean over patches, images and layers."""
        layers = self.opt.nce_layers
        targets = [self.netG.encode(fake, layers) for _, fake in pairs]
        sources = [self.netG.encode(real, layers) for real, _ in pairs]
        totals = [0.0 for _ in pairs]
        for number in range(len(layers)):
            for domain in range(len(pairs)):  # A's positions are drawn before B's
                source = self.model.prepare_features(number, sources[domain][number])
                target = targets[domain][number]
                target = self.model.prepare_features(number, target.flip(3) if self.mirrored else target)
                keys, queries = self.patches(number, source, target)  # (B, N, C)
                keys, queries = self.netF(number, keys), self.netF(number, queries)  # (B, N, D)
                totals[domain] = totals[domain] + self.model.patchnce(queries, keys).mean()
        return [self.opt.lambda_NCE * total / len(layers) for total in totals]

    def patches(self, number: int, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The patches of the `number`-th tapped layer of source and target (B, C, H, W): two of (B, N, C)."""
        opt = self.opt
        if isinstance(self.model, QuerySelected) and self.model.selects(number):
            return plain_qs_attn(source, target, opt.QS_mode, opt.num_patches, opt.qs_window)
        indices = patch_sampler.random_locations(source[0, 0].numel(), opt.num_patches, source.device)
        return source.flatten(2).mT[:, indices], target.flatten(2).mT[:, indices]

    def get_current_losses(self) -> dict[str, float]:
        return {name: self.losses[name].item() for name in self.model.loss_names}


# ---- the selection ----


def plain_qs_attn(
    source: Tensor, target: Tensor, mode: str, num_queries: int, window: int
) -> tuple[Tensor, Tensor]:
    """Source and target (B, C, H, W) through the source's `num_queries` rows of least entropy, (B, N, C)."""
    if mode not in RULES:  # not the paper's
        selection = select_queries(source, mode, num_queries, window)
        return selection.route(source), selection.route(target)
    ranked_by, routed_by = RULES[mode]
    keys = {kind: KEYS[kind](source, window) for kind in RULES[mode]}
    scores = {kind: torch.einsum(SCORE[kind], vectors(source), keys[kind]) for kind in keys}  # (B, L, M)
    ranks = log_of_entropy(scores[ranked_by].detach())  # (B, L)
    indices = ranks.sort(dim=1, stable=True).indices[:, :num_queries]  # (B, N)
    chosen = take(scores[routed_by].softmax(-1), indices)  # (B, N, M)

    def route(values: Tensor) -> Tensor:
        if routed_by == "local":
            values = take(values, indices)  # (B, N, M, C)
        return torch.einsum(ROUTE[routed_by], chosen, values)

    return route(keys[routed_by]), route(KEYS[routed_by](target, window))


def vectors(features: Tensor, window: int = 1) -> Tensor:
    """Features (B, C, H, W) as one vector a position: (B, L, C)."""
    return features.flatten(2).mT


def windows(features: Tensor, window: int) -> Tensor:
    """The zero-padded window around every position of features (B, C, H, W): (B, L, k*k, C)."""
    b, c = features.shape[:2]
    columns = F.unfold(features, window, padding=window // 2)  # (B, C*k*k, L)
    return columns.view(b, c, window * window, -1).permute(0, 3, 2, 1)


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """Of rows (B, L, ...) those at `indices` (B, N): (B, N, ...)."""
    return torch.stack([image[chosen] for image, chosen in zip(rows, indices, strict=True)])


def log_of_entropy(scores: Tensor) -> Tensor:
    """The logarithm of the entropy, each sum taken over logarithms, so that saturated rows keep their order.

    With g_j = s_j - max s, R = sum e^{g_j} over all keys but the top one: -log a_top = log(1 + R), -log a_j =
    log(1 + R) - g_j.
    """
    top, where = scores.max(-1, keepdim=True)
    g = (scores - top).scatter(-1, where, -torch.inf)
    log_R = log_sum_exp(g)
    surprise = log_R.exp().log1p()  # log(1 + R)
    log_surprise = torch.where(log_R < -20, log_R, surprise.log())  # of a small R, R
    terms = (g + (surprise - g).log()).scatter(-1, where, log_surprise)
    terms = terms.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    return (log_sum_exp(terms) - surprise).squeeze(-1)


def log_sum_exp(x: Tensor) -> Tensor:
    """`x.logsumexp(-1, keepdim=True)` where a row's largest value is finite or -inf.

    Terms below e^-87 of the largest count as that: exp takes 100 times as long where it underflows.
    """
    top = x.amax(-1, keepdim=True)
    return (x - top).clamp(min=-87).nan_to_num(nan=0.0).exp().sum(-1, keepdim=True).log() + top


KEYS = {"global": vectors, "local": windows}
SCORE = {"global": "blc,bmc->blm", "local": "blc,blmc->blm"}
ROUTE = {"global": "bnm,bmc->bnc", "local": "bnm,bnmc->bnc"}


# ---- the networks ----


def plain_upsample(blur: BlurUpsample, x: Tensor) -> Tensor:
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(x, blur.filt, stride=2, padding=2, groups=x.shape[1])[:, :, 1:-1, 1:-1]


def plain_norm(norm: InstanceNorm, x: Tensor) -> Tensor:
    return with_contiguous_gradient(F.instance_norm(x))


PLAIN = {InstanceNorm: plain_norm, BlurUpsample: plain_upsample}


def plain_network(net: nn.Module) -> nn.Module:
    """`net` with the same parameters and buffers, not copies of them, but textbook layers."""
    shared = {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())}
    net = copy.deepcopy(net, shared)
    vars(net).pop("run_layers", None)
    for module in net.modules():
        if type(module) in PLAIN:
            module.forward = partial(PLAIN[type(module)], module)
    return net
