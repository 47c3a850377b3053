"""A page in the browser to try trained models on photographs: python scripts/demo.py

Choose a model (any run under --checkpoints_dir, or one of pretrained/), drop a photograph, and see input and
translation under a slider, with the command of test.py that gives the same. Everything stays on this machine.
Needs Gradio: pip install -r requirements-demo.txt
"""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image

from models import MODELS
from models.inference import (
    PRETRAINED,
    ROOT,
    cache_folder,
    directions,
    load_generator,
    pretrained_run,
    run_options,
)
from models.translator import Translator
from models.weights import weights_file
from util.arguments import ArgumentParser, gpu_list, integer
from util.device import get_device
from util.errors import UserError, entry_point
from util.image_files import read_image
from util.translate.photo import finished, read_photo, save_image, to_photo

AUTOMATIC, AS_IT_IS = "that of its training", "as it is"
SIZES = (AUTOMATIC, AS_IT_IS, "128", "256", "384", "512", "768", "1024")


class Entry(NamedTuple):
    """A run to choose."""

    label: str
    folder: Path
    words: tuple[str, ...]  # the options of test.py that name it
    epochs: tuple[str, ...]  # the newest first
    directions: tuple[str, ...]  # its own first
    styled: bool  # translates in many styles, as MUNIT
    domains: tuple[str, ...]  # its targets, if it has many
    size: int | None  # the shorter side at which it translates large photographs; None: their own


def find_models(checkpoints_dir: str | Path) -> dict[str, Entry]:
    """What can be chosen, by label: the runs, newest first, then those that come with the code.

    A run whose options cannot be used is left out, with a line on stderr.
    """
    root = Path(checkpoints_dir)
    folders = {path.parent for path in root.rglob("*_net_*.pth")}
    runs = [
        (folder.relative_to(root).as_posix(), folder, "--name")
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
    ]
    for folder in [*sorted(Path(ROOT, PRETRAINED).glob("*/")), *sorted(cache_folder().glob("*/"))]:
        runs.append((f"{folder.name} ({PRETRAINED})", folder, "--pretrained"))
    entries = {}
    for label, folder, option in runs:
        words = [option, folder.name] if option == "--pretrained" else [option, label]
        if option == "--name" and root != Path("checkpoints"):
            words += ["--checkpoints_dir", str(checkpoints_dir)]
        try:
            if entry := _entry(label, folder, words):
                entries[label] = entry
        except UserError as error:
            print(f"note: left out: {error}", file=sys.stderr)
    return entries


def _entry(label: str, folder: Path, words: Sequence[str]) -> Entry | None:
    """The run in a folder, with the epochs that have all networks its translation needs; None without any."""
    opt = run_options(folder)
    if opt is None:  # of the released code, or CycleGAN's
        network = "G_A" if any(folder.glob("*_net_G_A.pth")) else "G"
        ways, styled, domains, size = {"AtoB": (network,)}, False, (), None
    else:
        ways, styled, size = directions(opt), MODELS[opt.model].styled, opt.translate_size
        domains = tuple(getattr(opt, "domains", ()))
    networks = next(iter(ways.values()))
    end = weights_file(folder, "", networks[0]).name
    epochs = [path.name.removesuffix(end) for path in folder.glob(f"*{end}")]
    epochs = [epoch for epoch in epochs if all(weights_file(folder, epoch, n).is_file() for n in networks)]
    epochs.sort(key=lambda epoch: (epoch == "latest", epoch.zfill(12)), reverse=True)
    if not epochs:
        return None
    return Entry(label, folder, tuple(words), tuple(epochs), tuple(ways), styled, domains, size)


class Choice(NamedTuple):
    """What the page's controls say: size is one of `SIZES`, style a seed, domain a target ("": the first)."""

    entry: Entry
    epoch: str
    direction: str
    size: str = AUTOMATIC
    style: int = 0
    domain: str = ""

    @property
    def load_size(self) -> int | None:
        """As of `to_photo`."""
        return {AUTOMATIC: None, AS_IT_IS: 0}[self.size] if not self.size.isdigit() else int(self.size)

    def command(self, name: str) -> str:
        """The command that translates a photograph of this name alike."""
        words = ["python", "test.py", *self.entry.words, "--input", name]
        words += ["--epoch", self.epoch] * (self.epoch != "latest")
        words += ["--load_size", str(self.load_size)] * (self.load_size is not None)
        words += ["--direction", self.direction] * (self.direction != self.entry.directions[0])
        words += ["--style_seed", str(self.style)] * (self.entry.styled and self.style != 0)
        words += ["--domain", self.domain] * bool(self.domain)
        return shlex.join(words)


@functools.lru_cache(maxsize=3)
def _loaded(folder: Path, epoch: str, direction: str, device: torch.device, _: float) -> Translator:
    return load_generator(folder.name, folder.parent, epoch, device, direction)


def translate(path: Path, choice: Choice, device: torch.device) -> tuple[Image.Image, Image.Image]:
    """A photograph and its translation, of one size, as test.py makes it."""
    folder, styled = choice.entry.folder, choice.entry.styled
    files = folder.glob(weights_file(folder, choice.epoch, "*").name)
    newest = max((file.stat().st_mtime for file in files), default=0.0)  # a training may have replaced them
    translator = _loaded(folder, choice.epoch, choice.direction, device, newest)
    if styled:
        translator = translator.with_style(int(choice.style))
    if translator.domains:
        translator = translator.with_domain(choice.domain or translator.domains[0])
    photo = read_photo(path, choice.load_size, translator.translate_size)
    try:
        target = finished(translator.translate([photo.pixels]).numpy()[0], photo)
    except MemoryError as error:
        raise UserError(f"{path.name}: {error}") from None
    shown = to_photo(read_image(path), choice.load_size)
    return finished(shown.pixels, shown), target


