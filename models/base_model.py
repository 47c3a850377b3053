"""What every model shares: networks, optimisers, the guarded update, schedules, and what a resume needs.

A model is a class with one entry in `models.MODELS`. It says which networks it has and which of them learn
together (`network_names`, `groups`), builds each (`build_network`), and writes one training step
(`training_step`). CONTRIBUTING.md has the recipe.
"""

import contextlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from data.transforms import crops
from models import build
from models.optimizers import FiniteGuard, Schedule, load_moments, plateau_of_1_0
from models.speed.accelerator import Accelerator
from models.weights import load_weights, misfit, save_tensors, weights_file
from util import distributed
from util.device import get_device
from util.errors import UserError
from util.images import to_uint8

# options that a model with networks of its own lacks
NETWORK_OPTIONS = ("netG", "normG", "no_dropout", "no_antialias", "no_antialias_up")
NETWORK_OPTIONS += ("netD", "normD", "n_layers_D", "pool_size")


def require_same_channels(opt: Namespace, why: str) -> None:
    """UserError where images of A and B differ in channels."""
    if opt.input_nc != opt.output_nc:
        raise UserError(f"--input_nc {opt.input_nc} and --output_nc {opt.output_nc} differ, but {why}")


class BaseModel:
    """Networks, optimisers and one training step; without `opt.isTrain` only the networks for translating.

    A step works on `batch`, images "A" and "B" (B, C, H, W) in [-1, 1] and whatever else it reads, all on the
    device. It fills `losses`, name -> scalar, and `results`, name -> images (B, C, H, W), detached.
    """

    # ---- what a model says of itself, before it is built ----

    network_names: tuple[str, ...]  # in the order they are built; NAME is saved as EPOCH_net_NAME.pth
    groups: dict[str, tuple[str, ...]]  # the networks that one loss updates together, by a name
    loss_names: Sequence[str]  # the losses of a step, in the order to print
    visual_names: Sequence[str]  # images to show: "real_A", "real_B" and those of `results` that there are
    headline: tuple[str, ...] = ("G",)  # the bar's losses; a plateau schedule watches the first, the total
    defaults: dict[str, object] = {}  # of options, where they differ from those declared
    translation_options: tuple[str, ...] = ()  # the model's own options that translating needs too
    lacking: tuple[str, ...] = ()  # options of networks and training without use here; they are refused
    first_iteration: int = 1  # where a schedule in iterations begins
    styled: bool = False  # whether a translation takes a style, so that one image has many
    equal_sizes: bool = True  # whether a step needs images of A and B of one size
    exchanges: bool = False  # whether processes compare their images, which then need one size

    @classmethod
    def add_options(cls, add: Callable) -> None:
        """Declare the model's own options with `add(flag, default, help, ...)` (`util/arguments.py`)."""

    @classmethod
    def check(cls, opt: Namespace) -> None:
        """UserError for training options that this model cannot work with."""

    @classmethod
    def translating(cls, opt: Namespace) -> tuple[str, ...]:
        """The networks that translating in `--direction` needs; the first one makes the translation."""
        return cls.network_names[:1]

    @classmethod
    def size_limits(cls, opt: Namespace) -> tuple[int, int]:
        """What the sides of a training image must be multiples of, and their least value, in pixels."""
        with torch.device("meta"):  # shapes alone: no memory, no random number
            return build.size_multiple(opt.netG), build.build_discriminator(opt).smallest_side

    @classmethod
    def capture_obstacle(cls, opt: Namespace) -> str | None:
        """Why a CUDA graph cannot hold the step under these options; None where it can."""
        return None

    @classmethod
    def process_obstacle(cls, opt: Namespace) -> str | None:
        """Why several processes would not train as one, and what to do; None where they would."""
        mixing = [f"--{name} batch" for name in ("normG", "normD") if getattr(opt, name) == "batch"]
        if mixing or opt.netD == "trainable_attn":
            found = mixing[0] if mixing else "the mask of --netD trainable_attn"
            return f"{found} would normalise each process's images apart: use instance norm or posthoc_attn"
        if cls.exchanges and not crops(opt.preprocess):
            problem = f"--preprocess {opt.preprocess} may give processes images of different sizes"
            return f"{problem}, which they cannot compare: use a mode that crops, such as resize_and_crop"
        return None

    # ---- what a model does ----

    def build_network(self, name: str) -> nn.Module:
        """The network `name` with fresh weights; `self.networks` has those before it in `network_names`."""
        raise NotImplementedError

    def training_step(self) -> None:
        """One step on `self.batch`: fill `self.losses` and `self.results`, and `update` every group."""
        raise NotImplementedError

    def optimizer_settings(self, name: str) -> dict[str, object]:
        """What Adam is given for the network `name`."""
        return {"lr": self.opt.lr, "betas": (self.opt.beta1, self.opt.beta2)}

    def build_memories(self) -> dict[str, nn.Module]:
        """Modules whose buffers a step changes beside the networks, such as an image pool: `memories`."""
        return {}

    def translator(self) -> nn.Module:
        """The module that maps images (B, input_nc, H, W) to translations, for test.py and export."""
        return self.networks[self.translating(self.opt)[0]]

    # ---- what all models share ----

    def __init__(self, opt: Namespace):
        self.opt = opt
        self.device = get_device(opt.gpu_ids)
        self.networks: dict[str, nn.Module] = {}
        for name in self.network_names if opt.isTrain else self.translating(opt):
            self.networks[name] = self.build_network(name)
        layout = torch.channels_last if opt.channels_last else torch.preserve_format
        for net in self.networks.values():
            net.to(self.device, memory_format=layout)
        self.batch: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}
        self.results: dict[str, Tensor] = {}
        self.image_paths: list[str] = []
        self.memories: dict[str, nn.Module] = {}
        if opt.isTrain:
            self._prepare_training()
        self.accelerator = Accelerator(self)

    def _prepare_training(self) -> None:
        opt = self.opt
        self.memories = {name: memory.to(self.device) for name, memory in self.build_memories().items()}
        gradients = [self._gradient(group) for group in self.groups]
        self.guard = FiniteGuard([*self.loss_names, *gradients], self.device)
        self.optimizers: dict[str, Optimizer] = {}
        for name, net in self.networks.items():
            if parameters := list(net.parameters()):  # a network may have none
                optimizer = Adam(parameters, fused=True, **self.optimizer_settings(name))
                optimizer.found_inf = self.guard.found
                if self.device.type == "cpu":  # else each step asks CUDA, where there is one, for its stream
                    optimizer._accelerator_graph_capture_health_check = lambda: None
                    optimizer._cuda_graph_capture_health_check = lambda: None  # its older name
                self.optimizers[name] = optimizer
        self.schedule = Schedule(opt, list(self.optimizers.values()), self.first_iteration)

    def _gradient(self, group: str) -> str:
        return f"the gradient of {' and '.join(self.groups[group])}"

    def expect_images(self, paths: dict[str, Sequence[str]]) -> None:
        """Called before training with the files of each domain, the same in every process."""

    def set_input(self, batch: dict) -> None:
        """Take a batch: images "A" and "B", further tensors, and the paths "A_paths" and "B_paths"."""
        (h_A, w_A), (h_B, w_B) = (batch[domain].shape[2:] for domain in "AB")
        if self.equal_sizes and (h_A, w_A) != (h_B, w_B):
            sizes = f"an image of A has {w_A} x {h_A} pixels and the one of B beside it {w_B} x {h_B}"
            raise UserError(f"{sizes}, but a step needs one size: use a --preprocess that crops")
        self.batch = {name: self.place(value) for name, value in batch.items() if isinstance(value, Tensor)}
        self.image_paths = list(batch.get("A_paths", [])) + list(batch.get("B_paths", []))

    def place(self, tensor: Tensor) -> Tensor:
        """A tensor on the model's device, images in its memory layout."""
        if tensor.ndim != 4:
            return tensor.to(self.device)
        layout = torch.channels_last if self.opt.channels_last else torch.contiguous_format
        return tensor.to(self.device, memory_format=layout)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Under `--precision bf16`: convolutions and heads in bfloat16. What needs float32 asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.opt.precision == "bf16")

    def optimize_parameters(self) -> None:
        """One training step on the current batch, captured as the options say."""
        self.accelerator.run(self._guarded_step)
        if self.schedule.counts_steps:
            self.schedule.advance()

    def _guarded_step(self) -> None:
        self.guard.begin_step()
        self.training_step()

    def update(self, group: str, loss: Tensor, losses: Sequence[str]) -> None:
        """Descend `loss` in the networks of `group`, unless a named loss or the gradient is not finite."""
        optimizers = [self.optimizers[name] for name in self.groups[group] if name in self.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        parameters = [p for name in self.groups[group] for p in self.networks[name].parameters()]
        distributed.average_gradients(parameters)
        self.guard.check({name: self.losses[name] for name in losses}, self._gradient(group), parameters)
        for optimizer in optimizers:
            optimizer.step()

    def freeze(self, group: str, frozen: bool = True) -> None:
        """Whether the networks of `group` are constants: no gradient is computed for their weights."""
        for name in self.groups[group]:
            self.networks[name].requires_grad_(not frozen)

    def get_current_losses(self) -> dict[str, float]:
        """The losses of the last step, copied from the device in one transfer."""
        values = torch.stack([self.losses[name].detach() for name in self.loss_names]).tolist()
        return dict(zip(self.loss_names, values, strict=True))

    def get_current_visuals(self) -> dict[str, Tensor]:
        """The images of the last step by label, each (B, C, H, W) in [-1, 1]."""
        images = {"real_A": self.batch["A"], "real_B": self.batch["B"], **self.results}
        return {name: images[name].detach().float() for name in self.visual_names if name in images}

    def pictures(self) -> dict[str, np.ndarray]:
        """The first image of each of the current visuals, (H, W, 3) uint8, by label."""
        return {label: to_uint8(images) for label, images in self.get_current_visuals().items()}

    @property
    def learning_rate(self) -> float:
        return float(next(iter(self.optimizers.values())).param_groups[0]["lr"])  # of the first network

    def update_learning_rate(self, mean_loss: float | None = None) -> None:
        """After an epoch, with the mean of `headline[0]` over it, which a plateau schedule needs."""
        if not self.schedule.counts_steps:
            self.schedule.advance(mean_loss)

    def training_state(self) -> dict:
        """What a resume needs, as tensors and numbers; all processes call it, as each has its memories."""
        return {
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedule": self.schedule.state_dict(),
            "memories": {name: distributed.gather(of.state_dict()) for name, of in self.memories.items()},
        }

    def load_training_state(self, state: dict) -> None:
        """Continue from `training_state()`, with the optimisers' settings of now."""
        for name, net in self.networks.items():
            if problem := misfit(net, state["networks"][name]):
                raise UserError(f"net{name}: {problem}")
            net.load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            load_moments(optimizer, state["optimizers"][name])
        if "schedule" in state:
            self.schedule.load_state_dict(state["schedule"])
        elif self.schedule.plateau:
            self.schedule.load_state_dict(plateau_of_1_0(state, self.schedule.initial[0]))
        for name, memory in self.memories.items():
            saved = state["memories"][name]
            memory.load_state_dict(saved[distributed.rank() % len(saved)])

    def save_networks(self, folder: Path, epoch: str) -> None:
        """Write each network to `{epoch}_net_{name}.pth` in `folder`. OSError where that fails."""
        for name, net in self.networks.items():
            save_tensors(net.state_dict(), weights_file(folder, epoch, name))

    def load_networks(self, folder: Path, epoch: str) -> list[str]:
        """Load the networks saved in `folder` at `epoch`, all that translating needs; return their names."""
        files = {name: weights_file(folder, epoch, name) for name in self.networks}
        if "G_A" in files and not files["G_A"].is_file():  # one generator as CycleGAN's code publishes it
            files["G_A"] = weights_file(folder, epoch, "G")
        found = [name for name, file in files.items() if file.is_file()]
        for name in self.translating(self.opt):
            if name not in found:
                file = weights_file(folder, epoch, name).name
                raise UserError(f"{folder} has no {file} to start from: name a saved run and --epoch")
        for name in found:
            load_weights(self.networks[name], files[name])
        return found
