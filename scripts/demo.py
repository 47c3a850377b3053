"""A page in the browser to try trained models on photographs: python scripts/demo.py

Choose a model (any run under --checkpoints_dir, or one of pretrained/), drop a photograph, and see input and
translation under a slider, with the command of test.py that makes it. Everything stays on this machine.
Needs Gradio: pip install -r requirements-demo.txt
"""

import contextlib
import functools
import io
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

from PIL import Image

import test as translation
from data.folders import domain_folder
from models import MODELS
from models.inference import PRETRAINED, ROOT, cache_folder, directions, run_options
from models.weights import weights_file
from util.arguments import ArgumentParser, gpu_list, integer
from util.errors import UserError, entry_point
from util.image_files import list_images
from util.run.saved_options import saved_options
from util.translate import finished, read_photo

# The shorter side of a photograph, by what the page calls it: words of test.py.
SIZES = {"that of the model": [], "as it is": ["--load_size", "0"]}
SIZES |= {side: ["--load_size", side] for side in ("128", "256", "384", "512", "768", "1024")}


class Entry(NamedTuple):
    """A run to choose."""

    folder: Path
    words: list[str]  # the options of test.py that name it
    epochs: list[str]  # the newest first
    directions: list[str]  # its own first
    styled: bool  # translates in many styles, as MUNIT
    domains: list[str]  # its targets, if it has many

    def options(self, epoch="latest", direction="", size="that of the model", style=0, domain=""):
        """The words of test.py for what the page's controls say; what another model had does not count."""
        words = [*self.words, *SIZES[size]]
        words += ["--epoch", epoch] * (epoch in self.epochs and epoch != "latest")
        words += ["--direction", direction] * (direction in self.directions[1:])
        words += ["--style_seed", str(style)] * (self.styled and style != 0)
        words += ["--domain", domain if domain in self.domains else self.domains[0]] if self.domains else []
        return words

    def examples(self) -> list[Path]:
        """The first photographs of its test set, if that is there."""
        domain = self.domains[-1] if self.domains else self.directions[0][0]  # not the first target
        with contextlib.suppress(UserError, OSError, KeyError, TypeError):
            return list_images(domain_folder(saved_options(self.folder)["dataroot"], "test", domain), 4)
        return []


def horses(folder: Path) -> list[Path]:
    """The photographs of README's picture, as files in `folder`."""
    with Image.open(ROOT / "docs/horse2zebra.jpg") as sheet:
        for n in range(3):  # 256 pixels each, 4 between them, behind the label of their row
            sheet.crop((118 + 260 * n, 0, 374 + 260 * n, 256)).save(folder / f"horses_{n + 1}.png")
    return sorted(folder.glob("horses_*.png"))


def find_models(checkpoints_dir: str | Path) -> dict[str, Entry]:
    """What can be chosen, by label: the usable runs, newest first, then those that come with the code."""
    root = Path(checkpoints_dir)
    place = [] if root == Path("checkpoints") else ["--checkpoints_dir", str(checkpoints_dir)]
    found = {path.parent for path in root.rglob("*_net_*.pth")}
    runs: dict[str, tuple[Path, list[str]]] = {}
    for folder in sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True):
        name = folder.relative_to(root).as_posix()
        runs[name] = folder, ["--name", name, *place]
    for folder in [*sorted(Path(ROOT, PRETRAINED).glob("*/")), *sorted(cache_folder().glob("*/"))]:
        runs[f"{folder.name} ({PRETRAINED})"] = folder, ["--pretrained", folder.name]
    entries = {}
    for label, (folder, words) in runs.items():
        try:
            entries[label] = _entry(folder, words)
        except UserError as error:
            print(f"note: left out: {error}", file=sys.stderr)
    return {label: entry for label, entry in entries.items() if entry.epochs}


def _entry(folder: Path, words: list[str]) -> Entry:
    """The run in a folder."""
    if opt := run_options(folder):
        ways, styled, domains = directions(opt), MODELS[opt.model].styled, getattr(opt, "domains", [])
    else:  # of the released code, or CycleGAN's
        network = "G_A" if any(folder.glob("*_net_G_A.pth")) else "G"
        ways, styled, domains = {"AtoB": [network]}, False, []
    end = weights_file(folder, "", next(iter(ways.values()))[0]).name
    epochs = [path.name.removesuffix(end) for path in folder.glob(f"*{end}")]
    epochs.sort(key=lambda epoch: (epoch == "latest", epoch.zfill(12)), reverse=True)
    return Entry(folder, words, epochs, [*ways], styled, domains)


