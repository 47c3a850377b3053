"""Which images make a sample, and the images of one folder: decoded, resized for the epoch, and cached."""

import math
import mmap
import random
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from data.folders import domain_folder, domain_folders
from data.transforms import Preprocess
from util.errors import UserError
from util.image_files import ImageError, grey_range, list_images, open_rgb

MAX_REPLACEMENTS = 100
NEARLY_ALL = 0.95


@dataclass(eq=False)
class ImageStore:
    """Images by index, each (H, W, 3) uint8; with `columns` side by side in a file, each resized by itself.

    The cache keeps the first images that fit into `gigabytes` (1e9 bytes), in resize_and_crop, where all have
    one size. It is an anonymous shared mapping, made before the workers are forked, so that all of them
    see what one decodes; it takes memory as it fills and does not depend on the size of /dev/shm. No lock is
    needed: a place is written, then marked, and two workers that fill it write the same bytes. Workers that
    are not forked (macOS, Windows) have no cache.
    """

    paths: list[str]
    preprocess: Preprocess
    gigabytes: float
    columns: int = 1
    grey: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._set_cache(0, 0)

    def __len__(self) -> int:
        return len(self.paths)

    def begin_epoch(self, epoch: int) -> bool:
        """Make a cache for the size of an epoch; whether it is a new one, of which workers do not know."""
        load_size = self.preprocess.load_size_at(epoch)
        if self.preprocess.mode != "resize_and_crop" or load_size == self._cached_size:
            return False
        image_bytes = 3 * self.columns * load_size**2
        self._set_cache(load_size, min(len(self), int(self.gigabytes * 1e9 // image_bytes)))
        return True

    def read(self, index: int, epoch: int) -> np.ndarray:
        """The image at the size of `epoch`. Raises `ImageError` if it cannot be used."""
        load_size = self.preprocess.load_size_at(epoch)
        has_place = load_size == self._cached_size and index < len(self._kept)
        if has_place and self._kept[index]:
            return self._cache[index]
        image = self._decode(self.paths[index], load_size)
        if has_place:
            self._cache[index] = image
            self._kept[index] = True
        return image

    @property
    def cached(self) -> int:
        """How many images are in memory."""
        return int(self._kept.sum())

    def _decode(self, path: str, load_size: int) -> np.ndarray:
        image = open_rgb(path, self.grey)
        width, rest = divmod(image.width, self.columns)
        if rest:
            raise ImageError(path, f"it is {image.width} pixels wide, and a pair has an even width")
        boxes = [(left, 0, left + width, image.height) for left in range(0, image.width, width)]
        try:
            parts = [np.asarray(self.preprocess.resize(image.crop(box), load_size)) for box in boxes]
        except UserError as error:
            remedy = "Remove it, or change --load_size, --crop_size or --preprocess"
            raise ImageError(path, str(error), remedy) from error
        return np.concatenate(parts, axis=1)

    def _set_cache(self, load_size: int, count: int) -> None:
        self._cached_size = load_size
        self._cache = _shared_zeros((count, load_size, load_size * self.columns, 3))
        self._kept = _shared_zeros((count,)).view(bool)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cached_size": 0, "_cache": None, "_kept": np.zeros(0, bool)}


def _shared_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes that this process shares with those it forks."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)[:size].reshape(shape)


class SampleKey(NamedTuple):
    """The index of a data set: epoch from 1, position in the epoch from 0, index of the image."""

    epoch: int
    position: int
    index: int


class View(NamedTuple):
    """What a sample shows of one image."""

    pixels: np.ndarray  # (h, w, 3) uint8, not mirrored yet
    part: tuple[float, ...]  # top, left, height and width as fractions of the image, and 1 if mirrored
    path: str
    replaced: tuple[ImageError, ...]  # the errors of files in whose place this one came
    domain: int | None  # its number, in a set of many domains


@dataclass(eq=False)
class BaseDataset:
    """Samples by `SampleKey`: the views by domain, "A" (source) and "B" (target).

    Random numbers come from a generator seeded by (seed, epoch, position), so a sample does not depend on the
    worker that makes it or on earlier samples. A subclass defines `find_images` (the files of each domain),
    `make` (the views of a sample) and, if it is not the number of images of A, `__len__` (images per epoch).
    """

    columns: ClassVar[int] = 1  # images side by side in one file

    dataroot: str | Path
    phase: str  # "train", "test", ...: the beginning of the names of its folders
    preprocess: Preprocess
    _: KW_ONLY
    seed: int = 0
    direction: str = "AtoB"  # "BtoA" exchanges the domains, so that "A" of a sample is always the source
    serial_batches: bool = False  # B is taken by index, not drawn
    max_dataset_size: float = math.inf  # use only the first so many images of a folder
    # "stop" raises the `ImageError` of an image that cannot be used. "skip" takes another one in training,
    # drawn from the sample's generator; at test the error is raised, and the loader leaves the sample out.
    on_bad_image: str = "stop"
    cache_gb: float = 0.0  # gigabytes for decoded images
    grey: tuple[float, float] | None = None  # black and white of deep grey; None: each folder's `grey_range`
    domains: Sequence[str] = ()  # names of many domains, in order
    own_domain: bool = False  # whether a target of many may be the source's own domain

    def __post_init__(self) -> None:
        files = self.find_images()
        share = self.cache_gb / sum(map(len, files.values()))  # gigabytes per image
        self.stores = {}
        for name, paths in files.items():
            about = self.preprocess, share * len(paths), self.columns, self.grey or grey_range(paths)
            self.stores[name] = ImageStore([str(path) for path in paths], *about)

    def __len__(self) -> int:
        return self.sizes["A"]

    def __getitem__(self, key: SampleKey) -> dict[str, View]:
        return self.make(key, random.Random(f"sample {self.seed} {key.epoch} {key.position}"))

    @property
    def files(self) -> dict[str, list[str]]:
        """The images of each domain."""
        return {domain: store.paths for domain, store in self.stores.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each domain."""
        return {domain: len(paths) for domain, paths in self.files.items()}

    @property
    def sources(self) -> dict[str, list[str]]:
        """The images that are translated, in the order of their index, by the folder of their results."""
        return {"": self.stores["A"].paths}

    @property
    def in_memory(self) -> bool:
        """Whether (nearly) all images are cached, so that workers would not help."""
        stores = self.stores.values()
        return sum(store.cached for store in stores) >= NEARLY_ALL * sum(map(len, stores))

    def begin_epoch(self, epoch: int) -> bool:
        """Make caches for the size of an epoch; whether there are new ones, of which workers do not know."""
        return any([store.begin_epoch(epoch) for store in self.stores.values()])

    def see(
        self, store: ImageStore, index: int, key: SampleKey, rng: random.Random, domain=None
    ) -> list[View]:
        """One window, drawn here, of each image in the file at `index`, or in its replacement."""
        failed: list[ImageError] = []
        while True:
            try:
                pixels = store.read(index, key.epoch)
                break
            except ImageError as error:
                if self.on_bad_image == "stop" or not self.preprocess.training:
                    raise
                failed.append(error)
                index = rng.randrange(len(store))
            if len(failed) == MAX_REPLACEMENTS:
                found = f"{MAX_REPLACEMENTS} images in a row could not be used, the last {failed[-1].path!r}"
                raise UserError(f"{found}. See what is wrong: python scripts/check_dataset.py DATAROOT")
        images = np.split(pixels, self.columns, axis=1)
        rows, columns = images[0].shape[:2]
        top, left, mirrored = self.preprocess.draw_window(rng, rows, columns)
        height, width = self.preprocess.input_size(rows, columns)
        part = (top / rows, left / columns, height / rows, width / columns, float(mirrored))
        window = np.s_[top : top + height, left : left + width]
        return [View(image[window], part, store.paths[index], tuple(failed), domain) for image in images]


class UnalignedDataset(BaseDataset):
    """A by index, B at random, each with its own crop and mirroring.

    A training epoch is as long as the larger folder; a smaller A starts over. At test it is every image of A
    once; B is for comparison, and may be missing.
    """

    def find_images(self) -> dict[str, list[Path]]:
        folders = zip("AB", domain_folders(self.dataroot, self.phase, self.direction), strict=True)
        return {
            domain: list_images(folder, self.max_dataset_size)
            for domain, folder in folders
            if domain == "A" or self.preprocess.training or folder.is_dir()
        }

    def __len__(self) -> int:
        return max(self.sizes.values()) if self.preprocess.training else self.sizes["A"]

    def make(self, key: SampleKey, rng: random.Random) -> dict[str, View]:
        views = {}
        for domain, store in self.stores.items():
            index = key.index % len(store)
            if domain == "B" and self.preprocess.training and not self.serial_batches:
                index = rng.randrange(len(store))
            (views[domain],) = self.see(store, index, key, rng)
        return views


class AlignedDataset(BaseDataset):
    """Pairs in pix2pix's layout, A on the left: resized apart, cropped and mirrored alike; BtoA exchanges."""

    columns = 2

    def find_images(self) -> dict[str, list[Path]]:
        return {"A": list_images(domain_folder(self.dataroot, self.phase), self.max_dataset_size)}

    @property
    def files(self) -> dict[str, list[str]]:
        return dict.fromkeys("AB", self.stores["A"].paths)

    def make(self, key: SampleKey, rng: random.Random) -> dict[str, View]:
        views = self.see(self.stores["A"], key.index, key, rng)
        return dict(zip("AB", views if self.direction == "AtoB" else reversed(views), strict=True))


class SingleDataset(BaseDataset):
    """The images under `dataroot` as domain "A", for translating. Raises `UserError` in training."""

    def find_images(self) -> dict[str, list[Path]]:
        if self.preprocess.training:
            raise UserError("--dataset_mode single has no domain B: train with unaligned or aligned")
        return {"A": list_images(self.dataroot, self.max_dataset_size)}

    def make(self, key: SampleKey, rng: random.Random) -> dict[str, View]:
        return {"A": self.see(self.stores["A"], key.index, key, rng)[0]}


class DomainsDataset(BaseDataset):
    """Many domains: A of one, B of the domain to translate it to; both tell theirs.

    A training epoch is N times the largest of N domains, each a source equally often whatever its size; the
    target and its image are drawn. At test it is every image of every domain once, as "A" alone.
    """

    def find_images(self) -> dict[str, list[Path]]:
        return {
            name: list_images(domain_folder(self.dataroot, self.phase, name), self.max_dataset_size)
            for name in self.domains
        }

    @property
    def sources(self) -> dict[str, list[str]]:
        return self.files

    def __len__(self) -> int:
        sizes = self.sizes.values()
        return len(sizes) * max(sizes) if self.preprocess.training else sum(sizes)

    def make(self, key: SampleKey, rng: random.Random) -> dict[str, View]:
        count, stores = len(self.domains), list(self.stores.values())
        if not self.preprocess.training:
            places = [(source, index) for source in range(count) for index in range(len(stores[source]))]
            source, index = places[key.index]
            return {"A": self.see(stores[source], index, key, rng, source)[0]}
        source = key.index % count
        index = key.index // count % len(stores[source])
        (view,) = self.see(stores[source], index, key, rng, source)
        target = (source + rng.randrange(0 if self.own_domain else 1, count)) % count
        index = rng.randrange(len(stores[target]))
        return {"A": view, "B": self.see(stores[target], index, key, rng, target)[0]}


DATASETS: dict[str, type[BaseDataset]] = {
    "unaligned": UnalignedDataset,
    "aligned": AlignedDataset,
    "single": SingleDataset,
    "multi": DomainsDataset,
}
