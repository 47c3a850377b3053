"""How the training step is run: precision, memory layout, compiled networks, the whole step as one CUDA graph.

The mathematics of a step is the model's (`models/cut_model.py`) and stays; what is here changes rounding and time alone.
Each of `--precision`, `--channels_last`, `--compile`, `--cuda_graph` is checked, and but for the layout carried out, in this
file. What fails on a machine is undone and said once, and training goes on without it from the state it had.

- tf32 lets cuDNN round a convolution's inputs to 10 bits of mantissa; matrix products of scores stay float32. bf16 is
  autocast: convolutions and heads in bfloat16; selection, normalisation, softmax, losses and weights in float32.
- `--compile` compiles the passes of G and D, where normalisation, activation, padding and resampling fuse. The heads stay
  as they are: two small matrix products each, and ten variants (five layers, with and without gradient) to compile.
  Inductor's default mode: the convolutions remain cuDNN's, and graphs of single passes would be in the way of the next.
- `--cuda_graph` captures the step from forward to the last update, for each size of batch, and then replays it: one
  launch instead of some 1,500. Random positions are drawn on the device, from the same numbers as without the graph.
"""

from __future__ import annotations

import functools
import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from util.device import get_device
from util.errors import UserError

WARM_UP_STEPS = 3  # before a capture: compiling, search for algorithms and first allocations must lie behind it
MOST_SHAPES = 4  # captured; each graph keeps its own memory. Batches of further shapes run uncaptured


def fastest(device: torch.device) -> dict[str, object]:
    """The options that `--fast` stands for on a device (why: docs/performance.md)."""
    if device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return {"precision": "bf16" if bf16 else "fp32", "channels_last": True, "compile": True, "cuda_graph": True}
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
            return (
                f"--precision tf32 is a mode of NVIDIA GPUs, but this runs on {where}: give --precision fp32 or bf16"
            )
        if torch.cuda.get_device_capability(device) < (8, 0):
            return (
                "--precision tf32 needs an Ampere GPU or a later one (compute capability 8.0): give --precision fp32"
            )
    if (name, value) == ("compile", True) and opt.isTrain and opt.gan_mode == "wgangp":
        return "--compile cannot serve --gan_mode wgangp, whose penalty differentiates D twice: give --compile false"
    if (name, value) == ("cuda_graph", True):
        if opt.flip_equivariance:
            return "--cuda_graph cannot capture --flip_equivariance, which tosses a coin on the host every step"
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
            training `optimizers`, `guard`, `real_A`, `real_B` and what a step leaves behind, PRODUCTS.
    """

    PRODUCTS = ("losses", "fake", "fake_B", "idt_B", "real_features")

    def __init__(self, model):
        self.model = model
        self.captures = model.opt.isTrain and model.opt.cuda_graph
        self.recordings: dict[tuple, _Recording] = {}
        self.proven: set[tuple] = set()  # shapes of batches whose step has run through
        self.passes = list(self._compile_passes()) if model.opt.compile else []
        self.set_rounding()
        if model.opt.isTrain:
            for optimizer in model.optimizers.values():  # loading replaces the tensors that a graph writes to
                optimizer.register_load_state_dict_post_hook(lambda _: self.recordings.clear())

    def set_rounding(self) -> None:
        """Tell cuDNN how to compute. The switches are the process's, so each step sets its own."""
        if self.model.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = self.model.opt.precision == "tf32"
            # sizes that are captured recur, and repay a search for the fastest algorithm
            torch.backends.cudnn.benchmark = self.captures and not torch.are_deterministic_algorithms_enabled()

    def _compile_passes(self) -> Iterator[_CompiledPass]:
        for name in ("G", "D") if self.model.opt.isTrain else ("G",):
            net = self.model.networks[name]
            for method in ("forward", "encode"):
                if hasattr(net, method):
                    compiled = _CompiledPass(getattr(net, method), self.give_up_compiling)
                    setattr(net, method, compiled)  # on the object: keys and classes of networks stay
                    yield compiled

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

        The state is put back afterwards, random numbers included: this is rehearsal.
        """
        capture = self.captures and len(self.recordings) < MOST_SHAPES
        if not (self.passes or capture):
            return
        before = _Snapshot(self.model)
        self._forget_products()
        if self.passes:
            try:
                with _side_stream(self.model.device):
                    step()
            except UserError:
                raise
            except (
                Exception
            ) as error:  # whatever a compiler may raise; an error of the step itself comes again without it
                if self.passes:
                    self.give_up_compiling(error)
            self._forget_products()
            before.restore()
        if capture:
            try:
                self.recordings[shapes] = _Recording(self.model, step, before, self._forget_products)
            except UserError:
                raise
            except Exception as error:
                self.captures = False
                self.recordings.clear()
                self._forget_products()
                before.restore()
                _warn("--cuda_graph", error)

    def _forget_products(self) -> None:
        """Let go of the last step's results: their history ties the weights' gradients to the stream it ran on."""
        for name in self.PRODUCTS:
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
        except Exception as error:  # whatever a compiler may raise; an error of the method itself comes again below
            self.give_up(error)
            return self.method(*args)


class _Recording:
    """The step on batches of one shape as a CUDA graph, with the buffers it reads and writes.

    Args:
        before: the state to leave things in; the rehearsal that a capture needs is undone to it.
        forget: drops the model's results of earlier steps.
    """

    def __init__(self, model, step: Callable[[], None], before: _Snapshot, forget: Callable[[], None]):
        self.inputs = {name: getattr(model, name).clone() for name in ("real_A", "real_B")}
        groups = [group for optimizer in model.optimizers.values() for group in optimizer.param_groups]
        self.rates = [(group, torch.tensor(group["lr"], device=model.device)) for group in groups]
        for name, buffer in self.inputs.items():
            setattr(model, name, buffer)
        stream = _side_stream(model.device)
        with stream:
            for _ in range(WARM_UP_STEPS):
                step()
        forget()
        before.restore()
        with self._capturable():
            self._replay = capture_graph(step, stream)
        results = {name: getattr(model, name) for name in Accelerator.PRODUCTS}
        results["losses"] = {name: loss.detach() for name, loss in results["losses"].items()}
        for name in ("fake", "fake_B", "idt_B"):
            results[name] = None if results[name] is None else results[name].detach()
        self.results = {**results, "real_features": None}

    def replay(self, model) -> None:
        """One step on the model's current batch."""
        for name, buffer in self.inputs.items():
            buffer.copy_(getattr(model, name), non_blocking=True)
        for group, rate in self.rates:
            rate.fill_(group["lr"])
        self._replay()
        for name, result in {**self.inputs, **self.results, "losses": dict(self.results["losses"])}.items():
            setattr(model, name, result)

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """Let the optimisers read their learning rates from the device, and be captured.

        Only so long: outside, groups hold plain numbers, so schedules and saved states are those of an uncaptured run.
        """
        plain = [(group, group["lr"], group["capturable"]) for group, _ in self.rates]
        for group, rate in self.rates:
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, lr, capturable in plain:
                group.update(lr=lr, capturable=capturable)


