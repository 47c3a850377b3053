"""How the training step runs: precision, memory layout, fused layers, the whole step as one CUDA graph.

The model defines the mathematics of a step; this module changes only rounding and time.

- `--precision tf32` lets cuDNN round the inputs of convolutions to 10 bits of mantissa; bf16 is autocast.
- `--channels_last` stores images in the layout that tensor cores read. On CUDA the layers between
  convolutions then run in this project's Triton kernels (`models/speed/fused.py`): PyTorch's would convert to
  NCHW and back.
- `--cuda_graph` captures the step, from forward to the last update, once per batch size and replays it: one
  launch instead of about 1,500 (`models/speed/step_graph.py`). A capture that fails on a machine is undone
  with one warning, and training continues without it from the state it had.
"""

import os
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch

from models.speed import fused, triton_support
from models.speed.step_graph import Recording, Snapshot
from util.device import get_device
from util.errors import UserError

MOST_SHAPES = 4  # graphs kept, each with memory of its own; batches of further shapes run uncaptured


def fastest(device: torch.device) -> dict[str, object]:
    """The options that `--fast` stands for on a device (why: docs/performance.md)."""
    if device.type == "cuda":
        precision = "bf16" if is_ampere(device) else "fp32"
        return {"precision": precision, "channels_last": True, "cuda_graph": True}
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.is_file():  # matrix products of bfloat16, by AMX or AVX-512
        flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
        return {"precision": "bf16" if flags & {"amx_bf16", "avx512_bf16"} else "fp32"}
    return {}


def is_ampere(device: torch.device) -> bool:
    """Whether this is an NVIDIA GPU of the Ampere generation or a later one."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_speed(opt: Namespace, model: type) -> None:
    """Set in `opt` what `--fast` means on this device, except for given options; refuse what cannot work.

    A run saves the outcome, so it continues as it began even where `--fast` would now mean something else.
    `model` is the class of the model. UserError for an option that this device or another option rules out.
    """
    fast = "fast" in opt.given and opt.fast
    if not (fast or opt.precision == "tf32" or (opt.isTrain and opt.cuda_graph)):
        return
    device = get_device(opt.gpu_ids)
    obstacle = model.capture_obstacle(opt) if opt.isTrain else "translating is not captured"
    if not obstacle and (device.type != "cuda" or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        obstacle = "--cuda_graph needs a CUDA device and one process: give --cuda_graph false"
    if fast:
        for name, value in fastest(device).items():
            if name not in opt.given and not (name == "cuda_graph" and obstacle):
                setattr(opt, name, value)
    if opt.precision == "tf32" and not is_ampere(device):
        raise UserError("--precision tf32 needs an NVIDIA GPU, Ampere or later: give fp32 or bf16")
    if opt.isTrain and opt.cuda_graph and obstacle:
        raise UserError(obstacle)


class Accelerator:
    """Runs the steps of a `BaseModel`, whose networks are on their device, as its options say."""

    def __init__(self, model):
        self.model, opt = model, model.opt
        self.captures = opt.isTrain and opt.cuda_graph
        self.recordings: dict[tuple, Recording] = {}
        if opt.channels_last and triton_support.works(model.device):
            penalised = opt.isTrain and opt.gan_mode == "wgangp"  # the kernels have a first derivative only
            for name, net in model.networks.items():
                if hasattr(net, "run_layers") and not (penalised and name.startswith("D")):
                    net.run_layers = fused.run
        self.set_switches()
        if opt.isTrain:
            for optimizer in model.optimizers.values():  # loading replaces the tensors that a graph writes to
                optimizer.register_load_state_dict_post_hook(lambda _: self.recordings.clear())

    def set_switches(self, search: bool = False) -> None:
        """Set cuDNN's switches, which belong to the process; `search` pays only for sizes that recur."""
        if self.model.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = self.model.opt.precision == "tf32"
            torch.backends.cudnn.benchmark = search and not torch.are_deterministic_algorithms_enabled()

    def run(self, step: Callable[[], None]) -> None:
        """One training step on the model's current batch; `step` is the plain one."""
        shapes = tuple((name, tensor.shape) for name, tensor in self.model.batch.items())
        if shapes not in self.recordings and self.captures and len(self.recordings) < MOST_SHAPES:
            self._record(step, shapes)
        self.set_switches()
        if shapes in self.recordings:
            self.recordings[shapes].replay(self.model)
        else:
            step()

    def _record(self, step: Callable[[], None], shapes: tuple) -> None:
        """Capture the step on a batch of new shapes; where that fails, warn and capture no more."""
        self.set_switches(search=True)
        before = Snapshot(self.model)
        self._forget_results()
        try:
            self.recordings[shapes] = Recording(self.model, step, before, self._forget_results)
        except UserError:
            raise
        except Exception as error:  # drivers and libraries may raise anything
            self.captures = False
            self.recordings.clear()
            if self.model.device.type == "cuda":  # the interrupted step may have left work on its streams
                torch.cuda.synchronize(self.model.device)
            self._forget_results()
            before.restore()
            said = "--cuda_graph failed on this machine and is switched off; work continues without it. "
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"{said}{type(error).__name__}: {reason}", RuntimeWarning, stacklevel=3)

    def _forget_results(self) -> None:
        """Drop the last step's results: their history ties the weights' gradients to the stream it ran on."""
        self.model.losses, self.model.results = {}, {}
