"""Translate with a trained generator.

    python test.py --name NAME                  the data set's test images, with a page of results
    python test.py --name NAME --input PHOTO    any photograph or folder of them; no data set
    python test.py --pretrained NAME ...        with a model that comes with the code, instead of a run

Only what translates is loaded, and no training data. `python test.py --help` lists the options.
"""

import itertools
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C during the imports ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from PIL import Image
from tqdm import tqdm

from data import create_loader
from models.inference import directions, translator_of_run
from models.translator import Translator
from options.test_options import TestOptions, results_folder
from util import translate
from util.console import say
from util.device import HostCopy, host_pixels
from util.errors import UserError, entry_point
from util.image_files import IMAGE_EXTENSIONS, list_images
from util.images import save_png
from util.pages import Page
from util.translate import output_names, read_photo, translate_files


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Translate as a command line says; return the exit status, 1 if some photographs failed."""
    opt = TestOptions().parse(argv)
    if not opt.eval and opt.batch_size > 1:
        print("note: --eval false translates one image at a time.", file=sys.stderr)
        opt.batch_size = 1  # batch statistics would mix the images
    if opt.direction not in directions(opt):
        effect = "has no effect with --input" if opt.input else "gives it the other domain's images"
        own = f"{opt.name} has one generator, of {opt.trained_direction}"
        say(f"note: {own}: --direction {opt.direction} {effect}", sys.stderr)
    torch.manual_seed(opt.seed)  # of dropout, without --eval
    return translate_input(opt) if opt.input else translate_test_set(opt)


def translate_test_set(opt: Namespace) -> int:
    """Translate the test images of --dataroot and make a page of them, with images of the target domain."""
    fakes = variants(opt)
    translator = next(iter(fakes.values()))
    loader = create_loader(opt, translator.device)
    names = {
        path: Path(folder, name).as_posix()
        for folder, paths in loader.dataset.sources.items()
        for path, name in zip(paths, output_names(paths), strict=True)
    }
    count = len(names) if opt.domains else int(min(opt.num_test, len(names)))
    folder, began = results_folder(opt, opt.epoch), time.perf_counter()
    made = itertools.product(["real_A", "attn_A", *fakes, "real_B"], list(names.values())[:count])
    translate.clear_results(folder, [f"images/{label}/{name}" for label, name in made])
    rows: dict[str, dict[str, str]] = {}  # name -> label -> file

    def pictures() -> Iterator[tuple[Path, HostCopy, int]]:
        for batch in loader.epoch(1):
            paths = batch["A_paths"][: count - len(rows)]
            images = {"real_A": batch["A"]}
            if (attention := translator.attention(batch["A"])) is not None:
                images["attn_A"] = attention
            images |= {label: variant.run(batch["A"]) for label, variant in fakes.items()}
            if "B" in batch:
                images["real_B"] = batch["B"]
            for label, batch_of_label in images.items():
                copy = host_pixels(batch_of_label)
                for place, path in enumerate(paths):
                    file = f"images/{label}/{names[path]}"
                    rows.setdefault(names[path], {})[label] = file
                    yield folder / file, copy, place
            bar.update(len(paths))
            if len(rows) >= count:
                break

    def write(picture: tuple[Path, HostCopy, int]) -> None:
        file, copy, place = picture
        save_png(copy.numpy()[place], file)

    try:
        with tqdm(total=count, unit="image", dynamic_ncols=True, disable=None) as bar:
            for _, writing in translate.in_threads(write, pictures(), ahead=16 * translate.THREADS):
                writing.result()
    finally:
        loader.close()
    write_page(folder, opt, f"{len(rows)} of {len(names)}", rows)
    rate = f"{len(rows) / (time.perf_counter() - began):.1f} per second"
    print(f"translated {len(rows)} of {len(names)} images ({rate}): {folder / 'index.html'}")
    return 0


def write_page(folder: Path, opt: Namespace, count: str, rows: Mapping[str, Mapping[str, str]]) -> None:
    """The page of results: files by image and label, each translation under a slider beside its source."""
    page = Page(folder, f"{opt.name}: {opt.phase}, epoch {opt.epoch}")
    page.add_facts({"images": count, "from": f"{opt.dataroot} ({', '.join(opt.domains) or opt.direction})"})
    for name, files in rows.items():
        own = f"to_{Path(name).parts[0]}"  # of many domains, that of the image itself
        fakes = [label for label in files if label.startswith(("fake_B", "to_"))]
        compare = next((label for label in fakes if label != own), fakes[0])
        page.add_images(name.removesuffix(".png"), files, compare)
    page.save()


def translate_input(opt: Namespace) -> int:
    """Translate a photograph or a folder of them; those that fail are named, the others are translated."""
    jobs = find_jobs(opt)
    translators, began = variants(opt).values(), time.perf_counter()
    failures: dict[Path, str] = {}
    for number, (of_variant, translator) in enumerate(zip(jobs, translators, strict=True)):
        load_size = opt.load_size if "load_size" in opt.given else None
        failures |= translate_files(
            translator, of_variant, batch_size=opt.batch_size, load_size=load_size, warn=number == 0
        )
    seconds = time.perf_counter() - began
    for source, reason in failures.items():
        print(f"failed: {source}: {reason}", file=sys.stderr)
    count, targets = len(jobs[0]), [target for of_variant in jobs for _, target in of_variant]
    done = count - len(failures)
    where = targets[0] if len(targets) == 1 else os.path.commonpath([to.parent for to in targets]) or "."
    print(f"translated {done} of {count} images ({done / seconds:.1f} per second): {where}")
    return 1 if failures else 0


def variants(opt: Namespace) -> dict[str, Translator]:
    """The translator in each style, or to each domain, that the options name, by the label of `labels`."""
    translator = translator_of_run(opt)
    if opt.verbose:
        print(translator.net)
    if opt.domains:
        made = [translator.with_domain(name) for name in opt.domain]
    elif opt.style_image:
        pixels = read_photo(Path(opt.style_image), opt.crop_size).pixels
        made = [translator.with_style(Image.fromarray(pixels))]
    elif translator.style_dim:
        made = [translator.with_style(s) for s in translator.draw_styles(opt.num_styles, opt.style_seed)]
    else:
        made = [translator]
    return dict(zip(labels(opt), made, strict=True))


def labels(opt: Namespace) -> list[str]:
    """What the results call the translations of an image: fake_B, fake_B_style0 ..., or to_cat, to_dog ..."""
    if opt.domains:
        return [f"to_{name}" for name in opt.domain]
    return [f"fake_B_style{n}" for n in range(opt.num_styles)] if opt.num_styles > 1 else ["fake_B"]


def find_jobs(opt: Namespace) -> list[list[translate.Job]]:
    """For each of the `labels`, the images that --input names with the files to write, over no input."""
    source = Path(opt.input)
    if not source.exists():
        raise UserError(f"--input {source} does not exist: give an image or a folder, in quotes")
    target = Path(opt.output or Path(opt.results_dir, opt.name))
    if source.is_dir():
        target = target if opt.output else target / source.resolve().name
        written = Path(os.path.realpath(target))  # a second call would take translations for inputs
        paths = [path for path in list_images(source) if written not in Path(os.path.realpath(path)).parents]
        if not paths:
            raise UserError(f"--output {target} holds the images of --input {source}: give another")
        jobs = [(path, target / name) for path, name in zip(paths, output_names(paths), strict=True)]
    elif target.suffix.lower() in IMAGE_EXTENSIONS and not target.is_dir():
        if target.suffix.lower() not in translate.WRITTEN:
            raise UserError(f"--output {target} cannot be written; endings: {', '.join(translate.WRITTEN)}")
        jobs = [(source, target)]
    else:
        jobs = [(source, target / f"{source.stem}.png")]
    names = labels(opt)
    endings = [""] if len(names) == 1 else [f"_{name.removeprefix('fake_B_')}" for name in names]
    found = [[(path, to.with_name(f"{to.stem}{end}{to.suffix}")) for path, to in jobs] for end in endings]
    sources = {os.path.realpath(path) for path, _ in jobs}  # unlike Path.resolve, it takes a loop of symlinks
    for path, to in itertools.chain(*found):
        if os.path.realpath(to) in sources:
            raise UserError(f"the translation of {path} would be written over {to}: give another --output")
    jobs[0][1].parent.mkdir(parents=True, exist_ok=True)  # it says now where it cannot
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
