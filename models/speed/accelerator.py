"""How the training step runs: precision, memory layout, compiled networks, the whole step as one CUDA graph.

The model defines the mathematics of a step; this module changes only rounding and time. It checks
`--precision`, `--channels_last`, `--compile` and `--cuda_graph`, and carries out all but the layout
(`models/speed/step_graph.py` captures and replays the graph). An option that fails on a machine is undone
with one warning, and training continues without it from the state it had.

- tf32 lets cuDNN round the inputs of convolutions to 10 bits of mantissa; matrix products of scores stay
  float32. bf16 is autocast: convolutions, heads and routing in bfloat16; ranking, attention, statistics,
  softmax, losses and weights in float32.
- `--channels_last` stores images in the layout that tensor cores read. On CUDA the layers between
  convolutions then run in this project's Triton kernels (`models/speed/fused.py`): PyTorch's would convert to
  NCHW and back.
- `--compile` leaves these layers to torch.compile instead. The heads are not compiled: they are two small
  matrix products each, in ten variants (five layers, with and without gradient). Inductor runs in its default
  mode: convolutions remain cuDNN's, and graphs of single passes would conflict with `--cuda_graph`.
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
from models.speed.streams import SideStream
from util.device import get_device
from util.errors import UserError

MOST_SHAPES = 4  # graphs kept, each with memory of its own; batches of further shapes run uncaptured


def fastest(device: torch.device) -> dict[str, object]:
    """The options that `--fast` stands for on a device (why: docs/performance.md)."""
    if device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return {
            "precision": "bf16" if bf16 else "fp32",
            "channels_last": True,
            "cuda_graph": True,
        }
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

    Args:
        model: the model's class, which knows what its step rules out.

    Raises:
        UserError: an option that this device or another option rules out.
    """
    fast = "fast" in opt.given and opt.fast
    graph = opt.isTrain and opt.cuda_graph
    if not (fast or graph or opt.compile or opt.precision == "tf32"):
        return
    device = get_device(opt.gpu_ids)
    if fast:
        for name, value in fastest(device).items():
            if name not in opt.given and _obstacle(name, value, opt, model, device) is None:
                setattr(opt, name, value)
    for name in ("precision", "compile", *(["cuda_graph"] if opt.isTrain else [])):
        if reason := _obstacle(name, getattr(opt, name), opt, model, device):
            raise UserError(reason)


def _obstacle(name: str, value: object, opt: Namespace, model: type, device: torch.device) -> str | None:
    """Why an option cannot have this value, and what to do; None where it can."""
    where = {"cpu": "the CPU", "mps": "Apple's GPU", "cuda": "a CUDA device"}[device.type]
    if (name, value) == ("precision", "tf32"):
        if device.type != "cuda":
            return (
                f"--precision tf32 is a mode of NVIDIA GPUs, but this runs on {where}: "
                "give --precision fp32 or bf16"
            )
        if torch.cuda.get_device_capability(device) < (8, 0):
            return (
                "--precision tf32 needs an Ampere GPU or a later one (compute capability 8.0): "
                "give --precision fp32"
            )
    if (name, value) == ("compile", True) and opt.isTrain and model.differentiated_twice(opt):
        return (
            f"--compile cannot serve --gan_mode {opt.gan_mode}, whose penalty differentiates D twice: "
            "give --compile false"
        )
    if (name, value) == ("cuda_graph", True):
        if reason := model.capture_obstacle(opt):
            return reason
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            return "--cuda_graph captures the step of one process alone: give --cuda_graph false"
        if device.type != "cuda":
            return f"--cuda_graph needs a CUDA device, but this runs on {where}: give --cuda_graph false"
    return None


