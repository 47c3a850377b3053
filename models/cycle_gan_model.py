"""CycleGAN: unpaired translation both ways with cycle consistency (Zhu et al., ICCV 2017)."""

from argparse import Namespace

from torch import Tensor

from models.base_model import require_same_channels
from models.layers import l1
from models.sides import TwoSidedModel
from util.arguments import real_number


class CycleGANModel(TwoSidedModel):
    """`--model cycle_gan`. With a of A and b of B, the generators' loss is (sec. 3.2)

        GAN(D_A, G_A(a)) + GAN(D_B, G_B(b))
        + lambda_A |G_B(G_A(a)) - a| + lambda_B |G_A(G_B(b)) - b|
        + lambda_identity (lambda_B |G_A(b) - b| + lambda_A |G_B(a) - a|)

    with L1 distances. The discriminators see translations from a pool; without one (`--pool_size 0`) images
    of A and B may differ in size.
    """

    equal_sizes = False
    loss_names = ("D_A", "G_A", "cycle_A", "idt_A", "D_B", "G_B", "cycle_B", "idt_B", "G")
    visual_names = ("real_A", "fake_B", "rec_A", "idt_B", "real_B", "fake_A", "rec_B", "idt_A")
    defaults = {"n_epochs": 100, "n_epochs_decay": 100, "crop_late": True, "pool_size": 50}
    defaults |= {"init_type": "normal", "no_antialias": True, "no_antialias_up": True}

    @classmethod
    def add_options(cls, add) -> None:
        add("--lambda_A", 10.0, "weight of the cycle A to B to A", type=real_number(0))
        add("--lambda_B", 10.0, "weight of the cycle B to A to B", type=real_number(0))
        add("--lambda_identity", 0.5, "weight of the identity, times lambda_A or _B", type=real_number(0))

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.lambda_identity > 0:
            require_same_channels(opt, "G's identity has images of its target: give --lambda_identity 0")

    def training_step(self) -> None:
        """Forward both ways, the generators' update, the discriminators' update."""
        with self.autocast():
            images = self.forward()
        self.freeze("D")
        with self.autocast():
            loss_G = self.generator_loss(images)
        self.update("G", loss_G, [name for name in self.loss_names if not name.startswith("D_")])
        self.results = {name: image.detach() for name, image in images.items()}
        self.update_discriminators(self.results["fake_A"], self.results["fake_B"])

    def forward(self) -> dict[str, Tensor]:
        """Translations, reconstructions and, where they have a weight, identities: name -> (B, C, H, W)."""
        real_A, real_B = self.batch["A"], self.batch["B"]
        images = {}
        if self.opt.lambda_identity > 0:
            images["fake_B"], images["idt_A"], _ = self.generate("G_A", real_A, real_B)
            images["fake_A"], images["idt_B"], _ = self.generate("G_B", real_B, real_A)
        else:
            images["fake_B"], images["fake_A"] = self.networks["G_A"](real_A), self.networks["G_B"](real_B)
        images["rec_A"] = self.networks["G_B"](images["fake_B"])
        images["rec_B"] = self.networks["G_A"](images["fake_A"])
        return images

    def generator_loss(self, images: dict[str, Tensor]) -> Tensor:
        opt, losses = self.opt, self.losses
        real_A, real_B = self.batch["A"], self.batch["B"]
        losses["G_A"] = self.adversarial("D_A", images["fake_B"])
        losses["G_B"] = self.adversarial("D_B", images["fake_A"])
        losses["cycle_A"] = opt.lambda_A * l1(images["rec_A"], real_A)
        losses["cycle_B"] = opt.lambda_B * l1(images["rec_B"], real_B)
        losses["idt_A"] = losses["idt_B"] = losses["G_A"].new_zeros(())
        if opt.lambda_identity > 0:
            losses["idt_A"] = opt.lambda_identity * opt.lambda_B * l1(images["idt_A"], real_B)
            losses["idt_B"] = opt.lambda_identity * opt.lambda_A * l1(images["idt_B"], real_A)
        losses["G"] = sum(losses[name] for name in ("G_A", "G_B", "cycle_A", "cycle_B", "idt_A", "idt_B"))
        return losses["G"]
