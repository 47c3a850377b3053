"""The whole training step as one CUDA graph, and the snapshot that lets a step be rehearsed without a trace.

A capture needs compiled code, chosen algorithms and allocated optimiser state beforehand. So the step is
first rehearsed on the real batch, and everything it changed is restored, random generators included; then it
is recorded. Its random numbers come from the default generator, which each replay advances as a step would.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP_STEPS = 3  # as PyTorch advises


class SideStream:
    """Inside `with`, CUDA kernels run on a second stream that first waits for work already queued.

    The current stream continues meanwhile; work queued on it after `join` waits for this one. An exception
    joins too. Keep alive until `join` what one stream uses of the other's memory: each allocates its own.
    Does nothing on other devices.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            self._entered = torch.cuda.stream(self.stream)
            self._entered.__enter__()

    def __exit__(self, kind, *error) -> None:
        if self.stream is not None:
            self._entered.__exit__(kind, *error)
            if kind is not None:
                self.join()

    def join(self) -> None:
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)


class Recording:
    """The step on batches of one shape as a CUDA graph, with the buffers it reads and writes.

    The state `before` is restored after the rehearsal; `forget` drops the model's results of earlier steps.
    """

    def __init__(self, model, step: Callable[[], None], before: "Snapshot", forget: Callable[[], None]):
        self.inputs = {name: tensor.clone() for name, tensor in model.batch.items()}
        groups = [group for optimizer in model.optimizers.values() for group in optimizer.param_groups]
        self.rates = [(group, torch.tensor(group["lr"], device=model.device)) for group in groups]
        model.batch = dict(self.inputs)
        stream = SideStream(model.device)
        with stream:
            for _ in range(WARM_UP_STEPS):
                step()
        stream.join()
        forget()
        before.restore()
        with self._rates_on_device():
            self._replay = capture_graph(step, stream)
        self.losses = {name: loss.detach() for name, loss in model.losses.items()}
        self.results = dict(model.results)

    def replay(self, model) -> None:
        """One step on the model's current batch."""
        for name, buffer in self.inputs.items():
            buffer.copy_(model.batch[name], non_blocking=True)
        for group, rate in self.rates:
            rate.fill_(group["lr"])
        self._replay()
        model.batch, model.losses, model.results = dict(self.inputs), dict(self.losses), dict(self.results)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the optimisers read their learning rates from the device, and be captured.

        Only here: elsewhere groups hold plain numbers, so schedules and saved states are as without a graph.
        """
        plain = [(group, group["lr"], group["capturable"]) for group, _ in self.rates]
        for group, rate in self.rates:
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, lr, capturable in plain:
                group.update(lr=lr, capturable=capturable)


def capture_graph(step: Callable[[], None], side: SideStream) -> Callable[[], None]:
    """Record `step` on the stream it was rehearsed on, without running it; return what replays it."""
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
    except Exception:  # breaking off has left stream and generator in the middle of a capture
        torch.cuda.set_stream(current)
        generator.graphsafe_set_state(numbers)
        raise
    return graph.replay


class Snapshot:
    """All that a step changes: weights, buffers, memories, optimisers, the guard's report, random numbers."""

    def __init__(self, model):
        self.model = model
        self.values = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]
        self.trainable = [(p, p.requires_grad) for net in model.networks.values() for p in net.parameters()]
        self.random = torch.get_rng_state()
        on_gpu = model.device.type == "cuda"
        self.random_of_gpu = torch.cuda.get_rng_state(model.device) if on_gpu else None

    def _tensors(self) -> Iterator[Tensor]:
        for module in (*self.model.networks.values(), *self.model.memories.values()):
            yield from module.parameters()
            yield from module.buffers()
        yield self.model.guard.found
        yield self.model.guard.report
        for optimizer in self.model.optimizers.values():
            for state in optimizer.state.values():
                yield from state.values()

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything in place. Optimiser state created since stays and is zero, as it begins."""
        known = {id(tensor) for tensor, _ in self.values}
        for tensor in self._tensors():
            if id(tensor) not in known:
                tensor.zero_()
        for tensor, value in self.values:
            tensor.copy_(value)
        for parameter, trainable in self.trainable:
            parameter.requires_grad_(trainable)
            parameter.grad = None
        torch.set_rng_state(self.random)
        if self.random_of_gpu is not None:
            torch.cuda.set_rng_state(self.random_of_gpu, self.model.device)
