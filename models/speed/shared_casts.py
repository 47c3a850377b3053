"""Weights cast to bfloat16 all at once, and their gradients cast back all at once.

Autocast casts each weight by itself, anew in each context, and each gradient back by itself: 227 launches per
step of QS-Attn. Here the weights of all networks that learn together are cast by one multi-tensor copy after
each change. Where autocast would cast a weight, a layer is given a view of its cast instead, and one node of
the graph sums the gradients of all uses:

    parameters -> _Sum -> link -> _Use -> view of a cast -> layer
                            └---> _Use -> view of a cast -> layer ...

Each use has its own view, so the bfloat16 gradients of a weight used twice are summed in float32. The link
carries no value; it makes autograd run `_Sum` after every `_Use`. Parameters, their gradients and the
optimiser's state are float32 as without this module, and checkpoints are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from models.speed.streams import current_stream
from models.speed.weight_gradients import Received, WeightGradientStream, convolve_beside

FUNCTIONS = (torch.conv2d, torch.conv_transpose2d, F.linear)  # whose weights and biases autocast casts


class SharedCasts(TorchFunctionMode):
    """Inside `with`, which is around each step, layers under autocast are given casts of their parameters.

    Where autocast is disabled, and outside of the groups, they are given the parameters.
    """

    def __init__(self, groups: Iterable[CastGroup], device: torch.device):
        super().__init__()
        self.groups, self.device = list(groups), device
        self.places = {id(p): (group, n) for group in self.groups for n, p in enumerate(group.parameters)}

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for group in self.groups:  # before the next step, weights may be loaded
            group.forget()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in FUNCTIONS or not torch.is_autocast_enabled(self.device.type):
            return function(*args, **kwargs)
        cast = [self._cast(argument) for argument in args]
        if (
            function is torch.conv2d
            and len(args) == 7
            and id(args[1]) in self.places
            and cast[1].requires_grad
        ):
            group, place = self.places[id(args[1])]
            if group.stream is not None:
                return convolve_beside(group.stream, group.received[place], *cast)
        return function(*cast, **kwargs)

    def _cast(self, argument):
        group, place = self.places.get(id(argument), (None, None))
        return argument if group is None else group.cast(place)


class CastGroup:
    """The parameters of networks that learn together, in bfloat16.

    The first use after a change casts, on its stream: uses on other streams must wait for it. A graph from
    before a change can no longer be differentiated.

    Args:
        networks: the networks, on their device; all or none of them are frozen.
        beside: whether gradients of convolutions' weights are computed on a stream of their own.
    """

    def __init__(self, networks: Iterable[nn.Module], device: torch.device, beside: bool):
        self.stream = WeightGradientStream(device) if beside else None
        self.parameters = [parameter for net in networks for parameter in net.parameters()]
        # allocated here, outside of any capture
        self.casts = [torch.empty_like(p, dtype=torch.bfloat16) for p in self.parameters]
        self.forget()

    def forget(self, *_) -> None:
        """Cast again before the next use: the parameters have changed."""
        self.stale = True
        self.link: Tensor | None = None
        self.received: list[Received] = []
        if self.stream is not None:
            self.stream.forget()

    def cast(self, place: int) -> Tensor:
        """The parameter at `place` in bfloat16; its gradient will be that of the parameter."""
        if self.stale:
            with torch.no_grad():
                torch._foreach_copy_(self.casts, self.parameters)
            self.stale = False
        if not (torch.is_grad_enabled() and self.parameters[place].requires_grad):
            return self.casts[place]
        if self.link is None:
            self.received = [[] for _ in self.parameters]
            self.link = _Sum.apply(partial(self._sum_gradients, self.received), *self.parameters)
        return _Use.apply(self.link, self.casts[place], self.received[place])

    def _sum_gradients(self, received: list[Received]) -> list[Tensor | None]:
        """Empty `received`, the gradients of each parameter; return their float32 sums, None without any."""
        if self.stream is not None:
            self.stream.release()
        current = current_stream(self.parameters[0].device)
        for stream in {stream for gradients in received for _, stream in gradients} - {current}:
            current.wait_stream(stream)
        sums: dict[int, Tensor] = {}
        while places := [place for place, gradients in enumerate(received) if gradients]:
            parameters = [self.parameters[place] for place in places]
            gradients = [received[place].pop()[0] for place in places]
            full = [torch.empty_like(parameter) for parameter in parameters]
            torch._foreach_copy_(full, list(map(_laid_out_like, parameters, gradients)))
            if sums:  # of two types, the sum would be one launch per tensor
                torch._foreach_add_([sums[place] for place in places], full)
            else:
                sums = dict(zip(places, full, strict=True))
        return [sums.get(place) for place in range(len(received))]


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the parameter's strides: else a multi-tensor copy is one launch per tensor."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)


class _Sum(torch.autograd.Function):
    """The link; the gradients of the parameters are what `sum_gradients` returns."""

    @staticmethod
    def forward(ctx, sum_gradients, *parameters):
        ctx.sum_gradients = sum_gradients
        ctx.set_materialize_grads(False)
        return parameters[0].new_empty(())

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        return None, *ctx.sum_gradients()


class _Use(torch.autograd.Function):
    """A view of `cast`; its gradient is appended to `received`, with the stream that computes it."""

    @staticmethod
    def forward(ctx, link, cast, received):
        ctx.received = received
        ctx.set_materialize_grads(False)
        return cast.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        if gradient is not None:
            ctx.received.append((gradient, current_stream(gradient.device)))
        return None, None, None