class Accelerator:
    """Runs the steps of a model as its options say.

    Args:
        model: a `BaseModel` with its networks on their device.
    """

    def __init__(self, model):
        self.model = model
        self.captures = model.opt.isTrain and model.opt.cuda_graph
        self.recordings: dict[tuple, Recording] = {}
        self.proven: set[tuple] = set()  # shapes of batches whose step has run through
        self.passes = list(self._compile_passes()) if model.opt.compile else []
        self.fused = [] if self.passes else list(self._fuse_networks())
        self.set_switches()
        if model.opt.isTrain:
            for optimizer in model.optimizers.values():  # loading replaces the tensors that a graph writes to
                optimizer.register_load_state_dict_post_hook(lambda _: self.recordings.clear())

    def set_switches(self) -> None:
        """Set cuDNN's and the kernels' switches, which belong to the process, for this model's next step."""
        opt = self.model.opt
        if self.model.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = opt.precision == "tf32"
            # captured sizes recur, which repays a search for the fastest algorithm
            torch.backends.cudnn.benchmark = (
                self.captures and not torch.are_deterministic_algorithms_enabled()
            )

    def _compile_passes(self) -> Iterator[_CompiledPass]:
        for net in self.model.networks.values():
            for method in getattr(net, "compiled_methods", ()):
                compiled = _CompiledPass(getattr(net, method), self.give_up_compiling)
                setattr(net, method, compiled)  # on the object: keys and classes of networks stay
                yield compiled

    def _fuse_networks(self) -> Iterator[nn.Module]:
        opt, device = self.model.opt, self.model.device
        if opt.channels_last and triton_support.works(device):
            twice = self.model.differentiated_twice(opt)  # the kernels have a first derivative only
            for name, net in self.model.networks.items():
                if hasattr(net, "run_layers") and name not in twice:
                    net.run_layers = fused.run
                    yield net

    def give_up_compiling(self, error: Exception) -> None:
        """Run the networks uncompiled from here on."""
        self.passes = []
        for net in self.model.networks.values():
            for method in getattr(net, "compiled_methods", ()):
                net.__dict__.pop(method, None)
        _warn("--compile", _described(error))

    def run(self, step: Callable[[], None]) -> None:
        """One training step on the model's current batch; `step` is the plain one."""
        self.set_switches()
        shapes = tuple((name, tensor.shape) for name, tensor in self.model.batch.items())
        if shapes not in self.recordings and shapes not in self.proven:
            self._try(step, shapes)
        recording = self.recordings.get(shapes)
        if recording is None:
            step()
            self.proven.add(shapes)
        else:
            recording.replay(self.model)

    def _try(self, step: Callable[[], None], shapes: tuple) -> None:
        """Run the step on a batch of new shapes compiled and captured, as asked for, without what fails.

        This is a rehearsal: the state is restored afterwards, random generators included.
        """
        capture = self.captures and len(self.recordings) < MOST_SHAPES
        if not (self.passes or capture):
            return
        before = Snapshot(self.model)
        self._forget_results()
        if self.passes:
            try:
                rehearsal = SideStream(self.model.device)
                with rehearsal:
                    step()
                rehearsal.join()
            except UserError:
                raise
            # a compiler may raise anything; an error of the step itself is raised again without it
            except Exception as error:
                if self.passes:
                    self.give_up_compiling(error)
            self._undo(before)
        if capture:
            try:
                self.recordings[shapes] = Recording(self.model, step, before, self._forget_results)
            except UserError:
                raise
            except Exception as error:
                self.captures = False
                self.recordings.clear()
                self._undo(before)
                _warn("--cuda_graph", _described(error))

    def _undo(self, before: Snapshot) -> None:
        """Restore the state, after all streams have finished what an interrupted step left on them."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self._forget_results()
        before.restore()

    def _forget_results(self) -> None:
        """Drop the last step's results: their history ties the weights' gradients to the stream it ran on."""
        self.model.losses, self.model.results = {}, {}


class _CompiledPass:
    """A network's method, compiled; if compiling fails, it warns once and runs the plain method."""

    def __init__(self, method: Callable, give_up: Callable[[Exception], None]):
        self.method, self.give_up = method, give_up
        # sizes are few: code for each is faster than code for any
        self.compiled = torch.compile(method, dynamic=False)

    def __call__(self, *args):
        try:
            return self.compiled(*args)
        # a compiler may raise anything; an error of the method itself is raised again below
        except Exception as error:
            self.give_up(error)
            return self.method(*args)


def _described(error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {reason[0]}"


def _warn(option: str, reason: str) -> None:
    warnings.warn(
        f"{option} failed on this machine and is switched off; work continues without it. {reason}",
        RuntimeWarning,
        stacklevel=3,
    )
