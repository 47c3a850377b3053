"""Translate with a trained generator.

    python test.py --name NAME                  the data set's test images, with a page of results
    python test.py --name NAME --input PHOTO    any photograph or folder of them; no data set
    python test.py --pretrained NAME ...        with a model that comes with the code, instead of a run

Only what translates is loaded, and no training data. `python test.py --help` lists all options.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
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
from util.errors import UserError, entry_point
from util.image_files import IMAGE_EXTENSIONS, list_images
from util.translate.photo import WRITTEN, output_names, read_photo
from util.translate.result_page import ResultPage
from util.translate.translate_files import Job, translate_files


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Translate as a command line says; return the exit status, 1 if some photographs failed."""
    opt = TestOptions().parse(argv)
    if not opt.eval:
        opt.batch_size = 1  # batch statistics would mix the images
    if opt.direction not in directions(opt):
        print(
            f"note: {opt.name} has one generator, of {opt.trained_direction}: --direction {opt.direction} "
            + ("has no effect with --input." if opt.input else "gives it the other domain's images."),
            file=sys.stderr,
        )
    torch.manual_seed(opt.seed)  # of dropout, without --eval
    return translate_input(opt) if opt.input else translate_test_set(opt)


def load(opt: Namespace) -> Translator:
    """The translator of the run or pretrained model; with --verbose its network is printed."""
    translator = translator_of_run(opt)
    if opt.verbose:
        print(translator.net)
    return translator


def translate_test_set(opt: Namespace) -> int:
    """Translate the test images of --dataroot and make a page of them, with images of the target domain."""
    translator = load(opt)
    fakes = variants(translator, opt)
    loader = create_loader(opt, translator.device)
    names = {
        path: Path(folder, name)
        for folder, paths in loader.dataset.sources.items()
        for path, name in zip(paths, output_names(paths), strict=True)
    }
    sources = list(names)
    count = len(sources) if opt.domains else int(min(opt.num_test, len(sources)))
    page = ResultPage(results_folder(opt, opt.epoch), opt)
    page.clear({names[path] for path in sources[:count]}, ["real_A", "attn_A", *fakes, "real_B"])
    began, done = time.perf_counter(), 0
    try:
        with tqdm(total=count, unit="image", dynamic_ncols=True, disable=None) as bar, page:
            for batch in loader.epoch(1):
                paths = batch["A_paths"][: count - done]
                images = {"real_A": batch["A"]}
                if (attention := translator.attention(batch["A"])) is not None:
                    images["attn_A"] = attention
                images |= {label: variant.run(batch["A"]) for label, variant in fakes.items()}
                if "B" in batch:
                    images["real_B"] = batch["B"]
                page.add([names[path] for path in paths], images)
                done += len(paths)
                bar.update(len(paths))
                if done >= count:
                    break
    finally:
        loader.close()
    page.save(f"{done} of {len(sources)}")
    seconds = time.perf_counter() - began
    rate = f"{done / seconds:.1f} per second"
    print(f"translated {done} of {len(sources)} images ({rate}): {page.folder / 'index.html'}")
    return 0


def translate_input(opt: Namespace) -> int:
    """Translate a photograph or a folder of them; those that fail are named, the others are translated."""
    jobs = find_jobs(opt)
    translator = load(opt)
    began = time.perf_counter()
    failures: dict[Path, str] = {}
    for number, (ending, variant) in enumerate(
        zip(endings(opt), variants(translator, opt).values(), strict=True)
    ):
        failures |= translate_files(
            variant,
            [Job(source, with_ending(target, ending)) for source, target in jobs],
            batch_size=opt.batch_size,
            load_size=opt.load_size if "load_size" in opt.given else None,
            warn=number == 0,
        )
    seconds = time.perf_counter() - began
    for source, reason in failures.items():
        print(f"failed: {source}: {reason}", file=sys.stderr)
    done = len(jobs) - len(failures)
    alone = len(jobs) == len(endings(opt)) == 1
    where = jobs[0].target if alone else os.path.commonpath([job.target.parent for job in jobs])
    print(f"translated {done} of {len(jobs)} images ({done / seconds:.1f} per second): {where}")
    return 1 if failures else 0


def variants(translator: Translator, opt: Namespace) -> dict[str, Translator]:
    """The translator in each style, or to each domain, that the options name, by the label of `labels`."""
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
    return (
        ["fake_B"] if opt.num_styles == 1 else [f"fake_B_style{number}" for number in range(opt.num_styles)]
    )


def endings(opt: Namespace) -> list[str]:
    """What the names of translated photographs end in: _style0 or _to_cat, nothing where there is one."""
    return [""] if len(labels(opt)) == 1 else [f"_{label.removeprefix('fake_B_')}" for label in labels(opt)]


def with_ending(target: Path, ending: str) -> Path:
    """The file of a translation in one of several styles, or to one of several domains."""
    return target.with_name(f"{target.stem}{ending}{target.suffix}")


def find_jobs(opt: Namespace) -> list[Job]:
    """The images that --input names, each with the file to write; none is written over."""
    source = Path(opt.input)
    if not source.exists():
        raise UserError(f"--input {source} does not exist: give an image or a folder, in quotes")
    results = Path(opt.results_dir, opt.name)
    if source.is_dir():
        jobs = jobs_of_folder(source, Path(opt.output or results / source.resolve().name))
    else:
        target = Path(opt.output or results)
        if target.suffix.lower() in IMAGE_EXTENSIONS and not target.is_dir():
            if target.suffix.lower() not in WRITTEN:
                raise UserError(f"--output {target} cannot be written: it can end in {', '.join(WRITTEN)}")
            jobs = [Job(source, target)]
        else:
            jobs = [Job(source, target / f"{source.stem}.png")]
    sources = {real(path) for path, _ in jobs}
    for path, target in jobs:
        for written in (with_ending(target, ending) for ending in endings(opt)):
            if real(written) in sources:
                found = f"the translation of {path} would be written over the input {written}"
                raise UserError(f"{found}: give another --output")
    jobs[0].target.parent.mkdir(parents=True, exist_ok=True)  # it says now where it cannot
    return jobs


def jobs_of_folder(source: Path, target: Path) -> list[Job]:
    """The images below a folder, each with a PNG file below `target`. UserError if there is none."""
    inside = target.resolve()
    if inside == source.resolve():  # a second call would take the translations for inputs
        raise UserError(f"--output {target} is the folder of --input: give another")
    paths = [path for path in list_images(source) if inside not in real(path).parents]
    if not paths:
        raise UserError(f"--input {source} holds no images but those in the --output folder {target}")
    return [Job(path, target / name) for path, name in zip(paths, output_names(paths), strict=True)]


def real(path: Path) -> Path:
    """The file behind symlinks; of a loop of them, which `Path.resolve` raises at, the path itself."""
    return Path(os.path.realpath(path))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
