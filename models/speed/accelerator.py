"""How the training step is run: precision, memory layout, compiled networks, the whole step as one CUDA graph.

The mathematics of a step is the model's (`models/cut_model.py`) and stays; what is here changes rounding and time alone.
Each of `--precision`, `--channels_last`, `--compile`, `--cuda_graph` is checked here, and all but the layout carried out
(a graph's making and replay: `models/speed/step_graph.py`). What fails on a machine is undone and said once, and training goes on
without it from the state it had.

- tf32 lets cuDNN round a convolution's inputs to 10 bits of mantissa; matrix products of scores stay float32. bf16 is
  autocast: convolutions, heads and routing in bfloat16; ranking, attention, statistics, softmax, losses and weights in
  float32.
- `--channels_last` stores images as the matrix units want them. On CUDA what stands between the convolutions of G and D
  then runs in kernels of our own (`models/speed/fused.py`), for PyTorch's would convert to NCHW and back.
- `--compile` leaves that to torch.compile instead. The heads stay as they are: two small matrix products each, and ten
  variants (five layers, with and without gradient) to compile. Inductor's default mode: the convolutions remain cuDNN's,
  and graphs of single passes would be in the way of the next.
- `--cuda_graph` captures the step from forward to the last update, for each size of batch, and then replays it: one
  launch instead of some 1,500. Random positions are drawn on the device, from the same numbers as without the graph.
"""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from models.speed import fused_kernels, triton_support
from models.speed.step_graph import PRODUCTS, Recording, Snapshot
from models.speed.streams import SideStream
from util import distributed
from util.device import get_device
from util.errors import UserError

MOST_SHAPES = 4  # captured; each graph keeps its own memory. Batches of further shapes run uncaptured


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
    """Whether the processor multiplies bfloat16 matrices in hardware (AMX or AVX-512 BF16), as Linux tells."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split() if cpuinfo.is_file() else []
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def settle(opt: Namespace) -> None:
    """Put what `--fast` means here into `opt`, but for what was given, and refuse what cannot work.

    A run saves the outcome, so that continuing it computes as it began, wherever `--fast` would differ.

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
            if name not in opt.given and _obstacle(name, value, opt, device) is None:
                setattr(opt, name, value)
    for name in ("precision", "compile", *(["cuda_graph"] if opt.isTrain else [])):
        if reason := _obstacle(name, getattr(opt, name), opt, device):
            raise UserError(reason)


def _obstacle(name: str, value: object, opt: Namespace, device: torch.device) -> str | None:
    """Why an option cannot have this value, and what to do; None where it can."""
    where = {"cpu": "the CPU", "mps": "Apple's GPU", "cuda": "a CUDA device"}[device.type]
    if (name, value) == ("precision", "tf32"):
        if device.type != "cuda":
            return f"--precision tf32 is a mode of NVIDIA GPUs, but this runs on {where}: give --precision fp32 or bf16"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "--precision tf32 needs an Ampere GPU or a later one (compute capability 8.0): give --precision fp32"
    if (name, value) == ("compile", True) and opt.isTrain and opt.gan_mode == "wgangp":
        return "--compile cannot serve --gan_mode wgangp, whose penalty differentiates D twice: give --compile false"
    if (name, value) == ("cuda_graph", True):
        if opt.flip_equivariance:
            return (
                "--cuda_graph cannot capture --flip_equivariance, which tosses a coin on the host every step"
            )
        if opt.pool_size:
            return "--cuda_graph cannot capture --pool_size, which picks images on the host every step"
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            return "--cuda_graph cannot capture the exchange of gradients between processes: give --cuda_graph false"
        if device.type != "cuda":
            return f"--cuda_graph needs a CUDA device, but this runs on {where}: give --cuda_graph false"
    return None


