"""Gradients of convolutions' weights on a CUDA stream of their own.

Nothing else in a backward pass waits for the gradient of a weight, and cuDNN's kernel for it leaves
multiprocessors idle. Here the current stream computes the gradient of a convolution's input, a second stream
that of its weight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.speed.streams import SideStream, current_stream

MOST_BEHIND = 4  # convolutions whose input and gradient are kept alive for the second stream
Received = list[tuple[Tensor, torch.cuda.Stream | None]]  # gradients of a weight, and who computes them


class WeightGradientStream:
    """The second stream, at most MOST_BEHIND convolutions behind the one that the backward pass runs on.

    What it reads is kept alive until it has read it: the allocator would give that memory to the first
    stream. Off CUDA the gradients are computed at once.
    """

    def __init__(self, device: torch.device):
        self.side = SideStream(device)
        self.forget()

    def forget(self) -> None:
        """Drop what a step that was broken off has left."""
        self.reading: deque[tuple] = deque()

    def compute(self, function: Callable[[], Tensor], reads: Sequence[Tensor]) -> Tensor:
        """`function()` on the second stream; it reads the tensors `reads` of the current one."""
        with self.side:
            result = function()
        if self.side.stream is not None:
            self.reading.append((current_stream(self.side.device), self.side.stream.record_event(), reads))
            self.release(MOST_BEHIND)
        return result

    def release(self, most: int = 0) -> None:
        """Drop what is kept alive but for the `most` latest; its stream waits until it has been read."""
        while len(self.reading) > most:
            owner, event, _ = self.reading.popleft()
            owner.wait_event(event)


def convolve_beside(
    stream: WeightGradientStream,
    received: Received,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *settings,
) -> Tensor:
    """`torch.conv2d(x, weight, bias, *settings)` under autocast; all `settings` are given, as tuples.

    The gradient of `weight`, which is in half precision, goes to `received` and not to autograd.
    """
    return _Convolution.apply(x.to(weight.dtype), weight, bias, stream, received, *settings)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stream, received, stride, padding, dilation, groups):
        ctx.save_for_backward(x, weight)
        ctx.stream, ctx.received = stream, received
        ctx.settings = stride, padding, dilation, False, (0, 0), groups
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad[:3]

        def gradients(*mask: bool) -> tuple[Tensor | None, ...]:
            sizes = [len(weight)]
            return torch.ops.aten.convolution_backward(grad, x, weight, sizes, *ctx.settings, mask)

        if of_weight:
            grad_weight = ctx.stream.compute(lambda: gradients(False, True, False)[1], (x, grad))
            ctx.received.append((grad_weight, ctx.stream.side.stream))
        grad_x = grad_bias = None
        if of_input or of_bias:
            grad_x, _, grad_bias = gradients(of_input, False, of_bias)
        return grad_x, None, grad_bias, *[None] * 6