class _side_stream:  # noqa: N801 - a context manager, used as one
    """A stream of its own for a rehearsal, in order with the current one; on other devices than CUDA, nothing.

    A capture must not touch the default stream, which gradients would by their weights' history, were it rehearsed there.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self._entered = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        self._entered.__enter__()

    def __exit__(self, *error) -> None:
        self._entered.__exit__(*error)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)


def capture_graph(step: Callable[[], None], side: _side_stream) -> Callable[[], None]:
    """Record `step` on a stream it was rehearsed on, without running it; the result runs what was recorded."""
    generator = torch.cuda.default_generators[side.device.index]
    numbers, current = generator.clone_state(), torch.cuda.current_stream(side.device)
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: a loader's thread may pin memory meanwhile
        with (
            torch.cuda.device(side.device),
            torch.cuda.graph(graph, stream=side.stream, capture_error_mode="thread_local"),
        ):
            step()
    except Exception:  # a capture that breaks off leaves stream and generator as they were in the middle of it
        torch.cuda.set_stream(current)
        generator.graphsafe_set_state(numbers)
        raise
    return graph.replay


class _Snapshot:
    """Everything that a training step changes: weights, buffers, optimiser state, the guard's report, random numbers."""

    def __init__(self, model):
        self.model = model
        self.values = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]
        self.trainable = [(p, p.requires_grad) for p in self._parameters()]
        self.pool = list(model.pool.images)
        self.random: list[tuple[Callable, Tensor]] = [(torch.set_rng_state, torch.get_rng_state())]
        if model.device.type == "cuda":
            setter = functools.partial(torch.cuda.set_rng_state, device=model.device)
            self.random.append((setter, torch.cuda.get_rng_state(model.device)))
        elif model.device.type == "mps":
            self.random.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))

    def _parameters(self) -> Iterator[nn.Parameter]:
        for net in self.model.networks.values():
            yield from net.parameters()

    def _tensors(self) -> Iterator[Tensor]:
        yield from self._parameters()
        for net in self.model.networks.values():
            yield from net.buffers()
        yield self.model.guard.found
        yield self.model.guard.report
        for optimizer in self.model.optimizers.values():
            for state in optimizer.state.values():
                yield from state.values()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, in place. Optimiser state that has come since stays and is zero, as it begins."""
        known = {id(tensor) for tensor, _ in self.values}
        for tensor in self._tensors():
            if id(tensor) not in known:
                tensor.zero_()
        for tensor, value in self.values:
            tensor.copy_(value)
        for parameter, trainable in self.trainable:
            parameter.requires_grad_(trainable)
            parameter.grad = None
        self.model.pool.images = list(self.pool)
        for setter, state in self.random:
            setter(state)


def _warn(option: str, error: Exception) -> None:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    warnings.warn(
        f"{option} failed on this machine and is left off; training goes on without it. {type(error).__name__}: {reason[0]}",
        RuntimeWarning,
        stacklevel=3,
    )
