"""Which images make a sample, and where they are under --dataroot."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.images import ImageStore, Resize
from data.transforms import Preprocess
from util.errors import UserError
from util.image_files import ImageError, grey_range, list_images

MAX_REPLACEMENTS = 100
NEARLY_ALL = 0.95

HOW_TO_GET_ONE = """To get one:
  download one      bash datasets/download_qsattn_dataset.sh horse2zebra
  or draw a small   python datasets/make_stripes.py
                    and give --dataroot ./datasets/stripes"""


# ---- folders ----


def domain_folders(dataroot: str | Path, phase: str, direction: str = "AtoB") -> tuple[Path, Path]:
    """The folders of source and target of an unpaired set: trainA, trainB; testA, testB (else valA, valB).

    direction "BtoA" exchanges them. Raises `UserError` if the source does not exist; the target may not
    exist.
    """
    source, _, target = direction.partition("to")
    phase = _phase_with(dataroot, phase, source)
    return Path(dataroot, phase + source), Path(dataroot, phase + target)


def paired_folder(dataroot: str | Path, phase: str) -> Path:
    """The folder of side-by-side pairs: train; test (else val). Raises `UserError` if there is none."""
    return Path(dataroot, _phase_with(dataroot, phase, ""))


def _phase_with(dataroot: str | Path, phase: str, domain: str) -> str:
    phases = ("test", "val") if phase == "test" else (phase,)
    for candidate in phases:
        if Path(dataroot, candidate + domain).is_dir():
            return candidate
    names = " or ".join(f"{candidate}{domain}" for candidate in phases)
    if not Path(dataroot).is_dir():
        raise UserError(f"no data set at {str(dataroot)!r}: there is no such folder. {HOW_TO_GET_ONE}")
    there = sorted(path.name for path in Path(dataroot).iterdir() if path.is_dir())[:12]
    found = ", ".join(map(repr, there)) or "no folders"
    raise UserError(
        f"no folder {names} in the data set {str(dataroot)!r}, which has {found}. "
        f"Check --dataroot, --phase and --dataset_mode. {HOW_TO_GET_ONE}"
    )


def domain_folder(dataroot: str | Path, phase: str, domain: str) -> Path:
    """The folder of one of many domains: PHASE/DOMAIN or PHASEDOMAIN; test falls back to val."""
    phases = ("test", "val") if phase == "test" else (phase,)
    places = [Path(dataroot, folder) for name in phases for folder in (f"{name}/{domain}", f"{name}{domain}")]
    for place in places:
        if place.is_dir():
            return place
    there = sorted(path.name for path in Path(dataroot).glob("*") if path.is_dir())[:12]
    raise UserError(
        f"there is no folder {places[0]} or {places[1]} of the domain {domain}; {str(dataroot)!r} has "
        f"{', '.join(there) or 'no folders'}: check --dataroot and --domains"
    )


def find_domains(dataroot: str | Path, phase: str) -> list[str]:
    """The names of a set's domains, sorted: the folders of PHASE/, else what follows PHASE in folders' names.

    Raises:
        UserError: there are fewer than two, or a name holds a comma.
    """
    folders = [path.name for path in Path(dataroot).glob("*") if path.is_dir()]
    found = [path.name for path in Path(dataroot, phase).glob("*") if path.is_dir()]
    found = sorted(found or [name.removeprefix(phase) for name in folders if name.startswith(phase)])
    if len(found) < 2 or any("," in name for name in found):
        raise UserError(
            f"{str(dataroot)!r} has {', '.join(map(repr, found)) or 'no folders'} for the phase {phase}, but "
            "at least two domains are needed, without commas in their names: lay them out as "
            f"{phase}/cat, {phase}/dog or {phase}A, {phase}B, or name some with --domains"
        )
    return found


# ---- samples ----


class SampleKey(NamedTuple):
    """The index of a data set: epoch from 1, position in the epoch from 0, index of the image."""

    epoch: int
    position: int
    index: int


class View(NamedTuple):
    """What a sample shows of one image.

    pixels: (h, w, 3) uint8, not mirrored yet. part: top, left, height and width as fractions of the image,
    and 1 if mirrored. replaced: the errors of files in whose place this one came. domain: its number, in a
    set of many domains.
    """

    pixels: np.ndarray
    mirrored: bool
    part: tuple[float, float, float, float, float]
    path: str
    replaced: tuple[ImageError, ...] = ()
    domain: int | None = None


class BaseDataset:
    """Samples by `SampleKey`: the views by domain, "A" (source) and "B" (target).

    Random numbers come from a generator seeded by (seed, epoch, position), so a sample does not depend on the
    worker that makes it or on earlier samples. A subclass defines `open_stores`, `__len__` (images per epoch)
    and `make`.

    Args:
        dataroot: the data set's folder.
        phase: "train", "test", ...: the beginning of the names of its folders.
        preprocess: how images become inputs.
        seed: of everything that is drawn.
        direction: "AtoB", or "BtoA" to exchange the domains, so that "A" of a sample is always the source.
        serial_batches: B is taken by index, not drawn.
        max_dataset_size: use only the first so many images of a folder.
        on_bad_image: "stop" raises the `ImageError` of an image that cannot be used. "skip" takes another
            image in training, drawn from the sample's generator (each time, so that the draw is the same
            whether or not the file was known to be bad); at test the error is raised and the loader leaves
            the sample out.
        cache_gb: gigabytes for decoded images.
        grey: black and white of grey images of more than 8 bits; None: each folder's `grey_range`.
    """

    def __init__(
        self,
        dataroot: str | Path,
        phase: str,
        preprocess: Preprocess,
        *,
        seed: int = 0,
        direction: str = "AtoB",
        serial_batches: bool = False,
        max_dataset_size: float = math.inf,
        on_bad_image: str = "stop",
        cache_gb: float = 0.0,
        grey: tuple[float, float] | None = None,
    ) -> None:
        self.dataroot, self.preprocess, self.seed = Path(dataroot), preprocess, seed
        self.direction, self.on_bad_image = direction, on_bad_image
        self.cache_gb, self.grey = cache_gb, grey
        self.in_order = serial_batches or not preprocess.training
        self.stores = self.open_stores(phase, max_dataset_size)

    def open_stores(self, phase: str, limit: float) -> dict[str, ImageStore]:
        """The images of each domain, at most `limit` per folder."""
        raise NotImplementedError

    def open_store(self, paths: list[Path], resize: Resize, gigabytes: float, columns: int = 1) -> ImageStore:
        grey = self.grey or grey_range(paths)
        return ImageStore(paths, self.preprocess, resize, gigabytes, columns, grey)

    def __len__(self) -> int:
        raise NotImplementedError

    def make(self, key: SampleKey, generator: random.Random) -> dict[str, View]:
        """The views of a sample."""
        raise NotImplementedError

    def __getitem__(self, key: SampleKey) -> dict[str, View]:
        return self.make(key, random.Random(f"sample {self.seed} {key.epoch} {key.position}"))

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each domain."""
        return {domain: len(store) for domain, store in self.stores.items()}

    @property
    def in_memory(self) -> bool:
        """Whether (nearly) all images are cached, so that workers would not help."""
        return sum(store.cached for store in self.stores.values()) >= NEARLY_ALL * sum(self.sizes.values())

    def begin_epoch(self, epoch: int) -> bool:
        """Make caches for the size of an epoch; whether there are new ones, of which workers do not know."""
        return any([store.begin_epoch(epoch) for store in self.stores.values()])

    def read(
        self, store: ImageStore, index: int, epoch: int, generator: random.Random
    ) -> tuple[np.ndarray, str, tuple[ImageError, ...]]:
        """The image (H, W, 3) uint8 at `index` of a store or its replacement, its file, and the failures."""
        failed: list[ImageError] = []
        while len(failed) < MAX_REPLACEMENTS:
            try:
                return store.read(index, epoch), store.paths[index], tuple(failed)
            except ImageError as error:
                if self.on_bad_image == "stop" or not self.preprocess.training:
                    raise
                failed.append(error)
                index = generator.randrange(len(store))
        raise UserError(
            f"{MAX_REPLACEMENTS} images in a row could not be used, the last being {failed[-1].path!r}. "
            "See what is wrong with the data set: python scripts/check_dataset.py DATAROOT"
        )

    def view(
        self,
        pixels: np.ndarray,
        path: str,
        window: tuple[int, int, bool],
        replaced=(),
        domain: int | None = None,
    ) -> View:
        """A window (top, left, mirrored) of an image (H, W, 3)."""
        (rows, columns), (top, left, mirrored) = pixels.shape[:2], window
        height, width = self.preprocess.input_size(rows, columns)
        part = (top / rows, left / columns, height / rows, width / columns, float(mirrored))
        return View(pixels[top : top + height, left : left + width], mirrored, part, path, replaced, domain)


