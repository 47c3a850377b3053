"""Translate image files: threads read ahead and write behind while the device translates what was read.

A file that fails (unreadable, too large for the memory, unwritable) is named, and the others go on.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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
    """What translates: `models.inference.Translator`."""

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
        batch_size: at most so many images of one size at a time.
        shorter_side: scale each image to this first, pixels.
        trained_size: side of the training images, pixels; a warning tells of the first image far from it.
    """
    failures: list[Failure] = []
    writes: deque[tuple[Job, Future]] = deque()
    warned = trained_size is None

    def collect(keep: int) -> None:
        """Wait for all but the last `keep` files to be written."""
        while len(writes) > keep:
            job, future = writes.popleft()
            try:
                future.result()
            except OSError as error:
                failures.append(Failure(job.source, f"{job.target} cannot be written ({error})"))
            bar.update()

    with (
        tqdm(total=len(jobs), unit="image", dynamic_ncols=True, disable=None) as bar,
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as writers,
    ):
        photos = _read_ahead(
            jobs, readers, shorter_side, ahead=2 * (batch_size + THREADS), failures=failures, bar=bar
        )
        for batch in _batches(photos, batch_size):
            size = batch[0][1].size
            if not warned and not 1 / FAR <= (size[0] * size[1]) ** 0.5 / trained_size <= FAR:
                warned = True
                tqdm.write(
                    f"warning: {batch[0][0].source} is {size[0]} x {size[1]} pixels, far from the {trained_size} x "
                    f"{trained_size} of the training images, so its translation may be weak (said once). --load_size "
                    f"{trained_size} would scale the shorter side to that first.",
                    file=sys.stderr,
                )
            for part, result in _translated(translator, batch, failures, bar):
                for number, (job, photo) in enumerate(part):
                    writes.append((job, writers.submit(_write, job.target, result, number, photo)))
            collect(keep=2 * (batch_size + THREADS))
        collect(keep=0)
    return failures


Batch = list[tuple[Job, Photo]]


def _read_ahead(
    jobs: Iterable[Job],
    readers: ThreadPoolExecutor,
    shorter_side: int | None,
    ahead: int,
    failures: list[Failure],
    bar: tqdm,
) -> Iterator[tuple[Job, Photo]]:
    """The photos in order, up to `ahead` of them being read at any time."""
    waiting: deque[tuple[Job, Future]] = deque()
    jobs = iter(jobs)
    while True:
        while len(waiting) < ahead and (job := next(jobs, None)) is not None:
            waiting.append((job, readers.submit(read_photo, job.source, shorter_side)))
        if not waiting:
            return
        job, future = waiting.popleft()
        try:
            photo = future.result()
        except ImageError as error:
            failures.append(Failure(job.source, f"{error.found}. {error.remedy.split(';')[0]}"))
            bar.update()
            continue
        yield job, photo


def _batches(photos: Iterable[tuple[Job, Photo]], batch_size: int) -> Iterator[Batch]:
    """Batches of equal size. Sizes that do not fill theirs wait, but not so many that memory would fill."""
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
    translator: Translator, batch: Batch, failures: list[Failure], bar: tqdm
) -> Iterator[tuple[Batch, HostCopy]]:
    """The batch and its translation; where memory does not suffice for it, each image by itself."""
    try:
        result = translator.translate([photo.pixels for _, photo in batch])
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        result = None
    if result is not None:
        yield batch, result
    elif len(batch) > 1:
        for item in batch:
            yield from _translated(translator, [item], failures, bar)
    else:
        job, photo = batch[0]
        told = f"{photo.size[0]} x {photo.size[1]} pixels need more memory than {translator.device} has; give --load_size"
        failures.append(Failure(job.source, told))
        bar.update()


def _is_out_of_memory(error: BaseException) -> bool:
    """torch tells of the CPU's memory by a bare RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate" in str(error) and "memory" in str(error)


def _write(target: Path, result: HostCopy, number: int, photo: Photo) -> None:
    image = finished(result.numpy()[number], photo.alpha)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: image.save(path, format="PNG", compress_level=1))
