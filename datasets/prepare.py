r"""Make data sets of archives and of other layouts. The same command resumes an interrupted run.

    python datasets/prepare.py afhq afhq.zip --out datasets/cat2dog
    python datasets/prepare.py cityscapes leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip \
        --out datasets/cityscapes
    python datasets/prepare.py join datasets/cityscapes --out datasets/cityscapes_pairs
    python datasets/prepare.py unpack horse2zebra.zip --out datasets/horse2zebra

afhq and cityscapes take the official archives, or the folders they unpack to. cityscapes makes the set of the
paper's baselines; labels to photos, the papers' task, is `--direction BtoA`.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from util.errors import UserError, entry_point
from util.image_files import describe_grey_range, grey_range, list_images, open_rgb

FOLDERS = ("trainA", "trainB", "testA", "testB")


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into `folder`, nothing beside it. Raises `UserError` or OSError."""
    try:
        is_tar = tarfile.is_tarfile(archive)
        with tarfile.open(archive) if is_tar else zipfile.ZipFile(archive) as opened:
            for item in opened if is_tar else ():  # some Python 3.10 and 3.11 lack extractall's filter
                if os.path.normpath(item.name).startswith(("..", "/")) or not (item.isreg() or item.isdir()):
                    raise tarfile.TarError(f"{item.name} is a link, or outside the destination")
            opened.extraction_filter = getattr(tarfile, "data_filter", None)
            opened.extractall(folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
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


Images = dict[Path, Callable[[], Image.Image]]  # what makes the image of each PNG file


def images_of(folder: Path, ending: str = "") -> Images:
    """What reads each image of a folder, by its path in it without `ending`, as .png; others are left out."""
    files = [file for file in list_images(folder) if file.name.endswith(ending)]
    if grey := grey_range(files) if files else None:
        print(f"note: {folder}: {describe_grey_range(grey)}", file=sys.stderr)
    images = {}
    for file in files:
        path = file.relative_to(folder)
        name = path.with_name(path.name.removesuffix(ending)).with_suffix(".png")
        if name in images:
            raise UserError(f"two images of {folder} would become {name}: rename one of them")
        images[name] = partial(open_rgb, file, grey)
    return images


def convert_all(images: Images) -> None:
    """Write the files that do not exist yet, several at a time, each whole; stop at the first error."""

    def convert(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.partial")
        images[path]().save(unfinished, format="PNG")
        os.replace(unfinished, path)

    todo = [path for path in images if not path.is_file()]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(tqdm(pool.map(convert, todo), total=len(todo), unit="image"))


def resized(read: Callable[[], Image.Image], size: int, resample: Image.Resampling) -> Image.Image:
    return read().resize((size, size), resample)


def afhq(args: Namespace) -> None:
    """`train/{cat,dog}` and `val/{cat,dog}` (`test/` in its second version) become trainA, ... testB."""
    with unpacked(args.source[0], args.out) as place:
        root, images = root_with(("train/cat", "train/dog"), place), {}
        test = "val" if (root / "val").is_dir() else "test"
        sources = ("train/cat", "train/dog", f"{test}/cat", f"{test}/dog")
        for folder, source in zip(FOLDERS, sources, strict=True):
            for name, read in images_of(root / source).items():
                images[args.out / folder / name] = partial(resized, read, args.size, Image.BICUBIC)
        convert_all(images)


def cityscapes(args: Namespace) -> None:
    """Photos (bicubic) become trainA, valA; label colours (nearest neighbour, none are new) trainB, valB."""
    kinds = ("A", "_leftImg8bit.png", Image.BICUBIC), ("B", "_gtFine_color.png", Image.NEAREST)
    with contextlib.ExitStack() as stack:
        images, keys = {}, {"A": set(), "B": set()}
        for source, (side, ending, resample) in zip(args.source, kinds, strict=True):
            root = root_with(("train", "val"), stack.enter_context(unpacked(source, args.out)))
            for phase in ("train", "val"):
                for name, read in images_of(root / phase, ending).items():
                    keys[side].add(f"{phase}/{name.stem}")
                    target = args.out / f"{phase}{side}" / name.name
                    images[target] = partial(resized, read, args.size, resample)
        if keys["A"] != keys["B"] or not images:
            counts = f"{len(keys['A'])} photos and {len(keys['B'])} label maps do not make pairs"
            alone = sorted(keys["A"] ^ keys["B"])[:1]
            raise UserError(f"{counts} {alone}: give both official archives, whole, or their folders")
        convert_all(images)


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
    """Images of one name, whatever suffix, in trainA and trainB become train, side by side (pix2pix)."""
    pairs = {}
    phases = [phase for phase in ("train", "val", "test") if (args.source[0] / f"{phase}A").is_dir()]
    if not phases:
        raise UserError(f"{args.source[0]} holds none of the folders trainA valA testA")
    for phase in phases:
        a, b = (images_of(args.source[0] / f"{phase}{side}") for side in "AB")
        if alone := sorted(a.keys() ^ b.keys()):
            what = f"{len(alone)} images of {phase}A and {phase}B have no partner of the same name"
            raise UserError(f"{what} (such as {alone[0].stem}): add the partners, or remove the images")
        pairs |= {args.out / phase / name: partial(joined, a[name], b[name], name) for name in a}
    convert_all(pairs)


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    sources = {afhq: ["afhq"], cityscapes: ["leftImg8bit", "gtFine"], join: ["folders"], unpack: ["archive"]}
    for make, what in sources.items():
        command = commands.add_parser(make.__name__, help=make.__doc__)
        command.set_defaults(make=make)
        command.add_argument("source", nargs=len(what), type=Path, metavar=tuple(what))
        command.add_argument("--out", type=Path, required=True, help="folder to make")
        if make in (afhq, cityscapes):
            command.add_argument("--size", type=int, default=256, help="width and height (%(default)s)")
        if make is unpack:
            command.add_argument("--folders", nargs="+", default=FOLDERS, help="that must be in it")
    args = parser.parse_args(argv)
    args.make(args)
    print(f"ready: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