class UnalignedDataset(BaseDataset):
    """A by index, B at random (by index with serial_batches and at test), each with its own crop and
    mirroring.

    A training epoch is as long as the larger folder; a smaller A starts over. At test it is every image of A
    once; B is for comparison, and may be missing.
    """

    def open_stores(self, phase: str, limit: float) -> dict[str, ImageStore]:
        folders = dict(zip("AB", domain_folders(self.dataroot, phase, self.direction), strict=True))
        if not self.preprocess.training and not folders["B"].is_dir():
            del folders["B"]
        paths = {domain: list_images(folder, limit) for domain, folder in folders.items()}
        share = self.cache_gb / sum(map(len, paths.values()))  # gigabytes per image
        return {
            domain: self.open_store(files, self.preprocess.resize, share * len(files))
            for domain, files in paths.items()
        }

    def __len__(self) -> int:
        return max(self.sizes.values()) if self.preprocess.training else self.sizes["A"]

    def make(self, key: SampleKey, generator: random.Random) -> dict[str, View]:
        views = {}
        for domain, store in self.stores.items():
            index = key.index % len(store)
            if domain == "B" and not self.in_order:
                index = generator.randrange(len(store))
            pixels, path, replaced = self.read(store, index, key.epoch, generator)
            window = self.preprocess.draw_window(generator, *pixels.shape[:2])
            views[domain] = self.view(pixels, path, window, replaced)
        return views


