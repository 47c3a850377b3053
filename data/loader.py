"""Batches on the device: in which order, made ahead by worker processes, copied while a step runs.

The order is a function of (seed, epoch), and a batch is a range of positions: a run can resume at any one,
with other workers or processes, and sees the same images. One batch is uploaded ahead, on CUDA from pinned
memory on a second stream. No thread is started here, so nothing else calls CUDA while a graph is captured.
"""

import multiprocessing
import multiprocessing.util  # its end of the workers is registered before ours, so ours comes first
import os
import random
import signal
import sys
import weakref
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from data.datasets import DATASETS, BaseDataset, SampleKey
from data.transforms import Preprocess, to_input
from util.console import say
from util.errors import UserError
from util.image_files import ImageError, describe_grey_range, parse_grey_range
from util.run.stop_signal import SIGNALS

# "A", "B": (B, C, h, w) float32 in [-1, 1]; "A_paths", "B_paths": list[str]; "A_windows", "B_windows": (B, 5)
# float32, each row the `part` of a `View`; in a set of many domains "A_domain", "B_domain": (B,) int64
Batch = dict[str, Any]


def make_batch(
    dataset: BaseDataset, keys: list[SampleKey]
) -> tuple[dict[str, Any], list[ImageError]] | UserError:
    """A `Batch` of arrays, pixels (B, h, w, 3) uint8, and errors of files left out; or what to raise."""
    samples, bad, batch = [], [], {}
    try:
        for key in keys:
            try:
                samples.append(dataset[key])
            except ImageError as error:
                if dataset.on_bad_image == "stop":
                    raise
                bad.append(error)
    except UserError as error:
        return error
    for domain in samples[0] if samples else ():
        pixels, parts, paths, replaced, domains = zip(*(sample[domain] for sample in samples), strict=True)
        if len({array.shape for array in pixels}) > 1:
            found = f"images of one batch differ in size ({', '.join(map(repr, paths))})"
            return UserError(f"{found}: use --batch_size 1 or a --preprocess that crops")
        bad += [error for errors in replaced for error in errors]
        batch |= {domain: np.stack(pixels), f"{domain}_paths": list(paths)}
        batch[f"{domain}_windows"] = np.array(parts, np.float32)
        if domains[0] is not None:
            batch[f"{domain}_domain"] = np.array(domains)
    return batch, bad


