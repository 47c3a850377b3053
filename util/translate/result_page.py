"""The results of test.py on a data set: PNG files by label, and the page that shows them."""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace
from collections import deque
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from util.errors import UserError
from util.host_copy import HostCopy
from util.images import to_pixels
from util.pages import Page
from util.translate.photo import to_image
from util.translate.translate_files import THREADS

RECORD = ".images.json"  # the files that the last call made, or was about to make


class ResultPage:
    """Writes images/LABEL/NAME.png by threads, inside its `with` block, and index.html once all are there."""

    def __init__(self, folder: Path, opt: Namespace):
        self.folder, self.opt = folder, opt
        self.rows: list[tuple[Path, list[str]]] = []
        self._writes: deque[Future] = deque()

    def __enter__(self) -> ResultPage:
        self._pool = ThreadPoolExecutor(THREADS)
        return self

    def __exit__(self, *_) -> None:
        try:
            self._collect(keep=0)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def clear(self, names: Collection[Path], labels: Collection[str]) -> None:
        """Remove the page of an earlier call, which means that it was complete, and images it alone made."""
        record = self.folder / RECORD
        files = sorted(f"images/{label}/{name.as_posix()}" for label in labels for name in names)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "index.html").unlink(missing_ok=True)
            for file in set(_recorded(record)) - set(files):
                (self.folder / file).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the folder holds others
                    for folder in list(Path(file).parents)[:-2]:
                        (self.folder / folder).rmdir()
            record.write_text(json.dumps(files, indent=0))
        except OSError as error:
            found = f"the results cannot be written to {self.folder} ({error})"
            raise UserError(f"{found}: give another --results_dir") from None

    def add(self, names: list[Path], images: Mapping[str, Tensor]) -> None:
        """Write the images by label, each (B, C, H, W) in [-1, 1], under `names`; of one channel as grey."""
        copies = {label: HostCopy(to_pixels(batch)) for label, batch in images.items()}
        channels = {label: 1 if batch.shape[1] == 1 else 3 for label, batch in images.items()}
        for number, name in enumerate(names):
            for label, copy in copies.items():
                path = self.folder / "images" / label / name
                self._writes.append(self._pool.submit(_write, copy, number, channels[label], path))
            self.rows.append((name, list(copies)))
        self._collect(keep=4 * THREADS * len(images))

    def save(self, count: str) -> None:
        """Write the page. `count`: how many images of how many."""
        opt = self.opt
        page = Page(self.folder, f"{opt.name}: {opt.phase}, epoch {opt.epoch}")
        page.add_facts(
            {"images": count, "from": f"{opt.dataroot} ({', '.join(opt.domains) or opt.direction})"}
        )
        page.add_jump_list([name.with_suffix("").as_posix() for name, _ in self.rows])
        for name, labels in self.rows:
            files = [f"images/{label}/{name.as_posix()}" for label in labels]
            page.add_images(
                name.with_suffix("").as_posix(), files, labels, compare=_translation(name, labels)
            )
        page.save()

    def _collect(self, keep: int) -> None:
        """Wait for all but the last `keep` files to be written."""
        while len(self._writes) > keep:
            try:
                self._writes.popleft().result()
            except OSError as error:
                found = f"a result cannot be written ({error})"
                raise UserError(f"{found}: make room, or give another --results_dir") from None


def _translation(name: Path, labels: list[str]) -> str:
    """The label to compare with the source: the first translation, to another domain than the image's own."""
    translations = [label for label in labels if label.startswith(("fake_B", "to_"))]
    others = (label for label in translations if label != f"to_{name.parts[0]}")
    return next(others, translations[0])


def _recorded(record: Path) -> list[str]:
    """The files that an earlier call recorded; none of a record that cannot be read or names other places."""
    try:
        files = json.loads(record.read_text())
    except (OSError, ValueError):
        return []
    inside = [file for file in files if isinstance(file, str) and file.startswith("images/")]
    return [file for file in inside if file.endswith(".png") and ".." not in Path(file).parts]


def _write(copy: HostCopy, number: int, channels: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(copy.numpy()[number][..., :channels]).save(path, format="PNG", compress_level=1)
