"""Image files translated and written: threads read and write while the device translates."""

import contextlib
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from util.device import HostCopy
from util.errors import UserError, lacks_memory
from util.files import write_atomically
from util.image_files import ImageError
from util.translate.photo import Photo, finished, read_photo, save_image

THREADS = min(8, os.cpu_count() or 1)
FAR = 2.0  # times larger or smaller than the size to translate at: worth a warning
RECORD = ".images.json"  # in a folder of results: the files that the last call made, or was about to make

Job = tuple[Path, Path]  # a file to translate and the file to write


def in_threads(function: Callable, items: Iterable, ahead: int) -> Iterator[tuple[Any, Future]]:
    """Call the function with each item in threads; the items with the calls' futures, in order.

    At most `ahead` calls are waiting or done beyond the one that is given out.
    """
    calls: deque[tuple[Any, Future]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                calls.append((item, pool.submit(function, item)))
                if len(calls) > ahead:
                    yield calls.popleft()
            yield from calls
        finally:
            pool.shutdown(cancel_futures=True)


def translate_files(
    translator: Any,
    jobs: Sequence[Job],
    *,
    batch_size: int = 1,
    load_size: int | None = None,
    warn: bool = False,
) -> dict[Path, str]:
    """Translate every job's file, under a progress bar; the reasons of those that failed, by file.

    Args:
        translator: a `models.translator.Translator`.
        batch_size: translate up to so many consecutive images of one size at a time.
        load_size: see `to_photo`, whose translate_size is the translator's.
        warn: say of the first image far from that size that its translation may be poor.
    """
    failures: dict[Path, str] = {}
    good, ahead = translator.translate_size, 2 * (batch_size + THREADS)

    def read(job: Job) -> Photo:
        return read_photo(job[0], load_size, good)

    def photos() -> Iterator[tuple[Job, Photo]]:
        for job, reading in in_threads(read, jobs, ahead):
            try:
                yield job, reading.result()
            except ImageError as error:
                failures[job[0]] = f"{error.found}. {error.remedy.split(';')[0]}"
            except UserError as error:
                failures[job[0]] = str(error)

    def translations() -> Iterator[tuple[Job, Photo, HostCopy, int]]:
        """Each photo with the copy that has its translation, and the place there."""
        nonlocal warn
        for size, group in itertools.groupby(photos(), key=lambda item: item[1].size):
            if warn and good and not 1 / FAR <= min(size) / good <= FAR:
                warn = False
                found = (
                    f"translated at {size[0]} x {size[1]} pixels by a model made for a shorter side of {good}"
                )
                tqdm.write(f"warning: {found}: --load_size {good} scales to that", file=sys.stderr)
            while batch := list(itertools.islice(group, batch_size)):
                yield from _translated(translator, batch, failures)

    def write(item: tuple[Job, Photo, HostCopy, int]) -> None:
        (_, target), photo, result, place = item
        save_image(finished(result.numpy()[place], photo), target)

    with tqdm(total=len(jobs), unit="image", dynamic_ncols=True, disable=None) as bar:
        for (job, *_), writing in in_threads(write, translations(), ahead):
            try:
                writing.result()
            except OSError as error:
                failures[job[0]] = f"{job[1]} cannot be written ({error})"
            bar.update()
    return failures


def _translated(
    translator: Any, batch: list[tuple[Job, Photo]], failures: dict[Path, str]
) -> Iterator[tuple[Job, Photo, HostCopy, int]]:
    """The batch with its translation; if memory does not suffice, each image separately."""
    try:
        result = translator.translate([photo.pixels for _, photo in batch])
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        if len(batch) == 1:
            (source, _), photo = batch[0]
            width, height = photo.size
            found = f"{width} x {height} pixels need more memory"
            failures[source] = f"{found}; --load_size scales them down ({error})"
            return
        for item in batch:
            yield from _translated(translator, [item], failures)
    else:
        for place, (job, photo) in enumerate(batch):
            yield job, photo, result, place


def clear_results(folder: Path, files: Collection[str]) -> None:
    """Remove the page of an earlier call, which means that it was complete, and images it alone made.

    files: those that this call is going to make, below `folder`.
    """
    record = folder / RECORD
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").unlink(missing_ok=True)
    earlier = json.loads(record.read_text()) if record.is_file() else []
    for file in set(earlier) - set(files):
        (folder / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder holds others
            for parent in list(Path(file).parents)[:-2]:
                (folder / parent).rmdir()
    write_atomically(record, lambda path: path.write_text(json.dumps(sorted(files), indent=0)))
