"""StarGAN: one generator for many domains, a classifier of domains, a cycle (Choi et al., CVPR 2018)."""

from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base_model import NETWORK_OPTIONS
from models.domain_networks import StarGANDiscriminator, StarGANGenerator
from models.gan_loss import gan_loss, gradient_penalty
from models.layers import full, l1
from models.multi_model import ManyDomains
from util.arguments import integer, real_number
from util.errors import UserError


class StepCounter(nn.Module):
    """The steps of a training, a plain number, and the last losses of G; both are resumed."""

    steps = 0

    def __init__(self, losses: int):
        super().__init__()
        self.register_buffer("losses", torch.zeros(losses))

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, steps: int) -> None:
        self.steps = steps


class StarGANModel(ManyDomains):
    """`--model stargan`. With x of domain s and its target t, D gives scores src and logits cls (sec. 3.1):

        every step: D of     mean src(f) - mean src(x) + lambda_cls CE(cls(x), s) + lambda_gp GP
        every n_critic-th: G of     -mean src(f) + lambda_cls CE(cls(f), t) + lambda_rec |x - G(f, s)|

    with f = G(x, t), on the same batch, under the new D. Losses are logged without their weights, but for
    "G", the weighted sum; between two updates of G its losses are the last ones.
    """

    network_names = ("G", "D")
    groups = {"D": ("D",), "G": ("G",)}
    headline = ("G", "D_cls")
    first_iteration = 0
    lacking = (*ManyDomains.lacking, *NETWORK_OPTIONS, "init_type", "init_gain")
    defaults = ManyDomains.defaults | {"own_domain": True, "gan_mode": "wgangp", "lr": 0.0001}
    defaults |= {"batch_size": 16, "load_size": 128, "crop_size": 128}
    defaults |= {"n_iterations": 100_000, "n_iterations_decay": 100_000}
    D_losses, G_losses = ("D_real", "D_fake", "D_cls", "D_gp"), ("G_fake", "G_rec", "G_cls", "G")
    loss_names = D_losses + G_losses
    visual_names = ("real_A", "fake_B")

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--g_repeat_num", 6, "residual blocks of the generator", type=integer(1), scope="fixed")
        add("--d_repeat_num", 6, "halvings of the discriminator", type=integer(1), scope="fixed")
        add("--n_critic", 5, "updates of D for one of G", type=integer(1))
        add("--lambda_cls", 1.0, "weight of the domains' classification", type=real_number(0))
        add("--lambda_rec", 10.0, "weight of the cycle", type=real_number(0))
        add("--lambda_gp", 10.0, "weight of D's gradient penalty", type=real_number(0))

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.crop_size % 2**opt.d_repeat_num:
            needed = f"{2**opt.d_repeat_num}, as --d_repeat_num {opt.d_repeat_num} needs"
            raise UserError(f"--crop_size {opt.crop_size} is no multiple of {needed}: change one of them")

    @classmethod
    def size_limits(cls, opt: Namespace) -> tuple[int, int]:
        return 4, 2**opt.d_repeat_num

    @classmethod
    def capture_obstacle(cls, opt: Namespace) -> str | None:
        if opt.n_critic > 1:
            return f"--cuda_graph cannot capture --n_critic {opt.n_critic}, with which steps differ"
        return None

    def build_network(self, name: str) -> nn.Module:
        opt, count = self.opt, len(self.opt.domains)
        if name == "G":
            return StarGANGenerator(opt.input_nc, opt.output_nc, count, opt.ngf, opt.g_repeat_num)
        return StarGANDiscriminator(opt.output_nc, count, opt.ndf, opt.d_repeat_num, opt.crop_size)

    def build_memories(self) -> dict[str, nn.Module]:
        self.counter = StepCounter(len(self.G_losses))
        return {"counter": self.counter}

    def training_step(self) -> None:
        """D's update, and in every n_critic-th step G's; one pass of G serves both."""
        x, source, target = (self.batch[name] for name in ("A", "A_domain", "B_domain"))
        self.counter.steps += 1
        translates = self.counter.steps % self.opt.n_critic == 0
        with self.autocast(), torch.set_grad_enabled(translates):
            fake = self.networks["G"](x, target)
        self.update("D", self.discriminator_loss(x, source, fake.detach()), self.D_losses)
        if translates:
            self.freeze("D")
            self.update("G", self.generator_loss(x, source, fake, target), self.G_losses)
            self.freeze("D", False)
            self.counter.losses.copy_(torch.stack([self.losses[name].detach() for name in self.G_losses]))
        elif "G" not in self.losses:  # before the first update, or the first one after a resume
            self.losses |= dict(zip(self.G_losses, self.counter.losses.clone(), strict=True))
        self.results = {"fake_B": fake.detach()}

    def discriminator_loss(self, x: Tensor, source: Tensor, fake: Tensor) -> Tensor:
        losses, opt, netD, mode = self.losses, self.opt, self.networks["D"], self.opt.gan_mode
        with self.autocast():
            scores, classes = netD(torch.cat([x, fake]))
            of_real, of_fake = full(scores).chunk(2)
            losses["D_real"], losses["D_fake"] = gan_loss(mode, of_real, True), gan_loss(mode, of_fake, False)
            losses["D_cls"] = F.cross_entropy(full(classes)[: len(x)], source)
            losses["D_gp"] = gradient_penalty(lambda images: netD(images)[0], x, fake, 1.0)
        loss = losses["D_real"] + losses["D_fake"]
        return loss + opt.lambda_cls * losses["D_cls"] + opt.lambda_gp * losses["D_gp"]

    def generator_loss(self, x: Tensor, source: Tensor, fake: Tensor, target: Tensor) -> Tensor:
        losses, opt = self.losses, self.opt
        with self.autocast():
            scores, classes = self.networks["D"](fake)
            losses["G_fake"] = gan_loss(opt.gan_mode, scores, True)
            losses["G_cls"] = F.cross_entropy(full(classes), target)
            losses["G_rec"] = l1(self.networks["G"](fake, source), x)
        losses["G"] = losses["G_fake"] + opt.lambda_cls * losses["G_cls"] + opt.lambda_rec * losses["G_rec"]
        return losses["G"]