class Workers:
    """Processes that make batches in turns, one ahead each; pipes need no /dev/shm and notice an end."""

    def __init__(self, dataset: BaseDataset, count: int) -> None:
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._processes, self._pipes = [], []
        self._asked: deque[int] = deque()  # workers whose batches are still to be received, in order
        self.close = weakref.finalize(self, _end, self._processes, self._pipes)  # also when Python exits
        for _ in range(count):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(target=_work, args=(dataset, theirs, self._pipes), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def batches(self, batches_of_keys: Iterator[list[SampleKey]]) -> Iterator:
        """What `make_batch` returns for each, in order. Raises `UserError` if a worker has died."""
        try:
            while self._asked:  # of an epoch that was left early
                self._receive()
            for worker, keys in zip(range(len(self._pipes)), batches_of_keys, strict=False):
                self._ask(worker, keys)
            while self._asked:
                worker, batch = self._receive()
                if keys := next(batches_of_keys, None):
                    self._ask(worker, keys)
                yield batch
        except (EOFError, OSError) as error:
            self.close()
            found = "a process that loads images was killed. Usually the machine or container lacks memory"
            raise UserError(f"{found}: lower --cache_gb or --batch_size, or use --num_threads 0") from error

    def _ask(self, worker: int, keys: list[SampleKey]) -> None:
        self._pipes[worker].send(keys)
        self._asked.append(worker)

    def _receive(self) -> tuple[int, Any]:
        worker = self._asked.popleft()
        return worker, self._pipes[worker].recv()


def _end(processes: list[multiprocessing.Process], pipes: list[Connection]) -> None:
    """End workers, which hold nothing that could be lost."""
    for process, pipe in zip(processes, pipes, strict=True):
        process.kill()
        pipe.close()
    for process in processes:
        process.join()


def _work(dataset: BaseDataset, pipe: Connection, inherited: list[Connection]) -> None:
    """Make batches until the other side of the pipe closes, which `inherited` copies would keep open.

    Stop signals are ignored: a closed terminal and a batch system send theirs to every process, and the main
    process may finish a step and save first.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for copy in inherited:
        copy.close()
    try:
        while True:
            pipe.send(make_batch(dataset, pipe.recv()))
    except (EOFError, OSError):
        pass  # the main process has ended


@dataclass
class Loader:
    """The batches of an epoch, from any position. Only one epoch runs at a time; it can be left early.

    Global batch k holds positions [k G, (k + 1) G), G = batch_size * world_size, and rank r its r-th part of
    batch_size positions. So the ranks together see the batch of one process with batch_size G.
    """

    dataset: BaseDataset
    device: torch.device | str
    batch_size: int
    seed: int = 0
    shuffle: bool = False  # a new order for every epoch; else by index
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True  # leave out an incomplete global batch; else the ranks share what there is
    num_workers: int = 0  # processes; 0 decodes in this one, as is done once all images are cached
    channels: tuple[int, int] = (3, 3)  # of A and B: 3 or 1

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        images, self.global_batch = len(self.dataset), self.batch_size * self.world_size
        self.end = images - (self.global_batch - 1 if self.drop_last else 0)  # of a batch's first position
        if self.end < 1:
            found = f"an epoch has {images} images, less than one batch of {self.global_batch}"
            raise UserError(f"{found}: lower --batch_size or add images")
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._workers: Workers | None = None
        self._named: set[str] = set()

    def __len__(self) -> int:
        """Global batches in a whole epoch."""
        return len(range(0, self.end, self.global_batch))

    def keys(self, epoch: int, first_position: int = 0) -> Iterator[list[SampleKey]]:
        """The batches of an epoch after its first `first_position` images, as keys of the data set."""
        order = list(range(len(self.dataset)))
        if self.shuffle:
            random.Random(f"order {self.seed} {epoch}").shuffle(order)
        for start in range(first_position, self.end, self.global_batch):
            mine = start + self.rank * self.batch_size
            positions = range(mine, min(mine + self.batch_size, len(order)))
            if positions:
                yield [SampleKey(epoch, position, order[position]) for position in positions]

    def epoch(self, epoch: int, first_position: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 1), from the image at `first_position` on. Raises `UserError`."""
        uploads = map(self._upload, self._host_batches(epoch, first_position))
        upload = next(uploads, None)
        while upload is not None:
            batch, upload = self._arrived(*upload), next(uploads, None)
            yield batch

    def close(self) -> None:
        """Stop the workers. The next epoch starts new ones."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None

    def _host_batches(self, epoch: int, first_position: int) -> Iterator[dict[str, Any]]:
        if self.dataset.begin_epoch(epoch) or self.dataset.in_memory:
            self.close()
        keys = self.keys(epoch, first_position)
        if self.num_workers and not self.dataset.in_memory:
            self._workers = self._workers or Workers(self.dataset, self.num_workers)
            batches = self._workers.batches(keys)
        else:
            batches = (make_batch(self.dataset, batch) for batch in keys)
        for made in batches:
            if isinstance(made, UserError):
                raise made
            batch, bad = made
            for error in bad:
                if error.path not in self._named:
                    self._named.add(error.path)
                    print(f"warning: left out: {error.path!r}: {error.found}.", file=sys.stderr)
            if batch:
                yield batch

    def _upload(self, batch: dict[str, Any]) -> tuple[Batch, torch.cuda.Event | None]:
        """Start the copy to the device. The event, on CUDA, marks its end."""
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            for name, value in batch.items():
                if isinstance(value, np.ndarray):
                    tensor = torch.from_numpy(value)
                    tensor = tensor.pin_memory() if self._stream else tensor
                    batch[name] = tensor.to(self.device, non_blocking=True)
            for domain, channels in zip("AB", self.channels, strict=True):
                if domain in batch:
                    mirrored = batch[f"{domain}_windows"][:, 4] > 0
                    batch[domain] = to_input(batch[domain], mirrored, channels)
            return batch, self._stream.record_event() if self._stream else None

    def _arrived(self, batch: Batch, event: torch.cuda.Event | None) -> Batch:
        """Let the current stream wait for the batch, and record that use for the allocator."""
        if event is not None:
            consumer = torch.cuda.current_stream(self.device)
            consumer.wait_event(event)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.record_stream(consumer)
        return batch


def create_loader(
    opt: Namespace, device: torch.device | str, *, rank: int = 0, world_size: int = 1
) -> Loader:
    """The loader of the options: in training shuffled, whole batches; at test every image once, by index."""
    crops_end = opt.isTrain and not (opt.crop_late or opt.n_iterations or opt.n_iterations_decay)
    n_epochs = opt.n_epochs if crops_end else None
    whole = getattr(opt, "whole", False)  # test.py alone says it
    sizes = (opt.preprocess, opt.load_size, opt.crop_size)
    preprocess = Preprocess(*sizes, not opt.no_flip, opt.isTrain, n_epochs=n_epochs, whole=whole)
    names = ["seed", "direction", "serial_batches", "max_dataset_size", "on_bad_image"]
    names += ["domains", "own_domain"] if opt.dataset_mode == "multi" else []
    more = {name: getattr(opt, name) for name in names} | {"grey": parse_grey_range(opt.grey_range)}
    cache_gb = opt.cache_gb if opt.isTrain else 0.0  # at test each image is read once
    dataset = DATASETS[opt.dataset_mode](opt.dataroot, opt.phase, preprocess, cache_gb=cache_gb, **more)
    for domain, store in dataset.stores.items():
        if store.grey:
            say(f"note: domain {domain}: {describe_grey_range(store.grey)}", file=sys.stderr)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    order = {"shuffle": opt.isTrain and not opt.serial_batches, "drop_last": opt.isTrain}
    how = {"num_workers": min(opt.num_threads, cores), "channels": (opt.input_nc, opt.output_nc)}
    ranks = {"rank": rank, "world_size": world_size}
    return Loader(dataset, device, opt.batch_size, opt.seed, **order, **how, **ranks)
