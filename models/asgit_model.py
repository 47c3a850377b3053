"""ASGIT, attention-based spatial guidance (Lin et al.): generators guided by where discriminators look.

With A(x) the attention map of an image x, G_A translates a fused with A(a) (`models/attention.py`). D_A
judges B and D_B judges A, as in CycleGAN. Maps are constants: no gradient passes through them.

- `--attention_source memory` (v1): A(a) is D_A's map of the last translation of a, all ones at first
  (`models/attention_memory.py`). Reconstructions and testing have no maps.
- `--attention_source discriminator` (v2): A(a) is D_B's map of a; on the way back, D_A's map of G_A(a)
  guides G_B. Testing needs the discriminator of the source.
"""

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import build
from models.attention import FUSIONS, STAGES, GuidedTranslator, normalise_map, resize_map
from models.attention_memory import AttentionMemory
from models.base_model import BaseModel
from models.cycle_gan_model import CycleGANModel
from models.gan_loss import gan_loss
from models.layers import full, l1
from models.sides import OneSidedModel
from util.arguments import real_number
from util.errors import UserError

JUDGE = {"A": "D_B", "B": "D_A"}  # the discriminator that judges images of a domain


def remembers(opt: Namespace) -> bool:
    """Whether maps come from the memory."""
    return opt.attention_fusion != "none" and getattr(opt, "attention_source", "memory") == "memory"


class GuidedModel(BaseModel):
    """Precedes the class of the model that it guides.

    The `maps` (B, 1, h, w) in [0, 1] of a step join its `results`: those that guided images of A as "attn_A",
    and with a memory those to keep for them as "next_A".
    """

    sources: tuple[str, ...]  # the domains whose images are translated
    translation_options = ("attention_fusion", "attention_stage")
    exchanges = True

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        staged = {"attention_fusion": tuple(name for name, fusion in FUSIONS.items() if not fusion.extra_nc)}
        how = "how a map A in [0, 1] guides G: rmult x (1 + A), mult x A, alpha a further channel, none: not"
        where = "what is fused: F0 the image, F1 before the halvings, F2 after; F3 after 4 blocks, F4 all"
        add("--attention_fusion", "rmult", how, choices=(*FUSIONS, "none"), scope="fixed")
        add("--attention_stage", "F0", where, choices=STAGES, only=staged, scope="fixed")

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.attention_fusion == "none":
            return
        if opt.netD not in build.ATTENDING:
            these = f"--netD {' or '.join(build.ATTENDING)}, or --attention_fusion none"
            raise UserError(f"--netD {opt.netD} does not say where it looks: give {these}")
        with torch.device("meta"):  # refuses a stage that the generator does not have
            build.build_generator(opt, fusion=opt.attention_fusion, stage=opt.attention_stage)

    def __init__(self, opt: Namespace):
        self.guides = opt.attention_fusion != "none"
        self.memory: dict[str, AttentionMemory] = {}  # by domain; also among the model's `memories`
        self.rows: dict[str, Tensor] = {}
        super().__init__(opt)

    def build_memories(self) -> dict[str, nn.Module]:
        if remembers(self.opt):
            self.memory = {domain: AttentionMemory(self.opt.dataroot) for domain in self.sources}
        maps = {f"attention_{domain}": memory for domain, memory in self.memory.items()}
        return super().build_memories() | maps

    def build_network(self, name: str) -> nn.Module:
        opt = self.opt
        if not name.startswith("G"):
            return super().build_network(name)
        guidance = {"fusion": opt.attention_fusion, "stage": opt.attention_stage} if self.guides else {}
        return build.build_generator(opt, backwards=name == "G_B", **guidance)

    def translator(self) -> nn.Module:
        networks = [self.networks[name] for name in self.translating(self.opt)]
        return GuidedTranslator(*networks) if self.guides else networks[0]

    def expect_images(self, paths: dict[str, Sequence[str]]) -> None:
        for domain, memory in self.memory.items():
            memory.add(paths[domain])

    def set_input(self, batch: dict) -> None:
        """Also "A_windows" and "B_windows" (`AttentionMemory`) for crops; without them, images are whole."""
        super().set_input(batch)
        for domain, memory in self.memory.items():
            self.rows[domain] = memory.rows(batch[f"{domain}_paths"])
            size, windows = self.batch[domain].shape[2:], self.batch.get(f"{domain}_windows")
            self.batch[f"{domain}_attention"] = memory.lookup(self.rows[domain], size, windows)

    def remember(self, domain: str, name: str, images: Tensor) -> Tensor:
        """The adversarial loss of images under D `name`; the same pass gives the map to keep of a domain."""
        score, raw = self.networks[name].attend(images)
        self.maps[f"next_{domain}"] = normalise_map(raw.detach())
        return gan_loss(self.opt.gan_mode, score, True)

    def observe(self, images: Tensor) -> Tensor:
        """The maps (B, 1, h, w) in [0, 1] that a training would use next for images (B, C, H, W)."""
        raise NotImplementedError

    def optimize_parameters(self) -> None:
        """One training step; then its maps are remembered, which no captured step could do."""
        super().optimize_parameters()
        for domain, memory in self.memory.items():
            windows = self.batch.get(f"{domain}_windows")
            memory.store(self.rows[domain], self.results[f"next_{domain}"], windows)

    def get_current_visuals(self) -> dict[str, Tensor]:
        """As the base's; "attn_A" is the map of real_A at its size, 0 black and 1 white."""
        visuals = super().get_current_visuals()
        for domain in self.sources if self.guides else ():
            size = self.batch[domain].shape[2:]
            visuals[f"attn_{domain}"] = 2 * resize_map(visuals[f"attn_{domain}"], size) - 1
        return visuals

    def load_training_state(self, state: dict) -> None:
        if "attention" in state:  # saved by a version that kept maps beside the memories
            maps = {f"attention_{name}": [{"_extra_state": of}] for name, of in state["attention"].items()}
            state = {**state, "memories": state["memories"] | maps}
        super().load_training_state(state)


