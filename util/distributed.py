"""Training in several processes, started by `torchrun`: who this process is, and what the processes share.

Every process draws the same random positions (same seed, same draws) and sees its own part of each global batch, so the
mean of their gradients is the gradient of one process with the global batch.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.rendezvous import rendezvous

TIMEOUT = datetime.timedelta(minutes=10)  # a process that has not answered for so long counts as dead

CONNECT_SECONDS = 60  # for finding the others, which torchrun has started at the same moment

T = TypeVar("T")


class ProcessLostError(RuntimeError):
    """Another process of this training died or stopped answering."""


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started (NCCL on GPUs, gloo elsewhere), if any; a GPU becomes torch's current one.

    Raises:
        ProcessLostError: in place of the error with which a lost process shows.
    """
    if device.type == "cuda":  # random states and events are the current device's where none is named
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        # host-side messages go by gloo beside the gradients, off the GPU's stream
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with give_up_after(CONNECT_SECONDS):
            store, number, count = next(rendezvous("env://", timeout=TIMEOUT))
            # torchrun keeps its store over restarts: under the same names a restart may find the addresses of dead processes
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
        yield
        largest(0)  # else the first to be done would look lost to those still saving
        dist.destroy_process_group()
    except dist.DistError as error:
        raise ProcessLostError(str(error)) from error
    except RuntimeError as error:  # gloo tells of a closed connection so
        if "gloo" in str(error).lower() or "connection" in str(error).lower():
            raise ProcessLostError(str(error)) from error
        raise


def restarted_job() -> tuple[str, bool]:
    """The torchrun job that this process belongs to ("" without one), and whether torchrun has restarted it."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run_id == "none":  # torchrun's name for a job without one: its own process tells jobs apart
        run_id = f"{socket.gethostname()}:{os.getppid()}"
    return run_id, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def give_up_after(seconds: float) -> Iterator[None]:
    """End this process with status 1 and a message where the block takes longer, so that torchrun can start it again.

    Gloo has been seen to wait for a process that had died (torch 2.15), heedless of its own timeout.
    """

    def end() -> None:
        print(
            f"error: the processes did not find each other in {seconds:.0f} s; stopping",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def with_others(tensor: Tensor, dim: int) -> Tensor:
    """This process's tensor and, behind it along `dim`, those of the others, of the same shape; without gradient."""
    if world_size() == 1:
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    tensors = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(tensors, tensor)
    return torch.cat(tensors[rank() :] + tensors[: rank()], dim)


def mean(values: list[float]) -> list[float]:
    """The means of host-side numbers over the processes."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return (tensor / world_size()).tolist()


def largest(value: int) -> int:
    """The largest of a host-side number over the processes: so all of them stop at the same step."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def gather(value: T) -> list[T]:
    """Each process's value, a picklable object, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(decide: Callable[[], T]) -> T:
    """What process 0 alone decides, for all; a small picklable object."""
    decision = [decide() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(decision, src=0, device=torch.device("cpu"))
    return decision[0]
