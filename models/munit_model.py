"""MUNIT: multimodal translation by separate codes of content and style (Huang et al., ECCV 2018)."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from models import munit_networks
from models.base_model import NETWORK_OPTIONS, BaseModel, require_same_channels
from models.gan_loss import gan_loss
from models.layers import full, initialise, l1
from models.munit_networks import AdaINGenerator, MultiScaleDiscriminator, StyledTranslator
from util import distributed
from util.arguments import integer, real_number
from util.errors import UserError

Codes = tuple[Tensor, Tensor]  # content (B, C, h, w) and style (B, style_dim, 1, 1) of images


class MUNITModel(BaseModel):
    """`--model munit`: gen_a and dis_a for domain A, the source in training; gen_b and dis_b for domain B."""

    network_names = ("gen_a", "gen_b", "dis_a", "dis_b")
    groups = {"dis": ("dis_a", "dis_b"), "gen": ("gen_a", "gen_b")}
    headline = ("gen_total", "dis_total")
    visual_names = ("real_A", "recon_A", "fake_B", "cycle_A", "real_B", "recon_B", "fake_A", "cycle_B")
    translation_options = ("mlp_dim", "style_dim", "n_downsample", "n_res")
    lacking = NETWORK_OPTIONS
    defaults = {"n_iterations": 1_000_000, "lr": 0.0001, "init_type": "kaiming"}
    defaults |= {"lr_policy": "step", "lr_decay_iters": 100_000, "lr_decay_gamma": 0.5}
    defaults |= {"preprocess": "scale_shortside_and_crop", "load_size": 256, "crop_late": True}
    first_iteration = 2  # the released code steps its schedule before an iteration's updates
    styled = True

    @classmethod
    def add_options(cls, add) -> None:
        add("--gan_w", 1.0, "weight of the adversarial loss", type=real_number(0))
        add("--recon_x_w", 10.0, "weight of the reconstruction of images", type=real_number(0))
        add("--recon_s_w", 1.0, "weight of the reconstruction of styles", type=real_number(0))
        add("--recon_c_w", 1.0, "weight of the reconstruction of content", type=real_number(0))
        add("--recon_x_cyc_w", 10.0, "weight of the cycle; 0: no cycle", type=real_number(0))
        add("--weight_decay", 0.0001, "L2 penalty in Adam, on all parameters", type=real_number(0))
        size = {"type": integer(1), "scope": "fixed"}
        add("--mlp_dim", 256, "width of the MLP from styles to AdaIN parameters", **size)
        add("--style_dim", 8, "length of a style", **size)
        add("--n_downsample", 2, "halvings of the content encoder", type=integer(1, 3), scope="fixed")
        add("--n_res", 4, "residual blocks of the content encoder and of the decoder", **size)
        add("--n_layer", 4, "halvings of the discriminator, at each scale", **size)
        add("--num_scales", 3, "scales of the discriminator", **size)

    @classmethod
    def check(cls, opt: Namespace) -> None:
        require_same_channels(opt, "--model munit needs them to be the same")
        if opt.gan_mode == "wgangp":
            raise UserError("--gan_mode wgangp is not offered with --model munit: give lsgan or vanilla")

    @classmethod
    def translating(cls, opt: Namespace) -> tuple[str, ...]:
        """The target's generator, which decodes, and the source's, which encodes."""
        forward = opt.direction == getattr(opt, "trained_direction", opt.direction)
        return ("gen_b", "gen_a") if forward else ("gen_a", "gen_b")

    @classmethod
    def size_limits(cls, opt: Namespace) -> tuple[int, int]:
        with torch.device("meta"):
            gen, dis = munit_generator(opt), munit_discriminator(opt)
        return gen.size_multiple, max(gen.smallest_side, dis.smallest_side)

    def build_network(self, name: str) -> nn.Module:
        """The generators by `--init_type`, the discriminators from N(0, init_gain), as released."""
        if name.startswith("gen"):
            return initialise(munit_generator(self.opt), self.opt.init_type, self.opt.init_gain)
        return initialise(munit_discriminator(self.opt), "normal", self.opt.init_gain)

    def optimizer_settings(self, name: str) -> dict[str, object]:
        return {**super().optimizer_settings(name), "weight_decay": self.opt.weight_decay}

    def translator(self) -> StyledTranslator:
        target, source = (self.networks[name] for name in self.translating(self.opt))
        return StyledTranslator(source, target)

    @property
    def loss_names(self) -> list[str]:
        both = [f"gen_{term}_{domain}" for term in self.weights() for domain in "ab"]
        return ["dis_a", "dis_b", "dis_total", *both, "gen_total"]

    def weights(self) -> dict[str, float]:
        """The generators' terms with their weights; without a weight the cycle is left out."""
        opt = self.opt
        weights = {"adv": opt.gan_w, "recon_x": opt.recon_x_w, "recon_s": opt.recon_s_w}
        weights["recon_c"] = opt.recon_c_w
        return weights | ({"cycrecon_x": opt.recon_x_cyc_w} if opt.recon_x_cyc_w > 0 else {})

    def training_step(self) -> None:
        """Encode each image once, for both updates: the discriminators' leaves the generators as they are."""
        with self.autocast():
            codes_a = self.networks["gen_a"].encode(self.batch["A"])
            codes_b = self.networks["gen_b"].encode(self.batch["B"])
        self.step_dis(codes_a[0], codes_b[0])
        self.freeze("dis")
        self.step_gen(codes_a, codes_b)
        self.freeze("dis", False)

    def step_dis(self, content_a: Tensor, content_b: Tensor) -> None:
        """Update the discriminators by gan_w * (dis_a + dis_b), each on translations and real images."""
        losses, (style_a, style_b) = self.losses, self.draw_styles()
        # Two autocast contexts: weight casts cached under no_grad would be reused later, without gradient.
        with self.autocast(), torch.no_grad():
            fake_a = self.networks["gen_a"].decode(content_b, style_a)
            fake_b = self.networks["gen_b"].decode(content_a, style_b)
        with self.autocast():
            losses["dis_a"] = self.dis_loss("dis_a", fake_a, self.batch["A"])
            losses["dis_b"] = self.dis_loss("dis_b", fake_b, self.batch["B"])
        losses["dis_total"] = self.opt.gan_w * (losses["dis_a"] + losses["dis_b"])
        self.update("dis", losses["dis_total"], ["dis_a", "dis_b", "dis_total"])

    def dis_loss(self, name: str, fake: Tensor, real: Tensor) -> Tensor:
        """Sum over scales of mean(D(fake)^2) + mean((D(real) - 1)^2), not halved (`--gan_mode lsgan`)."""
        mode, scales = self.opt.gan_mode, self.networks[name](torch.cat([fake, real]))
        pairs = [full(scores).chunk(2) for scores in scales]
        return sum(gan_loss(mode, fake, False) + gan_loss(mode, real, True) for fake, real in pairs)

    def gen_loss(self, name: str, fake: Tensor) -> Tensor:
        """Sum over scales of mean((D(fake) - 1)^2)."""
        return sum(gan_loss(self.opt.gan_mode, scores, True) for scores in self.networks[name](fake))

    def step_gen(self, codes_a: Codes, codes_b: Codes) -> None:
        losses, a, b = self.losses, self.batch["A"], self.batch["B"]
        gen_a, gen_b = self.networks["gen_a"], self.networks["gen_b"]
        (content_a, own_style_a), (content_b, own_style_b) = codes_a, codes_b
        style_a, style_b = self.draw_styles()
        with self.autocast():
            # each generator decodes its domain's reconstruction and translation in one pass
            styles_a, styles_b = torch.cat([own_style_a, style_a]), torch.cat([own_style_b, style_b])
            recon_a, fake_a = gen_a.decode(torch.cat([content_a, content_b]), styles_a).chunk(2)
            recon_b, fake_b = gen_b.decode(torch.cat([content_b, content_a]), styles_b).chunk(2)
            content_b_again, style_a_again = gen_a.encode(fake_a)
            content_a_again, style_b_again = gen_b.encode(fake_b)
            losses["gen_adv_a"] = self.gen_loss("dis_a", fake_a)
            losses["gen_adv_b"] = self.gen_loss("dis_b", fake_b)
        losses["gen_recon_x_a"], losses["gen_recon_x_b"] = l1(recon_a, a), l1(recon_b, b)
        losses["gen_recon_s_a"] = l1(style_a_again, style_a)
        losses["gen_recon_s_b"] = l1(style_b_again, style_b)
        losses["gen_recon_c_a"] = l1(content_a_again, content_a)
        losses["gen_recon_c_b"] = l1(content_b_again, content_b)
        images = {"recon_A": recon_a, "fake_B": fake_b, "recon_B": recon_b, "fake_A": fake_a}
        if "cycrecon_x" in self.weights():
            with self.autocast():
                images["cycle_A"] = gen_a.decode(content_a_again, own_style_a)
                images["cycle_B"] = gen_b.decode(content_b_again, own_style_b)
            losses["gen_cycrecon_x_a"] = l1(images["cycle_A"], a)
            losses["gen_cycrecon_x_b"] = l1(images["cycle_B"], b)
        losses["gen_total"] = sum(
            weight * (losses[f"gen_{term}_a"] + losses[f"gen_{term}_b"])
            for term, weight in self.weights().items()
        )
        names = [name for name in self.loss_names if name.startswith("gen_")]
        self.update("gen", losses["gen_total"], names)
        self.results = {name: image.detach() for name, image in images.items()}

    def draw_styles(self) -> tuple[Tensor, Tensor]:
        """Styles (B, style_dim, 1, 1) of A, then of B; drawn for the whole global batch."""
        count = len(self.batch["A"])
        mine = slice(distributed.rank() * count, (distributed.rank() + 1) * count)
        drawn = (count * distributed.world_size(), self.opt.style_dim, self.device)
        return tuple(munit_networks.random_styles(*drawn)[mine] for _ in "ab")


def munit_generator(opt: Namespace) -> AdaINGenerator:
    return AdaINGenerator(opt.input_nc, opt.ngf, opt.mlp_dim, opt.style_dim, opt.n_downsample, opt.n_res)


def munit_discriminator(opt: Namespace) -> MultiScaleDiscriminator:
    return MultiScaleDiscriminator(opt.input_nc, opt.ndf, opt.n_layer, opt.num_scales)
