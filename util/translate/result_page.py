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

from util.device import HostCopy
from util.files import write_atomically
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
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "index.html").unlink(missing_ok=True)
        earlier = json.loads(record.read_text()) if record.is_file() else []
        for file in set(earlier) - set(files):
            (self.folder / file).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder holds others
                for folder in list(Path(file).parents)[:-2]:
                    (self.folder / folder).rmdir()
        write_atomically(record, lambda path: path.write_text(json.dumps(files, indent=0)))

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
        for name, labels in self.rows:
            files = [f"images/{label}/{name.as_posix()}" for label in labels]
            page.add_images(
                name.with_suffix("").as_posix(), files, labels, compare=_translation(name, labels)
            )
        page.save()

    def _collect(self, keep: int) -> None:
        """Wait for all but the last `keep` files to be written."""
        while len(self._writes) > keep:
            self._writes.popleft().result()


def _translation(name: Path, labels: list[str]) -> str:
    """The label to compare with the source: the first translation, to another domain than the image's own."""
    translations = [label for label in labels if label.startswith(("fake_B", "to_"))]
    others = (label for label in translations if label != f"to_{name.parts[0]}")
    return next(others, translations[0])


def _write(copy: HostCopy, number: int, channels: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(copy.numpy()[number][..., :channels]).save(path, format="PNG", compress_level=1)
