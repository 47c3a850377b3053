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
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from util.device import HostCopy
from util.errors import UserError
from util.image_files import ImageError
from util.translate.photo import Photo, finished, read_photo, save_image

THREADS = min(8, os.cpu_count() or 1)
FAR = 2.0  # times larger or smaller than the size to translate at: worth a warning


class Job(NamedTuple):
    """A file to translate and the file to write."""

    source: Path
    target: Path


Batch = list[tuple[Job, Photo]]


def translate_files(
    translator: Any,
    jobs: Sequence[Job],
    *,
    batch_size: int = 1,
    load_size: int | None = None,
    warn: bool = False,
) -> dict[Path, str]:
    """Translate every job's file, under a progress bar; return the reasons of those that failed.

    Args:
        translator: a `models.translator.Translator`.
        batch_size: images of one size at a time, at most.
        load_size: see `to_photo`, whose translate_size is the translator's.
        warn: say of the first image far from that size that its translation may be poor.
    """
    failures: dict[Path, str] = {}
    writes: deque[tuple[Job, Future]] = deque()
    ahead = 2 * (batch_size + THREADS)  # files being read, or being written, at any time

    def fail(job: Job, reason: str) -> None:
        failures[job.source] = reason
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

    def read(job: Job) -> Photo:
        return read_photo(job.source, load_size, translator.translate_size)

    with (
        tqdm(total=len(jobs), unit="image", dynamic_ncols=True, disable=None) as bar,
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as writers,
    ):
        for batch in _batches(_read_ahead(jobs, readers, read, ahead, fail), batch_size):
            warn = warn and not _warned(*batch[0], translator.translate_size)
            for part, result in _translated(translator, batch, fail):
                for number, (job, photo) in enumerate(part):
                    writes.append((job, writers.submit(_write, job.target, result, number, photo)))
            collect(keep=ahead)
        collect(keep=0)
    return failures


def _warned(job: Job, photo: Photo, good: int | None) -> bool:
    """Whether a photo's size is far from that of training, which is then said."""
    if good is None or 1 / FAR <= min(photo.size) / good <= FAR:
        return False
    width, height = photo.size
    tqdm.write(
        f"warning: {job.source} is translated at {width} x {height} pixels, but this model is made for a "
        f"shorter side of {good}, so the translation may be poor (this warning comes once): --load_size "
        f"{good} scales to that",
        file=sys.stderr,
    )
    return True


def _read_ahead(
    jobs: Iterable[Job],
    readers: ThreadPoolExecutor,
    read: Callable[[Job], Photo],
    ahead: int,
    fail: Callable[[Job, str], None],
) -> Iterator[tuple[Job, Photo]]:
    """The photos in order, while the next `ahead` are being read."""
    waiting: deque[tuple[Job, Future]] = deque()
    jobs = iter(jobs)
    while True:
        for job in itertools.islice(jobs, ahead - len(waiting)):
            waiting.append((job, readers.submit(read, job)))
        if not waiting:
            return
        job, future = waiting.popleft()
        try:
            yield job, future.result()
        except ImageError as error:
            fail(job, f"{error.found}. {error.remedy.split(';')[0]}")
        except UserError as error:
            fail(job, str(error))


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
    translator: Any, batch: Batch, fail: Callable[[Job, str], None]
) -> Iterator[tuple[Batch, HostCopy]]:
    """The batch and its translation; if memory does not suffice, each image separately."""
    try:
        yield batch, translator.translate([photo.pixels for _, photo in batch])
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(batch) == 1:
            job, photo = batch[0]
            width, height = photo.size
            fail(job, f"{width} x {height} pixels need more memory; --load_size scales them down ({error})")
            return
        for item in batch:
            yield from _translated(translator, [item], fail)


def _is_out_of_memory(error: BaseException) -> bool:
    """On the CPU, torch reports it as a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate" in str(error) and "memory" in str(error)


def _write(target: Path, result: HostCopy, number: int, photo: Photo) -> None:
    save_image(finished(result.numpy()[number], photo), target)
