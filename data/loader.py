"""Batches on the device, made ahead: workers decode, the device crops, copies overlap with the training step.

torch's DataLoader runs the workers, which live as long as the loader (each `SampleKey` holds the epoch). They
send bytes and windows; the device crops, mirrors and normalises. Once all images are in the shared cache,
this process reads them from there itself, which costs it less than receiving a batch. One batch is uploaded
ahead, on CUDA from pinned memory on a second stream. No thread is started here, so nothing else calls CUDA
while a graph is captured.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from data.augment import crop_flip_normalise
from data.base_dataset import BaseDataset
from data.collate import BatchMaker, HostBatch
from data.sampler import EpochSampler
from util.errors import UserError
from util.run.stop_signal import SIGNALS

# "A", "B": (B, C, h, w) float32 in [-1, 1]; "A_paths", "B_paths": list[str];
# "A_windows", "B_windows": (B, 5) float32, each row a `data.base_dataset.Part`
Batch = dict[str, Any]

GRACE_SECONDS = 30


class Loader:
    """The batches of an epoch, from any position, as `Batch`.

    num_threads: worker processes; 0 decodes in this one. channels: 3 or 1 for each domain.
    Only one epoch runs at a time; it can be left early, or another one started, at any moment.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        sampler: EpochSampler,
        device: torch.device | str,
        *,
        num_threads: int = 0,
        channels: dict[str, int] | None = None,
    ) -> None:
        self.dataset, self.sampler, self.num_threads = dataset, sampler, num_threads
        self.device = torch.device(device)
        self.channels = channels or {"A": 3, "B": 3}
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._workers: DataLoader | None = None
        self._iterator: Any = None
        self._named: set[str] = set()

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, first_position: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 1), from the image at `first_position` on.

        Raises `UserError` at an image that cannot be used (unless they are skipped, with one warning each),
        and when a worker was killed.
        """
        self.sampler.start(epoch, first_position)
        self.dataset.begin_epoch(epoch)
        uploads = map(self._upload, self._host_batches(epoch))
        upload = next(uploads, None)
        while upload is not None:
            batch, failure = self._arrived(*upload), None
            try:
                upload = next(uploads, None)
            except UserError as error:  # of the batch after this one, which is still good
                failure = error
            yield batch
            if failure:
                raise failure

    def close(self) -> None:
        """Stop the workers. The next epoch starts new ones."""
        if self._iterator is not None:
            # Not just dropped: a traceback may still refer to it.
            self._iterator._shutdown_workers()
        self._workers = self._iterator = None

    def _host_batches(self, epoch: int) -> Iterator[HostBatch]:
        batches = self._start(epoch)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                self.close()
                raise UserError(
                    f"a process that loads images was killed ({error}). Usually the machine ran out of "
                    "memory: lower --num_threads, --cache_gb or --batch_size. In a container /dev/shm may be "
                    "too small: --num_threads 0 does not use it."
                ) from error
            if isinstance(batch, UserError):
                raise batch
            self._warn(batch)
            if batch.stacks:
                yield batch

    def _start(self, epoch: int) -> Iterator[HostBatch | UserError]:
        if not self.num_threads or self.dataset.in_memory(epoch):
            return map(BatchMaker(self.dataset).__getitems__, self.sampler)
        new = self._workers is None
        if new:
            self._workers = DataLoader(
                BatchMaker(self.dataset),
                batch_sampler=self.sampler,
                num_workers=self.num_threads,
                collate_fn=_as_is,
                worker_init_fn=_prepare_worker,
                persistent_workers=True,
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                generator=torch.Generator(),  # else every epoch would draw from the model's random state
            )
        # With torch's SIGCHLD handler, a killed worker raises out of whatever this process is doing at that
        # moment. Without it, the loss is noticed when this process waits for the worker's batch.
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        handler = signal.getsignal(signal.SIGCHLD) if main else None
        self._iterator = iter(self._workers)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        if new:
            # Called before torch's own handler, registered earlier, which waits long for running workers.
            atexit.register(_call_if_alive, weakref.WeakMethod(self.close))
        return self._iterator

    def _upload(self, batch: HostBatch) -> tuple[Batch, torch.cuda.Event | None]:
        """Start the copy to the device. The event, on CUDA, marks its end."""
        if self._stream is None:
            return self._on_device(batch), None
        with torch.cuda.stream(self._stream):
            return self._on_device(batch), self._stream.record_event()

    def _on_device(self, batch: HostBatch) -> Batch:
        out: Batch = {}
        for domain, stack in batch.stacks.items():
            pixels, windows = stack.pixels, torch.tensor(stack.windows, dtype=torch.int64)
            parts = torch.tensor(stack.parts)
            if self._stream is not None:
                pixels, windows, parts = pixels.pin_memory(), windows.pin_memory(), parts.pin_memory()
            pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # (B, 3, H, W)
            windows = windows.to(self.device, non_blocking=True)
            out[domain] = crop_flip_normalise(pixels, windows, stack.size, self.channels[domain])
            out[f"{domain}_windows"] = parts.to(self.device, non_blocking=True)
            out[f"{domain}_paths"] = stack.paths
        return out

    def _arrived(self, batch: Batch, event: torch.cuda.Event | None) -> Batch:
        """Let the current stream wait for the batch, and record that use for the allocator."""
        if event is not None:
            consumer = torch.cuda.current_stream(self.device)
            consumer.wait_event(event)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.record_stream(consumer)
        return batch

    def _warn(self, batch: HostBatch) -> None:
        for error in batch.bad:
            if error.path not in self._named:
                self._named.add(error.path)
                print(f"warning: left out: {error.path!r}: {error.found}.", file=sys.stderr)


def _call_if_alive(reference: weakref.WeakMethod) -> None:
    method = reference()
    if method is not None:
        method()


def _as_is(batch: HostBatch | UserError) -> HostBatch | UserError:
    return batch


def _prepare_worker(worker: int) -> None:
    """Ignore stop signals, and delay SIGTERM: the main process may finish a step and save first.

    A closed terminal and a batch system send theirs to every process.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
