"""How the training step runs: precision, memory layout, fused layers, the whole step as one CUDA graph.

The model defines the mathematics of a step; this module changes only rounding and time. It checks
`--precision`, `--channels_last` and `--cuda_graph`, and carries out all but the layout
(`models/speed/step_graph.py` captures and replays the graph). A capture that fails on a machine is undone
with one warning, and training continues without it from the state it had.

- tf32 lets cuDNN round the inputs of convolutions to 10 bits of mantissa; matrix products of scores stay
  float32. bf16 is autocast: convolutions, heads and routing in bfloat16; ranking, attention, statistics,
  softmax, losses and weights in float32.
- `--channels_last` stores images in the layout that tensor cores read. On CUDA the layers between
  convolutions then run in this project's Triton kernels (`models/speed/fused.py`): PyTorch's would convert to
  NCHW and back.
- `--cuda_graph` captures the step, from forward to the last update, once per batch size and replays it: one
  launch instead of about 1,500. Random positions are drawn on the device, the same as without the graph.
"""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from models.speed import fused, triton_support
from models.speed.step_graph import Recording, Snapshot
from util.device import get_device
from util.errors import UserError

MOST_SHAPES = 4  # graphs kept, each with memory of its own; batches of further shapes run uncaptured


def fastest(device: torch.device) -> dict[str, object]:
    """The options that `--fast` stands for on a device (why: docs/performance.md)."""
    if device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return {"precision": "bf16" if bf16 else "fp32", "channels_last": True, "cuda_graph": True}
    if device.type == "cpu":
        return {"precision": "bf16" if cpu_has_bf16() else "fp32"}
    return {}


def cpu_has_bf16() -> bool:
    """Whether the processor has bfloat16 matrix products (AMX or AVX-512 BF16), from /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split() if cpuinfo.is_file() else []
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def choose_speed(opt: Namespace, model: type) -> None:
    """Set in `opt` what `--fast` means on this device, except for given options; refuse what cannot work.

    A run saves the outcome, so it continues as it began even where `--fast` would now mean something else.

    `model` is the class of the model. UserError for an option that this device or another option rules out.
    """
    fast = "fast" in opt.given and opt.fast
    graph = opt.isTrain and opt.cuda_graph
    if not (fast or graph or opt.precision == "tf32"):
        return
    device = get_device(opt.gpu_ids)
    if fast:
        for name, value in fastest(device).items():
            if name not in opt.given and _obstacle(name, value, opt, model, device) is None:
                setattr(opt, name, value)
    for name in ("precision", *(["cuda_graph"] if opt.isTrain else [])):
        if reason := _obstacle(name, getattr(opt, name), opt, model, device):
            raise UserError(reason)


def _obstacle(name: str, value: object, opt: Namespace, model: type, device: torch.device) -> str | None:
    """Why an option cannot have this value, and what to do; None where it can."""
    where = {"cpu": "the CPU", "mps": "Apple's GPU", "cuda": "a CUDA device"}[device.type]
    if (name, value) == ("precision", "tf32"):
        if device.type != "cuda":
            return f"--precision tf32 is a mode of NVIDIA GPUs, but this runs on {where}: give fp32 or bf16"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "--precision tf32 needs an Ampere GPU or a later one: give --precision fp32"
    if (name, value) == ("cuda_graph", True):
        if reason := model.capture_obstacle(opt):
            return reason
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            return "--cuda_graph captures the step of one process alone: give --cuda_graph false"
        if device.type != "cuda":
            return f"--cuda_graph needs a CUDA device, but this runs on {where}: give --cuda_graph false"
    return None


class Accelerator:
    """Runs the steps of a `BaseModel`, whose networks are on their device, as its options say."""

    def __init__(self, model):
        self.model = model
        self.captures = model.opt.isTrain and model.opt.cuda_graph
        self.recordings: dict[tuple, Recording] = {}
        self.fused = list(self._fuse_networks())
        self.set_switches()
        if model.opt.isTrain:
            for optimizer in model.optimizers.values():  # loading replaces the tensors that a graph writes to
                optimizer.register_load_state_dict_post_hook(lambda _: self.recordings.clear())

    def set_switches(self, search: bool = False) -> None:
        """Set cuDNN's switches, which belong to the process; `search` pays only for sizes that recur."""
        if self.model.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = self.model.opt.precision == "tf32"
            torch.backends.cudnn.benchmark = search and not torch.are_deterministic_algorithms_enabled()

    def _fuse_networks(self) -> Iterator[nn.Module]:
        opt, device = self.model.opt, self.model.device
        if opt.channels_last and triton_support.works(device):
            twice = self.model.differentiated_twice(opt)  # the kernels have a first derivative only
            for name, net in self.model.networks.items():
                if hasattr(net, "run_layers") and name not in twice:
                    net.run_layers = fused.run
                    yield net

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
            reason = str(error).strip().splitlines() or ["no reason given"]
            warnings.warn(
                "--cuda_graph failed on this machine and is switched off; work continues without it. "
                f"{type(error).__name__}: {reason[0]}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _forget_results(self) -> None:
        """Drop the last step's results: their history ties the weights' gradients to the stream it ran on."""
        self.model.losses, self.model.results = {}, {}