class ASGITModel(GuidedModel, CycleGANModel):
    """`--model asgit`."""

    sources = ("A", "B")
    equal_sizes = True  # a map of one domain stands beside images of both
    visual_names = (
        *("real_A", "attn_A", "fake_B", "rec_A", "idt_B"),
        *("real_B", "attn_B", "fake_A", "rec_B", "idt_A"),
    )
    defaults = {**CycleGANModel.defaults, "netD": "posthoc_attn", "lambda_identity": 0.0}
    translation_options = (*GuidedModel.translation_options, "attention_source")

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        source = {"choices": ("memory", "discriminator"), "only": {"attention_fusion": tuple(FUSIONS)}}
        whose = "maps are of D's last look at an image's translation, or of D's look at the image itself"
        add("--attention_source", "memory", whose, **source, scope="fixed")
        add("--use_rec", False, "show the discriminators reconstructions too, as fakes")

    @classmethod
    def translating(cls, opt: Namespace) -> tuple[str, ...]:
        (generator,) = super().translating(opt)
        if opt.attention_fusion == "none" or remembers(opt):
            return (generator,)
        return (generator, JUDGE[generator[-1]])

    def training_step(self) -> None:
        self.maps: dict[str, Tensor] = {}
        super().training_step()
        self.results |= self.maps

    def forward(self) -> dict[str, Tensor]:
        if not self.guides:
            return super().forward()
        real_A, real_B = self.batch["A"], self.batch["B"]
        G_A, G_B = self.networks["G_A"], self.networks["G_B"]
        if self.memory:
            map_A, map_B = self.batch["A_attention"], self.batch["B_attention"]
        else:
            map_A, map_B = self.look("A", real_A), self.look("B", real_B)
        self.maps |= {"attn_A": map_A, "attn_B": map_B}
        images = {"fake_B": G_A(real_A, map_A), "fake_A": G_B(real_B, map_B)}
        images["rec_A"] = G_B(images["fake_B"], self.look("B", images["fake_B"]))
        images["rec_B"] = G_A(images["fake_A"], self.look("A", images["fake_A"]))
        if self.opt.lambda_identity > 0:
            images["idt_A"] = G_A(real_B, None if self.memory else map_B)
            images["idt_B"] = G_B(real_A, None if self.memory else map_A)
        return images

    @torch.no_grad()
    def look(self, domain: str, images: Tensor) -> Tensor | None:
        """The discriminator's map of a domain's images (B, C, H, W); None where maps come from the memory."""
        return None if self.memory else normalise_map(self.networks[JUDGE[domain]].raw_map(images))

    def adversarial(self, name: str, fake: Tensor) -> Tensor:
        # D_A judges translations of A
        return self.remember(name[-1], name, fake) if self.memory else super().adversarial(name, fake)

    def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """As CycleGAN's, + GAN(D(reconstruction), fake) / 2 with `--use_rec`."""
        loss = super().discriminator_loss(name, real, fake)
        if self.opt.use_rec:
            seen = self.networks[name](self.results["rec_B" if name == "D_A" else "rec_A"])
            loss = loss + 0.5 * gan_loss(self.opt.gan_mode, seen, False)
        return loss

    def observe(self, images: Tensor) -> Tensor:
        """With a memory D_A's maps of translations of A, else D_B's of A itself (from A to B)."""
        generator, *judge = self.translating(self.opt)
        if judge:
            return self.translator().attention(images)
        return normalise_map(self.networks[f"D_{generator[-1]}"].raw_map(self.translator()(images)))


