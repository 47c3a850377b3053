"""Training in several processes, started by `torchrun`: who this process is, and what the processes share.

Every process draws the same random positions (same seed, same draws) and sees its own part of each global batch, so the
mean of their gradients is the gradient of one process with the global batch.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

TIMEOUT = datetime.timedelta(minutes=10)  # a process that has not answered for so long counts as dead

_control: dist.ProcessGroup | None = None  # host-side messages, beside the gradients and off the GPU's stream

T = TypeVar("T")


class ProcessLostError(RuntimeError):
    """Another process of this training died or stopped answering."""


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started (NCCL on GPUs, gloo elsewhere); nothing without torchrun.

    Raises:
        ProcessLostError: in place of the error with which a lost process shows.
    """
    global _control
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        _control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield
        dist.barrier(group=_control)  # else the first to be done would look lost to those still saving
        dist.destroy_process_group()
    except dist.DistError as error:
        raise ProcessLostError(str(error)) from error
    except RuntimeError as error:  # gloo tells of a closed connection so
        if "gloo" in str(error).lower() or "connection" in str(error).lower():
            raise ProcessLostError(str(error)) from error
        raise
    finally:
        _control = None


def restarted_job() -> tuple[str, bool]:
    """The torchrun job that this process belongs to ("" without one), and whether torchrun has restarted it."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run_id == "none":  # torchrun's name for a job without one: its own process tells jobs apart
        run_id = f"{socket.gethostname()}:{os.getppid()}"
    return run_id, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def world_size() -> int:
    """Processes of this training; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them; 0 alone writes files."""
    return dist.get_rank() if world_size() > 1 else 0


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes: with equal batches, the gradient of the global batch's mean loss."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = _flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(mean)


def mean(values: list[float]) -> list[float]:
    """The means of host-side numbers over the processes."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, group=_control)
    return (tensor / world_size()).tolist()


def largest(value: int) -> int:
    """The largest of a host-side number over the processes: so all of them stop at the same step."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_control)
    return int(tensor)


def from_first(decide: Callable[[], T]) -> T:
    """What process 0 alone decides, for all; a small picklable object."""
    decision = [decide() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(decision, src=0, group=_control)
    return decision[0]
