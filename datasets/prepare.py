r"""Make data sets of archives and of other layouts. The same command resumes an interrupted run.

    python datasets/prepare.py afhq afhq.zip --out datasets/cat2dog
    python datasets/prepare.py cityscapes leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip \
        --out datasets/cityscapes
    python datasets/prepare.py split datasets/facades_pairs --out datasets/facades
    python datasets/prepare.py join datasets/facades --out datasets/facades_pairs
    python datasets/prepare.py unpack horse2zebra.zip --out datasets/horse2zebra

afhq and cityscapes take the official archives, or the folders they unpack to. cityscapes makes the set of the
paper's baselines; labels to photos, the papers' task, is `--direction BtoA`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from util.errors import UserError, entry_point
from util.image_files import describe_grey_range, grey_range, list_images, open_rgb

# What the archive modules raise for damaged, hostile and, zipfile, for encrypted archives.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)


# ---- archives ----


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into `folder`, nothing beside it. Raises `UserError` or OSError."""
    try:
        is_tar = tarfile.is_tarfile(archive)
        with tarfile.open(archive) if is_tar else zipfile.ZipFile(archive) as opened:
            members = opened.getmembers() if is_tar else opened.infolist()
            needed = sum(member.size if is_tar else member.file_size for member in members)
            if needed > (free := shutil.disk_usage(folder).free):
                sizes = f"unpacked it has {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
                raise UserError(
                    f"{folder.parent} has too little room ({sizes}): make room, or choose another"
                )
            opened.extractall(folder, **({"filter": "data"} if is_tar else {}))
    except DAMAGE as error:
        raise UserError(f"{archive} is not a whole zip or tar archive ({error}): download it again") from None