class ASGITSupervisedModel(GuidedModel, OneSidedModel):
    """`--model asgit_supervised`: pix2pix (Isola et al., CVPR 2017) guided by its discriminator's attention.

    G translates a of A to its counterpart b of B, fused with D's map of the last pair (a, G(a)), which a
    memory keeps; all ones at first. D judges pairs (a, b), joined along channels. G's loss is (its eq. 4)

        lambda_GAN GAN(D, (a, G(a))) + lambda_L1 |G(a) - b|

    Testing has no maps. With `--attention_fusion none` it is pix2pix, but for its norms.
    """

    network_names = ("G", "D")
    groups = {"D": ("D",), "G": ("G",)}
    sources = ("A",)
    headline = ("G", "G_L1")
    loss_names = ("G_GAN", "G_L1", "D_real", "D_fake", "G")
    visual_names = ("real_A", "attn_A", "fake_B", "real_B")
    defaults = {"dataset_mode": "aligned", "netG": "unet_128", "netD": "posthoc_attn", "gan_mode": "vanilla"}
    defaults |= {"no_dropout": False, "no_antialias": True, "no_antialias_up": True, "init_type": "normal"}
    defaults |= {"n_epochs": 100, "n_epochs_decay": 100, "crop_late": True}
    defaults |= {"load_size": 143, "crop_size": 128}
    defaults |= {"eval": False}  # translated with dropout, normalised by each image's own statistics

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--lambda_L1", 100.0, "weight of the distance from the paired image", type=real_number(0))

    def build_network(self, name: str) -> nn.Module:
        if name == "D":
            return build.build_discriminator(self.opt, self.opt.input_nc + self.opt.output_nc)
        return super().build_network(name)

    def training_step(self) -> None:
        """Forward, D's update, G's update."""
        real_A, real_B = self.batch["A"], self.batch["B"]
        self.maps = {"attn_A": self.batch["A_attention"]} if self.guides else {}
        with self.autocast():
            fake_B = self.netG(real_A, *self.maps.values())
        fake_pair = torch.cat([real_A, full(fake_B)], 1)  # (B, input_nc + output_nc, H, W)
        self.freeze("D", False)
        self.losses["G_GAN"] = self.step_D(torch.cat([real_A, real_B], 1), fake_pair)
        self.losses["G_L1"] = self.opt.lambda_L1 * l1(fake_B, real_B)
        self.losses["G"] = self.losses["G_GAN"] + self.losses["G_L1"]
        self.update("G", self.losses["G"], ["G_GAN", "G_L1", "G"])
        self.results = {"fake_B": fake_B.detach(), **self.maps}

    def adversarial(self, pairs: Tensor) -> Tensor:
        return self.remember("A", "D", pairs) if self.memory else super().adversarial(pairs)

    def observe(self, images: Tensor) -> Tensor:
        pairs = torch.cat([images, self.translator()(images)], 1)
        return normalise_map(self.networks["D"].raw_map(pairs))
