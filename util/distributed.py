"""Training in several processes, started by `torchrun`: the rank of this process, and what they exchange.

Every process draws the same random positions (same seed, same draws) and sees its own part of each global
batch, so the mean of their gradients is the gradient of one process with the global batch.
"""

import contextlib
import datetime
import os
import sys
import threading
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

TIMEOUT = datetime.timedelta(minutes=10)  # after which a process that does not answer counts as dead
CONNECT_SECONDS = 60  # for connecting to the others, which torchrun starts at the same moment


class ProcessLostError(RuntimeError):
    """Another process of this training died or stopped answering."""


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started, if any; a GPU becomes torch's current device."""
    if device.type == "cuda":  # the default device of random states and events
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        # Host-side messages use gloo, off the GPU's stream.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # Gloo can wait for a dead process beyond its own timeout (seen with torch 2.15).
        timer = threading.Timer(CONNECT_SECONDS, _give_up)
        timer.daemon = True
        timer.start()
        store, number, count = next(rendezvous("env://", timeout=TIMEOUT))
        # torchrun keeps its store over restarts: without a prefix, addresses of dead processes may be found.
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
        timer.cancel()
        yield
        # A barrier: else the first to end would look lost to those still saving. Its tensor outlives the
        # group: to free it, gloo's thread would need Python's lock while Python waits for it (torch 2.6).
        message = torch.zeros(())
        dist.all_reduce(message)
        dist.destroy_process_group()
    except RuntimeError as error:  # gloo reports a closed connection as a plain one
        words = str(error).lower()
        if isinstance(error, dist.DistError) or "gloo" in words or "connection" in words:
            raise ProcessLostError(str(error)) from error
        raise


def _give_up() -> None:
    problem = f"error: the processes did not find each other in {CONNECT_SECONDS} s; stopping"
    print(problem, file=sys.stderr, flush=True)
    os._exit(1)


def world_size() -> int:
    """Processes of this training; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process; only process 0 writes files."""
    return dist.get_rank() if world_size() > 1 else 0


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes: with equal batches, that of the global batch."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


def with_others(tensor: Tensor, dim: int) -> Tensor:
    """This process's tensor and, behind it along `dim`, those of the others, of one shape; no gradient."""
    tensors = gather(tensor.detach())
    return torch.cat(tensors[rank() :] + tensors[: rank()], dim)


def mean(values: list[float]) -> list[float]:
    """The means of host-side numbers over the processes."""
    return [sum(of_all) / world_size() for of_all in zip(*gather(values), strict=True)]


def largest(value: int) -> int:
    """The largest of a host-side number over the processes, so that all of them stop at the same step."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def gather(value: object) -> list:
    """Each process's value by rank: a tensor (all of one shape, no gradient), or a picklable object."""
    if world_size() == 1:
        return [value]
    if isinstance(value, Tensor):
        value = value.contiguous()
        values = [torch.empty_like(value) for _ in range(world_size())]
        dist.all_gather(values, value)
    else:
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    return values