class Accelerator:
    """Runs the steps of a model as its options say.

    Args:
        model: a CUTModel with its networks on their device; of its attributes are used `opt`, `device`, `networks`, and in
            training `optimizers`, `guard`, `pool`, `real_A`, `real_B` and what a step leaves behind, `step_graph.PRODUCTS`.
    """

    def __init__(self, model):
        self.model = model
        self.captures = model.opt.isTrain and model.opt.cuda_graph
        self.recordings: dict[tuple, Recording] = {}
        self.proven: set[tuple] = set()  # shapes of batches whose step has run through
        self.passes = list(self._compile_passes()) if model.opt.compile else []
        self.fused = [] if self.passes else list(self._fuse_networks())
        self.set_rounding()
        if model.opt.isTrain:
            for optimizer in model.optimizers.values():  # loading replaces the tensors that a graph writes to
                optimizer.register_load_state_dict_post_hook(lambda _: self.recordings.clear())

    def set_rounding(self) -> None:
        """Tell cuDNN how to compute. The switches are the process's, so each step sets its own."""
        if self.model.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = self.model.opt.precision == "tf32"
            # sizes that are captured recur, and repay a search for the fastest algorithm
            torch.backends.cudnn.benchmark = (
                self.captures and not torch.are_deterministic_algorithms_enabled()
            )

    def _compile_passes(self) -> Iterator[_CompiledPass]:
        for name in ("G", "D") if self.model.opt.isTrain else ("G",):
            net = self.model.networks[name]
            for method in ("forward", "encode"):
                if hasattr(net, method):
                    compiled = _CompiledPass(getattr(net, method), self.give_up_compiling)
                    setattr(net, method, compiled)  # on the object: keys and classes of networks stay
                    yield compiled

    def _fuse_networks(self) -> Iterator[nn.Module]:
        opt, device = self.model.opt, self.model.device
        if opt.channels_last and triton_support.works(device):
            try:
                fused_kernels.try_out(device, torch.bfloat16 if opt.precision == "bf16" else torch.float32)
            except Exception as error:  # whatever a compiler may raise
                _warn("the fused kernels of --channels_last", error)
                return
            for name, net in self.model.networks.items():
                # wgangp's penalty differentiates D twice, the kernels do it once
                if hasattr(net, "fused") and not (name == "D" and opt.gan_mode == "wgangp"):
                    net.fused = True
                    yield net

    def give_up_compiling(self, error: Exception) -> None:
        """Run the networks uncompiled from here on."""
        self.passes = []
        for net in self.model.networks.values():
            for method in ("forward", "encode"):
                net.__dict__.pop(method, None)
        _warn("--compile", error)

    def run(self, step: Callable[[], None]) -> None:
        """One training step on the model's current batch; `step` is the plain one."""
        self.set_rounding()
        shapes = (self.model.real_A.shape, self.model.real_B.shape)
        if shapes not in self.recordings and shapes not in self.proven:
            self._try(step, shapes)
        recording = self.recordings.get(shapes)
        if recording is None:
            step()
            self.proven.add(shapes)
        else:
            recording.replay(self.model)

    def _try(self, step: Callable[[], None], shapes: tuple) -> None:
        """Run the step on a batch of new shapes as asked for, from compiling to capture, and give up what fails.

        The state is put back afterwards, random numbers included: this is rehearsal. Processes that train together rehearse
        only their first step, which they do alike, since a rehearsal exchanges gradients; and there a failure ends the run.
        """
        together = distributed.world_size() > 1
        capture = self.captures and len(self.recordings) < MOST_SHAPES
        if not (self.passes or capture) or (together and self.proven):
            return
        before = Snapshot(self.model)
        self._forget_products()
        if self.passes:
            try:
                rehearsal = SideStream(self.model.device)
                with rehearsal:
                    step()
                rehearsal.join()
            except UserError:
                raise
            except (
                Exception
            ) as error:  # whatever a compiler may raise; an error of the step itself comes again without it
                if together:
                    raise
                if self.passes:
                    self.give_up_compiling(error)
            self._undo(before)
        if capture:
            try:
                self.recordings[shapes] = Recording(self.model, step, before, self._forget_products)
            except UserError:
                raise
            except Exception as error:
                self.captures = False
                self.recordings.clear()
                self._undo(before)
                _warn("--cuda_graph", error)

    def _undo(self, before: Snapshot) -> None:
        """Put the state back, once whatever a step that broke off has put on any stream is done."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self._forget_products()
        before.restore()

    def _forget_products(self) -> None:
        """Let go of the last step's results: their history ties the weights' gradients to the stream it ran on."""
        for name in PRODUCTS:
            setattr(self.model, name, {} if name == "losses" else None)


class _CompiledPass:
    """A network's method, compiled; calls it as it is, and says so, where compiling fails."""

    def __init__(self, method: Callable, give_up: Callable[[Exception], None]):
        self.method, self.give_up = method, give_up
        # sizes are few: code for each is faster than code for any
        self.compiled = torch.compile(method, dynamic=False)

    def __call__(self, *args):
        try:
            return self.compiled(*args)
        except (
            Exception
        ) as error:  # whatever a compiler may raise; an error of the method itself comes again below
            self.give_up(error)
            return self.method(*args)


def _warn(option: str, error: Exception) -> None:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    warnings.warn(
        f"{option} failed on this machine and is left off; work goes on without it. {type(error).__name__}: {reason[0]}",
        RuntimeWarning,
        stacklevel=3,
    )
