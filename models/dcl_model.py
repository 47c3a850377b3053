"""DCLGAN: contrastive translation both ways (Han et al., CVPR Workshops 2021).

A source is encoded by the generator that translates it, its translation by the other one, so that neither
encoder sees a domain it does not translate from.
"""

from argparse import Namespace

import torch
from torch import Tensor, nn

from models import build
from models.base_model import require_same_channels
from models.cut_model import ContrastModel
from models.layers import l1
from models.sides import TwoSidedModel
from util import distributed
from util.arguments import real_number

# term: the generator and head that encode the source, and those that encode its translation
TERMS = {"NCE1": ("G_A", "F1", "G_B", "F2"), "NCE2": ("G_B", "F2", "G_A", "F1")}


class DCLModel(ContrastModel, TwoSidedModel):
    """`--model dcl`. With a of A and b of B, the loss of generators and heads is (sec. 3)

        lambda_GAN (GAN(D_A, G_A(a)) + GAN(D_B, G_B(b))) / 2
        + lambda_NCE (PatchNCE(F1(G_A a), F2(G_B G_A(a))) + PatchNCE(F2(G_B b), F1(G_A G_B(b)))) / 2
        + lambda_IDT (|G_A(b) - b| + |G_B(a) - a|) / 2

    where the G of a PatchNCE are encoders. Keys (of the sources) are constants. All patches of a batch are
    negatives of each other, as in the released code (in CUT: those of one image).
    """

    network_names = ("G_A", "G_B", "D_A", "D_B", "F1", "F2")
    groups = {"D": ("D_A", "D_B"), "G": ("G_A", "G_B", "F1", "F2")}
    loss_names = ("D_A", "G_A", "NCE1", "idt_A", "D_B", "G_B", "NCE2", "idt_B", "G")
    visual_names = ("real_A", "fake_B", "idt_B", "real_B", "fake_A", "idt_A")
    headline = ("G", "NCE1", "NCE2")
    defaults = {"gan_mode": "hinge", "lambda_NCE": 2.0, "nce_layers": [4, 8, 12, 16]}
    exchanges = True

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add("--lambda_GAN", 1.0, "weight of the adversarial loss", type=real_number(0))
        add("--lambda_IDT", 1.0, "weight of the identity terms", type=real_number(0))

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.lambda_IDT > 0:
            require_same_channels(opt, "G's identity has images of its target: give --lambda_IDT 0")

    def build_network(self, name: str) -> nn.Module:
        if name.startswith("F"):
            return build.build_heads(self.opt, self.networks["G_A" if name == "F1" else "G_B"])
        return super().build_network(name)

    def optimizer_settings(self, name: str) -> dict[str, object]:
        """The heads have Adam's own defaults, whatever `--lr` and `--beta1` are, as in the released code."""
        if name.startswith("F"):
            return {"lr": 1e-3, "betas": (0.9, 0.999)}
        return super().optimizer_settings(name)

    def training_step(self) -> None:
        """Forward both ways, the discriminators' update, the update of generators and heads."""
        with self.autocast():
            images, features = self.forward()
        self.results = {name: image.detach() for name, image in images.items()}
        self.update_discriminators(self.results["fake_A"], self.results["fake_B"])
        self.freeze("D")
        # Two contexts: weight casts cached under no_grad would be reused for the queries, without gradient.
        with self.autocast():
            sources = self.contrast_sources(features)
        with self.autocast():
            loss_G = self.generator_loss(images, sources)
        self.update("G", loss_G, [name for name in self.loss_names if not name.startswith("D_")])

    def forward(self) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Translations and, if they have a weight, identities by name; features of the sources by term."""
        images, features, layers = {}, {}, self.opt.nce_layers
        for term, name, own, other in (("NCE1", "G_A", "A", "B"), ("NCE2", "G_B", "B", "A")):
            source, target = self.batch[own], self.batch[other] if self.opt.lambda_IDT > 0 else None
            fake, identity, features[term] = self.generate(name, source, target, layers)
            if not self.opt.no_dropout:
                features[term] = self.networks[name].encode(source, layers)
            images |= {f"fake_{other}": fake, f"idt_{own}": identity}
        return {name: image for name, image in images.items() if image is not None}, features

    def contrast_sources(self, features: dict[str, list[Tensor]]) -> dict[str, tuple[list, list]]:
        """The patches chosen at each tapped layer of the sources of each term, and their keys (B, P, D)."""
        if self.opt.lambda_NCE == 0:
            return dict.fromkeys(TERMS, ([], []))
        features = {term: self.prepared(features[term]) for term in TERMS}
        chosen = {term: [] for term in TERMS}
        for number in range(len(self.opt.nce_layers)):
            for term in TERMS:
                chosen[term].append(self.choose_patches(number, features[term][number]))
        with torch.no_grad():
            heads = {term: self.networks[head] for term, (_, head, _, _) in TERMS.items()}
            return {t: (chosen[t], self.embed(heads[t], chosen[t], features[t])) for t in TERMS}

    def generator_loss(self, images: dict[str, Tensor], sources: dict[str, tuple]) -> Tensor:
        opt, losses = self.opt, self.losses
        losses["G_A"] = opt.lambda_GAN * self.adversarial("D_A", images["fake_B"])
        losses["G_B"] = opt.lambda_GAN * self.adversarial("D_B", images["fake_A"])
        losses["NCE1"] = self.contrastive("NCE1", sources["NCE1"], images["fake_B"])
        losses["NCE2"] = self.contrastive("NCE2", sources["NCE2"], images["fake_A"])
        losses["idt_A"] = losses["idt_B"] = losses["G_A"].new_zeros(())
        if opt.lambda_IDT > 0:
            losses["idt_A"] = opt.lambda_IDT * l1(images["idt_A"], self.batch["B"])
            losses["idt_B"] = opt.lambda_IDT * l1(images["idt_B"], self.batch["A"])
        terms = ("G_A", "G_B", "NCE1", "NCE2", "idt_A", "idt_B")
        losses["G"] = sum(losses[name] for name in terms) / 2
        return losses["G"]

    def contrastive(self, term: str, source: tuple[list, list], fake: Tensor) -> Tensor:
        """lambda_NCE * PatchNCE of translations and their sources, mean over patches and layers."""
        if self.opt.lambda_NCE == 0:
            return fake.new_zeros((), dtype=torch.float32)
        chosen, keys = source
        _, _, encoder, head = TERMS[term]
        targets = self.prepared(self.networks[encoder].encode(fake, self.opt.nce_layers))
        queries = self.embed(self.networks[head], chosen, targets)
        # patches of all images are negatives of each other, and those of other processes: (1, B*P, D)
        queries = [of_layer.flatten(0, 1)[None] for of_layer in queries]
        keys = [distributed.with_others(of_layer.flatten(0, 1)[None], 1) for of_layer in keys]
        return self.opt.lambda_NCE * self.patchnce.of_layers(queries, keys).mean()