class AlignedDataset(BaseDataset):
    """Pairs in pix2pix's layout: the halves of one file, resized apart, cropped and mirrored alike.

    An epoch is every file once. direction: "AtoB" (source on the left) or "BtoA" (source on the right).
    """

    def open_stores(self, phase: str, limit: float) -> dict[str, ImageStore]:
        paths = list_images(paired_folder(self.dataroot, phase), limit)
        resize = functools.partial(resize_halves, self.preprocess)
        pairs = self.open_store(paths, resize, self.cache_gb, columns=2)
        return {"A": pairs, "B": pairs}

    def __len__(self) -> int:
        return self.sizes["A"]

    def make(self, key: SampleKey, generator: random.Random) -> dict[str, View]:
        pixels, path, replaced = self.read(self.stores["A"], key.index, key.epoch, generator)
        middle = pixels.shape[1] // 2
        left, right = pixels[:, :middle], pixels[:, middle:]
        source, target = (left, right) if self.direction == "AtoB" else (right, left)
        window = self.preprocess.draw_window(generator, *source.shape[:2])
        return {"A": self.view(source, path, window, replaced), "B": self.view(target, path, window)}


def resize_halves(preprocess: Preprocess, image: Image.Image, load_size: int) -> Image.Image:
    """Resize the two halves of a side-by-side image separately, and join them again."""
    if image.width % 2:
        raise UserError(f"it is {image.width} pixels wide, and a side-by-side pair has an even width")
    middle = image.width // 2
    left, right = (
        preprocess.resize(image.crop((start, 0, start + middle, image.height)), load_size)
        for start in (0, middle)
    )
    return side_by_side(left, right)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two RGB images of one height in one."""
    pair = Image.new("RGB", (left.width + right.width, left.height))
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width, 0))
    return pair


class SingleDataset(BaseDataset):
    """The images under `dataroot` as domain "A", for translating. Raises `UserError` in training."""

    def open_stores(self, phase: str, limit: float) -> dict[str, ImageStore]:
        if self.preprocess.training:
            raise UserError(
                "--dataset_mode single has no domain B to train towards. Train with unaligned or aligned; "
                "single is for test.py."
            )
        paths = list_images(self.dataroot, limit)
        return {"A": self.open_store(paths, self.preprocess.resize, self.cache_gb)}

    def __len__(self) -> int:
        return self.sizes["A"]

    def make(self, key: SampleKey, generator: random.Random) -> dict[str, View]:
        pixels, path, replaced = self.read(self.stores["A"], key.index, key.epoch, generator)
        window = self.preprocess.draw_window(generator, *pixels.shape[:2])
        return {"A": self.view(pixels, path, window, replaced)}


class DomainsDataset(BaseDataset):
    """Many domains: A of one, B of the domain to translate it to; both tell theirs.

    A training epoch is N times the largest of N domains, each a source equally often whatever its size; the
    target and its image are drawn. At test it is every image of every domain once, as "A" alone.

    Args:
        domains: their names, in order. own_domain: whether a target may be the source's own domain.
    """

    def __init__(self, *args, domains: list[str], own_domain: bool = False, **settings) -> None:
        self.domains, self.own_domain = domains, own_domain
        super().__init__(*args, **settings)

    def open_stores(self, phase: str, limit: float) -> dict[str, ImageStore]:
        paths = {name: list_images(domain_folder(self.dataroot, phase, name), limit) for name in self.domains}
        share = self.cache_gb / sum(map(len, paths.values()))  # gigabytes per image
        return {
            name: self.open_store(files, self.preprocess.resize, share * len(files))
            for name, files in paths.items()
        }

    def __len__(self) -> int:
        sizes = self.sizes.values()
        return len(sizes) * max(sizes) if self.preprocess.training else sum(sizes)

    def make(self, key: SampleKey, generator: random.Random) -> dict[str, View]:
        count, sizes = len(self.domains), list(self.sizes.values())
        if not self.preprocess.training:
            source, index = 0, key.index
            while index >= sizes[source]:
                index -= sizes[source]
                source += 1
            return {"A": self.see(source, index, key, generator)}
        source = key.index % count
        views = {"A": self.see(source, key.index // count % sizes[source], key, generator)}
        target = (source + generator.randrange(0 if self.own_domain else 1, count)) % count
        views["B"] = self.see(target, generator.randrange(sizes[target]), key, generator)
        return views

    def see(self, domain: int, index: int, key: SampleKey, generator: random.Random) -> View:
        """A window of the image at `index` of a domain."""
        pixels, path, replaced = self.read(self.stores[self.domains[domain]], index, key.epoch, generator)
        window = self.preprocess.draw_window(generator, *pixels.shape[:2])
        return self.view(pixels, path, window, replaced, domain)


# ---- whether a resumed training sees the same files ----

Fingerprint = dict[str, dict[str, object]]  # domain -> {"images": count, "names": hash of the names in order}


def fingerprint(dataset: BaseDataset) -> Fingerprint:
    """The files of each domain: their count, and a hash of their names under the data set's folder."""
    found = {}
    for domain, store in dataset.stores.items():
        names = "\0".join(os.path.relpath(path, dataset.dataroot) for path in store.paths)
        digest = hashlib.blake2b(os.fsencode(names), digest_size=16).hexdigest()
        found[domain] = {"images": len(store.paths), "names": digest}
    return found


def changes(before: Mapping[str, Mapping[str, object]], now: Fingerprint) -> list[str]:
    """One line per domain whose files are not those of `before`."""
    lines = []
    for domain in sorted({*before, *now}):
        there, here = before.get(domain, {}), now.get(domain, {})
        if there.get("images", 0) != here.get("images", 0):
            lines.append(
                f"domain {domain}: {there.get('images', 0)} images there, {here.get('images', 0)} now"
            )
        elif there.get("names") != here.get("names"):
            lines.append(f"domain {domain}: {here['images']} images as there, but with other names")
    return lines
