"""Translate image files: threads read the next files and write the last results while the device translates.

A file that fails (unreadable, too large for the memory, unwritable) is reported, and the others continue.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from util.files import write_atomically
from util.host_copy import HostCopy
from util.image_files import ImageError
from util.translate.photo import Photo, finished, read_photo

THREADS = min(8, os.cpu_count() or 1)
FAR = 2.0  # times larger or smaller than the training images: worth a warning


class Translator(Protocol):
    """Such as `models.inference.Translator`."""

    device: torch.device

    def translate(self, pixels: Sequence[np.ndarray]) -> HostCopy:
        """Translate images (H, W, 3) uint8 of one size."""


class Job(NamedTuple):
    """A file to translate and the PNG file to write."""

    source: Path
    target: Path


class Failure(NamedTuple):
    """A file that was not translated, and why."""

    source: Path
    reason: str


Batch = list[tuple[Job, Photo]]


def translate_files(
    translator: Translator,
    jobs: Sequence[Job],
    *,
    batch_size: int = 1,
    shorter_side: int | None = None,
    trained_size: int | None = None,
) -> list[Failure]:
    """Translate every job's file, under a progress bar; return those that failed.

    Args:
        batch_size: images of one size at a time, at most.
        shorter_side: scale each image to this first, pixels.
        trained_size: side of the training images, pixels; the first image far from it gives a warning.
    """
    failures: list[Failure] = []
    writes: deque[tuple[Job, Future]] = deque()
    ahead = 2 * (batch_size + THREADS)  # files being read, or being written, at any time

    def fail(job: Job, reason: str) -> None:
        failures.append(Failure(job.source, reason))
        bar.update()

    def collect(keep: int) -> None:
        """Wait for all but the last `keep` files to be written."""
        while len(writes) > keep:
            job, future = writes.popleft()
            try:
                future.result()
                bar.update()
            except OSError as error:
                fail(job, f"{job.target} cannot be written ({error})")

    with (
        tqdm(total=len(jobs), unit="image", dynamic_ncols=True, disable=None) as bar,
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as writers,
    ):
        for batch in _batches(_read_ahead(jobs, readers, shorter_side, ahead, fail), batch_size):
            if trained_size is not None and _is_far(batch[0][1].size, trained_size):
                _warn_of_size(*batch[0], trained_size)
                trained_size = None
            for part, result in _translated(translator, batch, fail):
                for number, (job, photo) in enumerate(part):
                    writes.append((job, writers.submit(_write, job.target, result, number, photo)))
            collect(keep=ahead)
        collect(keep=0)
    return failures


def _is_far(size: tuple[int, int], trained_size: int) -> bool:
    return not 1 / FAR <= (size[0] * size[1]) ** 0.5 / trained_size <= FAR


def _warn_of_size(job: Job, photo: Photo, trained_size: int) -> None:
    tqdm.write(
        f"warning: {job.source} is {photo.size[0]} x {photo.size[1]} pixels, far from the {trained_size} x "
        f"{trained_size} of the training images, so its translation may be poor (this warning comes once). "
        f"--load_size {trained_size} scales the shorter side to that first.",
        file=sys.stderr,
    )


def _read_ahead(
    jobs: Iterable[Job],
    readers: ThreadPoolExecutor,
    shorter_side: int | None,
    ahead: int,
    fail: Callable[[Job, str], None],
) -> Iterator[tuple[Job, Photo]]:
    """The photos in order, while the next `ahead` are being read."""
    waiting: deque[tuple[Job, Future]] = deque()
    jobs = iter(jobs)
    while True:
        for job in itertools.islice(jobs, ahead - len(waiting)):
            waiting.append((job, readers.submit(read_photo, job.source, shorter_side)))
        if not waiting:
            return
        job, future = waiting.popleft()
        try:
            yield job, future.result()
        except ImageError as error:
            fail(job, f"{error.found}. {error.remedy.split(';')[0]}")


def _batches(photos: Iterable[tuple[Job, Photo]], batch_size: int) -> Iterator[Batch]:
    """Batches of images of one size. Incomplete batches wait, up to 4 batches' images in all."""
    waiting: dict[tuple[int, int], Batch] = {}
    for job, photo in photos:
        group = waiting.setdefault(photo.size, [])
        group.append((job, photo))
        if len(group) == batch_size:
            yield waiting.pop(photo.size)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


def _translated(
    translator: Translator, batch: Batch, fail: Callable[[Job, str], None]
) -> Iterator[tuple[Batch, HostCopy]]:
    """The batch and its translation; if memory does not suffice, each image separately."""
    try:
        yield batch, translator.translate([photo.pixels for _, photo in batch])
        return
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    if len(batch) > 1:
        for item in batch:
            yield from _translated(translator, [item], fail)
    else:
        job, photo = batch[0]
        size = f"{photo.size[0]} x {photo.size[1]} pixels"
        fail(job, f"{size} need more memory than {translator.device} has; give --load_size")


def _is_out_of_memory(error: BaseException) -> bool:
    """On the CPU, torch reports it as a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate" in str(error) and "memory" in str(error)


def _write(target: Path, result: HostCopy, number: int, photo: Photo) -> None:
    image = finished(result.numpy()[number], photo.alpha)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: image.save(path, format="PNG", compress_level=1))
