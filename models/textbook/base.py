"""What the textbook steps share: textbook networks on a model's weights, their optimisers, the update."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam

from models.base_model import BaseModel
from models.textbook.layers import plain_network


class TextbookStep:
    """A textbook step on the weights of a model, under that model's options. Float32, eager, NCHW.

    Args:
        model: gives weights, options and the batch (`model.set_input`); its own optimisers are not used.
    """

    def __init__(self, model: BaseModel):
        self.model, self.opt = model, model.opt
        self.networks = {name: plain_network(net) for name, net in model.networks.items()}
        self.losses: dict[str, Tensor] = {}
        self.optimizers = {
            name: Adam(net.parameters(), **model.optimizer_settings(name))
            for name, net in self.networks.items()
            if list(net.parameters())
        }

    def optimize_parameters(self) -> None:
        """One training step on the model's current batch."""
        raise NotImplementedError

    def update(self, group: str, loss: Tensor) -> None:
        """Descend `loss` in the networks of one of the model's groups."""
        names = self.model.groups[group]
        optimizers = [self.optimizers[name] for name in names if name in self.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def freeze(self, group: str, frozen: bool = True) -> None:
        """Whether the networks of `group` are constants."""
        for name in self.model.groups[group]:
            self.networks[name].requires_grad_(not frozen)

    def translate(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) translated one after the other by the textbook generator."""
        net = self.networks[self.model.translating(self.opt)[0]]
        with torch.inference_mode():
            return torch.cat([net(image[None]) for image in images])

    def get_current_losses(self) -> dict[str, float]:
        """The losses of the last step."""
        return {name: self.losses[name].item() for name in self.model.loss_names}
