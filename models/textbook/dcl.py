"""The textbook step of DCLGAN and two-sided QS-Attn, in the released order.

Every image and every score has a pass of its own, encoding is separate from generating, and logits are the
released ones: the positive, then all similarities, with -10 in place of those of a patch with itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.textbook.cut import TextbookContrast
from models.textbook.two_sided import TextbookTwoSided


class TextbookDCL(TextbookContrast, TextbookTwoSided):
    """Forward, both discriminators, then generators and heads."""

    def optimize_parameters(self) -> None:
        opt, nets, losses = self.opt, self.networks, self.losses
        real_A, real_B = self.model.batch["A"], self.model.batch["B"]
        fake_B = nets["G_A"](real_A)
        fake_A = nets["G_B"](real_B)
        if opt.lambda_IDT > 0:
            idt_A = nets["G_A"](real_B)
            idt_B = nets["G_B"](real_A)

        self.update_discriminators(fake_A, fake_B)

        self.freeze("D")
        losses["G_A"] = opt.lambda_GAN * self.model.gan_loss(nets["D_A"](fake_B), True)
        losses["G_B"] = opt.lambda_GAN * self.model.gan_loss(nets["D_B"](fake_A), True)
        losses["NCE1"] = losses["NCE2"] = losses["idt_A"] = losses["idt_B"] = fake_A.new_zeros(())
        if opt.lambda_NCE > 0:
            losses["NCE1"], losses["NCE2"] = self.NCE_losses(real_A, fake_B, real_B, fake_A)
        if opt.lambda_IDT > 0:
            losses["idt_A"] = opt.lambda_IDT * (idt_A - real_B).abs().mean()
            losses["idt_B"] = opt.lambda_IDT * (idt_B - real_A).abs().mean()
        losses["G"] = (
            (losses["G_A"] + losses["G_B"]) * 0.5
            + (losses["NCE1"] + losses["NCE2"]) * 0.5
            + (losses["idt_A"] + losses["idt_B"]) * 0.5
        )
        self.update("G", losses["G"])

    def NCE_losses(self, real_A: Tensor, fake_B: Tensor, real_B: Tensor, fake_A: Tensor) -> list[Tensor]:
        """lambda_NCE * PatchNCE of A and of B with their translations, mean over patches and layers."""
        layers, nets = self.opt.nce_layers, self.networks
        sources = [nets["G_A"].encode(real_A, layers), nets["G_B"].encode(real_B, layers)]
        targets = [nets["G_B"].encode(fake_B, layers), nets["G_A"].encode(fake_A, layers)]
        heads = [(nets["F1"], nets["F2"]), (nets["F2"], nets["F1"])]
        totals = [0.0, 0.0]
        for number in range(len(layers)):
            for term in range(2):
                source = self.model.prepare_features(number, sources[term][number])
                target = self.model.prepare_features(number, targets[term][number])
                keys, queries = self.patches(number, source, target)  # (B, N, C)
                of_source, of_target = heads[term]
                keys, queries = of_source(number, keys).detach(), of_target(number, queries)
                totals[term] = totals[term] + self.patchnce(queries.flatten(0, 1), keys.flatten(0, 1))
        return [self.opt.lambda_NCE * total / len(layers) for total in totals]

    def patchnce(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The mean loss of queries (P, D), of all images of a batch, against their keys (P, D)."""
        positives = (queries * keys).sum(1, keepdim=True)  # (P, 1)
        itself = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
        negatives = (queries @ keys.mT).masked_fill(itself, -10.0)  # (P, P)
        logits = torch.cat([positives, negatives], 1) / self.opt.nce_T
        return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))