def build_page(checkpoints_dir: str, device: torch.device):
    """The page as Gradio blocks."""
    import gradio as gr

    models = functools.partial(find_models, checkpoints_dir)
    first = next(iter(models().values()))

    def controls(entry: Entry) -> list[dict[str, object]]:
        """What the controls offer for a model: epoch, direction, size, style, target."""
        ways = entry.directions
        return [
            {"choices": list(entry.epochs), "value": entry.epochs[0]},
            {"choices": list(ways), "value": ways[0], "visible": len(ways) > 1},
            {"value": AUTOMATIC, "label": f"Shorter side (in training: {entry.size or 'any'})"},
            {"visible": entry.styled},
            {
                "choices": list(entry.domains),
                "value": next(iter(entry.domains), None),
                "visible": bool(entry.domains),
            },
        ]

    def show(path: str | None, label: str, epoch: str, direction: str, size: str, style: int, domain: str):
        if path is None:
            raise gr.Error("Drop a photograph first.", print_exception=False)
        entry = models()[label]
        # Those of another model, chosen a moment ago, count as this one's first.
        epoch = epoch if epoch in entry.epochs else entry.epochs[0]
        direction = direction if direction in entry.directions else entry.directions[0]
        domain = domain if domain in entry.domains else next(iter(entry.domains), "")
        choice = Choice(entry, epoch, direction, size, int(style), domain)
        try:
            source, target = translate(Path(path), choice, device)
        except UserError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from None
        saved = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), f"{Path(path).stem}_translated.png")
        save_image(target, saved)
        return (
            (source, str(saved)),
            gr.update(value=str(saved), visible=True),
            choice.command(Path(path).name),
        )

    with gr.Blocks(title="QS-Attn", analytics_enabled=False) as page:
        gr.Markdown("# QS-Attn\nTranslate photographs with a trained model. Nothing leaves this machine.")
        epochs, ways, sizes, styles, targets = controls(first)
        with gr.Row():
            model = gr.Dropdown(list(models()), value=first.label, label="Model", scale=3)
            epoch = gr.Dropdown(label="Epoch", **epochs)
            direction = gr.Dropdown(label="Direction", **ways)
            size = gr.Dropdown(list(SIZES), min_width=230, **sizes)
            style = gr.Slider(0, 99, 0, step=1, label="Style", **styles)
            domain = gr.Dropdown(label="Target", **targets)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=260):
                sources = ["upload", "clipboard"]
                photo = gr.Image(label="Photograph", type="filepath", sources=sources, elem_id="photo")
                button = gr.Button("Translate", variant="primary", elem_id="translate")
                download = gr.DownloadButton("Save the translation", visible=False, elem_id="save")
                command = gr.Code(label="The same on the command line", language="shell", elem_id="command")
            with gr.Column(scale=3, min_width=320):
                lossless = {"type": "filepath", "format": "png"}
                slider = gr.ImageSlider(
                    label="Input | translation", interactive=False, elem_id="slider", **lossless
                )
        # The file as it was dropped: Gradio would decode it, and lose what it cannot.
        photo.preprocess = lambda payload: payload.path if payload else None
        given, results = [photo, model, epoch, direction, size, style, domain], [slider, download, command]
        gr.on([button.click, photo.upload], show, given, results)
        model.change(lambda label: [gr.update(**c) for c in controls(models()[label])], model, given[2:])
        page.load(lambda: gr.update(choices=list(models())), None, model, show_progress="hidden")
    return page


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page to this machine alone, until Ctrl-C or SIGTERM."""
    parser = ArgumentParser(prog="scripts/demo.py", description=__doc__.splitlines()[0])
    parser.add("--checkpoints_dir", "./checkpoints", "where runs are")
    parser.add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    parser.add("--port", 7860, "of the page", type=integer(1, 65535))
    parser.add("--open", False, "open it in the browser")
    parser.add("--pretrained", None, "a model that test.py --list_pretrained lists: fetch it first")
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    if opt.pretrained:
        pretrained_run(opt.pretrained)
    device = get_device(opt.gpu_ids)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is removed
    with tempfile.TemporaryDirectory(prefix="qsattn_demo_") as uploads:
        # Gradio reads them when it is imported. Uploads and results vanish with this folder.
        os.environ |= {
            "GRADIO_TEMP_DIR": uploads,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"the page needs Gradio ({error}): pip install -r requirements-demo.txt"
            ) from None
        page = build_page(opt.checkpoints_dir, device)
        quiet = {"share": False, "footer_links": [], "quiet": True, "show_error": True}
        server = {"server_name": "127.0.0.1", "server_port": opt.port, "inbrowser": opt.open}
        page.launch(**server, **quiet, prevent_thread_lock=True)
        print(f"Page: {page.local_url} (this machine only; Ctrl-C ends it)", flush=True)
        page.block_thread()


if __name__ == "__main__":
    sys.exit(main())