@contextlib.contextmanager
def unpacked(source: Path, out: Path) -> Iterator[Path]:
    """The content of an archive, within in a folder beside `out`; of a folder, itself."""
    if source.is_dir():
        yield source
        return
    folder = out.parent / f".{source.name}.unpacking"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        extract(source, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def root_with(folders: Sequence[str], place: Path) -> Path:
    """`place`, or the folder directly in it, with all of `folders`; `UserError` without one."""
    for root in (place, *sorted(place.iterdir())):
        if all((root / folder).is_dir() for folder in folders):
            return root
    raise UserError(f"{place} lacks some of the folders {' '.join(folders)}")


def unpack(args: Namespace) -> None:
    """An archive becomes `out`, whole or not at all."""
    if args.out.exists():
        raise UserError(f"{args.out} exists already: move it away to unpack {args.source[0]} there")
    with unpacked(args.source[0], args.out) as place:
        root_with(args.folders, place).rename(args.out)


# ---- images ----

Conversion = tuple[Path, Callable[[], Image.Image]]  # a PNG file to write, and what makes its image


def convert_all(conversions: Sequence[Conversion]) -> None:
    """Write the files that do not exist yet, several at a time, each whole or not at all.

    Stops at the first error. Raises `UserError` if two images would become one file.
    """
    twice = [path for path, count in Counter(path for path, _ in conversions).items() if count > 1]
    if twice:
        raise UserError(f"two images would become {twice[0]}: rename one of them")
    todo = [(path, make) for path, make in conversions if not path.is_file()]

    def convert(conversion: Conversion) -> None:
        path, make = conversion
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.partial")
        make().save(unfinished, format="PNG")
        os.replace(unfinished, path)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in tqdm(pool.map(convert, todo), total=len(todo), unit="image"):
            pass


def resized(path: Path, size: int, resample: Image.Resampling) -> Image.Image:
    return open_rgb(path).resize((size, size), resample)


def afhq(args: Namespace) -> None:
    """`train/{cat,dog}` and `val/{cat,dog}` (`test/` in its second version) become trainA, ... testB."""
    with unpacked(args.source[0], args.out) as place:
        root = root_with(("train/cat", "train/dog"), place)
        test = "val" if (root / "val").is_dir() else "test"
        convert_all(
            [
                (args.out / folder / f"{file.stem}.png", partial(resized, file, args.size, Image.BICUBIC))
                for phase, name in (("train", "train"), (test, "test"))
                for folder, animal in ((f"{name}A", "cat"), (f"{name}B", "dog"))
                for file in list_images(root / phase / animal)
            ]
        )


def cityscapes(args: Namespace) -> None:
    """Photos (bicubic) become trainA, valA; label colours (nearest neighbour, none are new) trainB, valB."""
    kinds = ("A", "_leftImg8bit.png", Image.BICUBIC), ("B", "_gtFine_color.png", Image.NEAREST)
    with contextlib.ExitStack() as stack:
        conversions, keys = [], []
        for source, (side, ending, resample) in zip(args.source, kinds, strict=True):
            root = root_with(("train", "val"), stack.enter_context(unpacked(source, args.out)))
            found = {
                (phase, file.name.removesuffix(ending)): file
                for phase in ("train", "val")
                for file in list_images(root / phase)
                if file.name.endswith(ending)
            }
            keys.append(found.keys())
            conversions += [
                (args.out / f"{phase}{side}" / f"{name}.png", partial(resized, file, args.size, resample))
                for (phase, name), file in found.items()
            ]
        alone = ["/".join(key) for key in sorted(keys[0] ^ keys[1])]
        if alone or not keys[0]:
            counts = f"{len(keys[0])} photos and {len(keys[1])} label maps"
            raise UserError(f"{counts} do not make pairs {alone[:1]}: give both official archives, whole")
        convert_all(conversions)


# ---- side-by-side pairs, pix2pix's layout ----


def images_of(folder: Path) -> dict[Path, Callable[[], Image.Image]]:
    """What reads each image of a folder, by its path in it."""
    files = list_images(folder)
    if grey := grey_range(files):
        print(f"note: {folder}: {describe_grey_range(grey)}", file=sys.stderr)
    return {file.relative_to(folder): partial(open_rgb, file, grey) for file in files}


def half(read: Callable[[], Image.Image], name: Path, side: str) -> Image.Image:
    pair = read()
    if pair.width % 2:
        raise UserError(f"{name} is {pair.width} pixels wide: the width of a pair is even")
    left = 0 if side == "A" else pair.width // 2
    return pair.crop((left, 0, left + pair.width // 2, pair.height))


def split(args: Namespace) -> None:
    """The left halves of the images in train, val, test become trainA, valA, testA; the right ones B."""
    phases = [name for name in ("train", "val", "test") if (args.source[0] / name).is_dir()]
    if not phases:
        raise UserError(f"{args.source[0]} holds none of the folders train val test")
    convert_all(
        [
            (args.out / f"{phase}{side}" / name.with_suffix(".png"), partial(half, read, name, side))
            for phase in phases
            for name, read in images_of(args.source[0] / phase).items()
            for side in "AB"
        ]
    )


def joined(read_a: Callable[[], Image.Image], read_b: Callable[[], Image.Image], name: Path) -> Image.Image:
    a, b = read_a(), read_b()
    if a.size != b.size:
        sizes = f"{a.width} x {a.height} in A and {b.width} x {b.height} in B"
        raise UserError(f"{name} is {sizes}: the images of a pair must have one size")
    pair = Image.new("RGB", (2 * a.width, a.height))
    pair.paste(a, (0, 0))
    pair.paste(b, (a.width, 0))
    return pair


def join(args: Namespace) -> None:
    """Images of one name (the suffix may differ) in trainA and trainB, side by side, become train."""
    phases = [name for name in ("train", "val", "test") if (args.source[0] / f"{name}A").is_dir()]
    if not phases:
        raise UserError(f"{args.source[0]} holds no folders such as trainA and trainB")
    conversions: list[Conversion] = []
    for phase in phases:
        a, b = (images_of(args.source[0] / f"{phase}{side}") for side in "AB")
        names_a, names_b = (Counter(name.with_suffix(".png") for name in side) for side in (a, b))
        if alone := sorted((names_a - names_b) + (names_b - names_a)):
            what = f"{len(alone)} images of {phase}A and {phase}B have no partner of the same name"
            raise UserError(f"{what} (such as {alone[0].stem}): add the partners, or remove the images")
        partners = {name.with_suffix(".png"): read for name, read in b.items()}
        for name, read in a.items():
            png = name.with_suffix(".png")
            conversions.append((args.out / phase / png, partial(joined, read, partners[png], name)))
    convert_all(conversions)


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    for make, what in (
        (afhq, ["afhq"]),
        (cityscapes, ["leftImg8bit", "gtFine"]),
        (split, ["pairs"]),
        (join, ["folders"]),
        (unpack, ["archive"]),
    ):
        command = commands.add_parser(make.__name__, help=make.__doc__)
        command.set_defaults(make=make)
        command.add_argument("source", nargs=len(what), type=Path, metavar=tuple(what))
        command.add_argument("--out", type=Path, required=True, help="folder to make")
        if make in (afhq, cityscapes):
            command.add_argument("--size", type=int, default=256, help="width and height (%(default)s)")
        if make is unpack:
            folders = ("trainA", "trainB", "testA", "testB")
            command.add_argument("--folders", nargs="+", default=folders, help="that must be in it")
    args = parser.parse_args(argv)
    args.make(args)
    print(f"ready: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