def translate(photo: Path, options: Sequence[str], output: Path) -> Image.Image:
    """Translate a photograph into `output` by test.py; returns the photograph, upright and of that size."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = translation.main([*options, "--input", str(photo), "--output", str(output)])
        except SystemExit as stopped:  # of the parser, such as for a run deleted meanwhile
            status = stopped.code
    if status:
        raise UserError(said.getvalue())
    source = read_photo(photo)
    with Image.open(output, formats=["PNG"]) as target:
        return finished(source.pixels, source).resize(target.size, Image.Resampling.BICUBIC)


def build_page(checkpoints_dir: str, gpu: str):
    """The page as Gradio blocks; `gpu` is the --gpu_ids of test.py."""
    import gradio as gr

    models = functools.partial(find_models, checkpoints_dir)
    first = next(iter(models()))
    photographs = horses(Path(os.environ["GRADIO_TEMP_DIR"]))

    def controls(label: str) -> list[dict[str, object]]:
        """What the controls offer for a model: epoch, direction, size, style, target, examples."""

        def choices(values: list[str], least: int) -> dict[str, object]:
            return {"choices": values, "value": next(iter(values), None), "visible": len(values) >= least}

        _, _, epochs, ways, styled, domains = model = models()[label]
        size, style = {"value": next(iter(SIZES))}, {"visible": styled}
        samples = {"samples": [[str(path)] for path in model.examples() or photographs]}
        return [choices(epochs, 1), choices(ways, 2), size, style, choices(domains, 1), samples]

    def show(path: str | None, label: str, *controlled):
        if path is None:
            raise gr.Error("Drop a photograph first.", print_exception=False)
        options = models()[label].options(*controlled)
        saved = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), f"{Path(path).stem}_translated.png")
        try:
            source = translate(Path(path), [*options, "--gpu_ids", gpu], saved)
        except UserError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from None
        command = shlex.join(["python", "test.py", *options, "--input", Path(path).name])
        return (source, str(saved)), command

    with gr.Blocks(title="QS-Attn", analytics_enabled=False) as page:
        gr.Markdown("# QS-Attn\nTranslate photographs with a trained model. Nothing leaves this machine.")
        epochs, ways, sizes, styles, targets, shown = controls(first)
        with gr.Row():
            model = gr.Dropdown(list(models()), value=first, label="Model", scale=3, min_width=230)
            epoch = gr.Dropdown(label="Epoch", **epochs)
            direction = gr.Dropdown(label="Direction", **ways)
            size = gr.Dropdown(list(SIZES), min_width=230, label="Shorter side", **sizes)
            style = gr.Slider(0, 99, 0, step=1, label="Style", **styles)
            domain = gr.Dropdown(label="Target", **targets)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=260):
                sources = ["upload", "clipboard"]
                photo = gr.Image(label="Photograph", type="filepath", sources=sources, elem_id="photo")
                examples = gr.Dataset(label="Examples", components=[photo], elem_id="examples", **shown)
                button = gr.Button("Translate", variant="primary", elem_id="translate")
                command = gr.Code(label="The same on the command line", language="shell", elem_id="command")
            with gr.Column(scale=3, min_width=320):
                look = {"label": "Input | translation", "interactive": False, "elem_id": "slider"}
                slider = gr.ImageSlider(type="filepath", format="png", **look)
        # The file as it was dropped: Gradio would decode it, and lose what it cannot.
        photo.preprocess = lambda payload: payload.path if payload else None
        given = [photo, model, epoch, direction, size, style, domain]
        gr.on([button.click, photo.upload], show, given, [slider, command])
        chosen = examples.click(lambda row: row[0], examples, photo, show_progress="hidden")
        chosen.then(show, given, [slider, command])
        model.change(lambda label: [gr.update(**c) for c in controls(label)], model, [*given[2:], examples])
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
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is removed
    with tempfile.TemporaryDirectory(prefix="qsattn_demo_") as uploads:
        # Gradio reads these when it is imported. Uploads and results vanish with this folder.
        offline = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        os.environ |= {"GRADIO_TEMP_DIR": uploads, **offline}
        try:
            page = build_page(opt.checkpoints_dir, str((opt.gpu_ids or [-1])[0]))
        except ImportError as error:
            raise UserError(f"no Gradio ({error}): pip install -r requirements-demo.txt") from None
        server = {"server_name": "127.0.0.1", "server_port": opt.port, "inbrowser": opt.open, "share": False}
        page.launch(**server, footer_links=[], quiet=True, show_error=True, prevent_thread_lock=True)
        print(f"Page: {page.local_url} (this machine only; Ctrl-C ends it)", flush=True)
        page.block_thread()


if __name__ == "__main__":
    sys.exit(main())
