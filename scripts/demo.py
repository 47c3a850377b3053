"""A page in the browser to try trained models on photographs: python scripts/demo.py

Drop a photograph, pick a model (any run under --checkpoints_dir, or a file in --pretrained_dir), and see
input and translation under a slider; for a QS-Attn run also the chosen queries and what they attend to. A
second tab translates many photographs, or a ZIP archive of them. Everything stays on this machine.
Needs Gradio: pip install -r requirements-demo.txt
"""

from __future__ import annotations

import functools
import html
import os
import re
import shlex
import sys
import tempfile
import threading
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image

from datasets.unpack_dataset import extract
from models import MODELS, option_defaults
from models.inference import Translator, load_generator
from models.weights import PRETRAINED, ROOT, weights_file
from scripts.queries.page import write_page
from scripts.queries.view import view_queries
from scripts.visualize_queries import DEFAULTS, to_input
from util.arguments import ArgumentParser, gpu_list, integer
from util.device import get_device
from util.errors import UserError, entry_point
from util.image_files import IMAGE_EXTENSIONS, list_images
from util.run.saved_options import saved_options
from util.translate.photo import finished, output_names, read_photo
from util.translate.translate_files import Job, translate_files

FOLDER = Path(ROOT, PRETRAINED)
SIZES = (256, 384, 512, 768, 1024)  # of the shorter side, to choose from beside the trained one
AS_IT_IS, AS_TRAINED = "as it is", "as in training"
MOST_POSITIONS = 128 * 128  # of a feature map whose queries are shown: photographs of about 512 x 512 pixels
SHOWN = 12  # translations of a batch that the page shows

STYLE = """
.gradio-container{max-width:84rem!important;margin:0 auto!important}
#title h1{font-size:1.45rem;margin:.2rem 0 .1rem}
#title p{color:var(--body-text-color-subdued);margin:0}
.facts{display:flex;flex-wrap:wrap;gap:.5rem 2.2rem;margin:.2rem 0}
.facts div span{display:block;font-size:.78rem;color:var(--body-text-color-subdued)}
.facts div b{font-weight:600;font-variant-numeric:tabular-nums}
.command{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.82rem;overflow-wrap:anywhere;
padding:.5rem .7rem;
border:1px solid var(--border-color-primary);border-radius:8px;
background:var(--background-fill-secondary);margin:.5rem 0 0}
.note{color:var(--body-text-color-subdued)}
iframe.queries{width:100%;height:60rem;
border:1px solid var(--border-color-primary);border-radius:10px;background:#fff}
footer{display:none!important}
"""


# ---- the models there are ----


@dataclass(frozen=True)
class Entry:
    """A run or a weights file to choose.

    Attributes:
        label: what the page calls it.
        name: what `load_generator` is given, and test.py as --name, or as --pretrained if it is a file.
        epochs: its checkpoints, the newest first; one without a name for a weights file.
        directions: those it translates in, its own first; empty where there is nothing to choose.
        saved: the options of the run, if it has saved any.
    """

    label: str
    name: str
    epochs: tuple[str, ...]
    directions: tuple[str, ...] = ()
    saved: dict[str, object] | None = field(default=None, hash=False)

    @property
    def trained_size(self) -> int:
        """Side of the training images in pixels."""
        return int((self.saved or {}).get("crop_size", 256))

    @property
    def has_styles(self) -> bool:
        """Whether the model translates one photograph in many styles, as MUNIT does."""
        return self.saved is not None and getattr(MODELS[self.saved["model"]], "styled", False)

    @property
    def is_file(self) -> bool:
        return self.name.endswith(".pth")


def find_models(checkpoints_dir: str | Path, pretrained_dir: str | Path) -> dict[str, Entry]:
    """What can be chosen, by label: the weights files of `pretrained_dir`, then the runs, newest first."""
    files = sorted(Path(pretrained_dir).glob("*/latest_net_G.pth"))
    entries = [
        Entry(f"{path.parent.name} (pretrained)", str(path), ("",), saved=_options_beside(path))
        for path in files
    ]
    folders = {path.parent for path in Path(checkpoints_dir).rglob("*_net_G*.pth")}
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        if entry := _run_entry(folder, folder.relative_to(checkpoints_dir).as_posix()):
            entries.append(entry)
    return {entry.label: entry for entry in entries}


def _options_beside(path: Path) -> dict[str, object] | None:
    """The options of a pretrained file; None without them, or where they cannot be used."""
    try:
        saved = saved_options(path.parent)
    except UserError:  # load_generator says what is wrong
        return None
    return saved if saved and saved["model"] in MODELS else None


def _run_entry(folder: Path, name: str) -> Entry | None:
    """The run in a folder, with the epochs that have all networks its translation needs."""
    try:
        saved = saved_options(folder)
    except UserError:  # damaged: the weights may still say what they are
        saved = None
    if saved is None or saved.get("model") not in MODELS:
        networks, directions = ("G_A",) if any(folder.glob("*_net_G_A.pth")) else ("G",), ()
        saved = None
    else:
        opt = {**option_defaults(saved["model"]), **saved, "trained_direction": saved["direction"]}
        by_direction = {
            direction: MODELS[saved["model"]].translating(Namespace(**{**opt, "direction": direction}))
            for direction in (saved["direction"], *{"AtoB", "BtoA"} - {saved["direction"]})
        }
        networks = by_direction[saved["direction"]]
        directions = tuple(by_direction) if len(set(by_direction.values())) > 1 else ()
    end = f"_net_{networks[0]}.pth"
    epochs = [path.name.removesuffix(end) for path in folder.glob(f"*{end}")]
    complete = [e for e in epochs if all(weights_file(folder, e, net).exists() for net in networks)]
    return Entry(name, name, tuple(sorted(complete, key=_age)), directions, saved) if complete else None


def _age(epoch: str) -> tuple[bool, int, str]:
    """Sorts latest first, then the greatest number."""
    number = re.search(r"\d+", epoch)
    return epoch != "latest", -int(number[0]) if number else 0, epoch


@functools.lru_cache(maxsize=3)
def _loaded(
    entry: Entry, epoch: str, direction: str, root: str, device: torch.device, _: float
) -> Translator:
    return load_generator(entry.name, root, epoch or "latest", device, direction or None)


# ---- translating ----


class Translation(NamedTuple):
    """A photograph as it was given to the network, its translation, and what the page says of it."""

    source: Image.Image
    target: Image.Image
    facts: dict[str, str]
    command: str


class Studio:
    """Everything the page does, without the page.

    Args:
        checkpoints_dir: where runs are.
        pretrained_dir: where weights files are.
        device: to translate on.
        folder: for results, which is the page's to remove.
    """

    def __init__(
        self, checkpoints_dir: str | Path, pretrained_dir: str | Path, device: torch.device, folder: Path
    ):
        self.checkpoints_dir, self.pretrained_dir = str(checkpoints_dir), pretrained_dir
        self.device, self.folder = device, folder
        self._lock = threading.Lock()  # Gradio calls from several threads

    def models(self) -> dict[str, Entry]:
        """What there is now: trainings continue while the page is open."""
        return find_models(self.checkpoints_dir, self.pretrained_dir)

    def entry(self, label: str | None) -> Entry:
        """The model of a label. UserError if it is gone."""
        if not (entry := self.models().get(label or "")):
            raise UserError(f"there is no model {label!r} any more: load the page again")
        return entry

    def translator(self, entry: Entry, epoch: str, direction: str, style: int = 0) -> Translator:
        """The network of a model, kept for the next photograph; `style` is a seed, for one with styles."""
        pattern = Path(entry.name) if entry.is_file else Path(self.checkpoints_dir, entry.name)
        newest = max((path.stat().st_mtime for path in _weights(pattern, epoch)), default=0.0)
        with self._lock:
            translator = _loaded(entry, epoch, direction, self.checkpoints_dir, self.device, newest)
        return translator.with_style(int(style)) if entry.has_styles else translator

    def translate(
        self, path: Path, entry: Entry, epoch: str, direction: str, side: int | None, style: int = 0
    ) -> Translation:
        """Translate a photograph as test.py does. UserError where the file or the model cannot be used.

        Args:
            side: scale the shorter side to this many pixels first; None: as it is.
        """
        translator = self.translator(entry, epoch, direction, style)
        photo = read_photo(path, side)
        began = time.perf_counter()
        target = finished(translator.translate([photo.pixels]).numpy()[0], photo)
        seconds = time.perf_counter() - began
        width, height = photo.size
        facts = {
            "size": f"{width} × {height}",
            "time": f"{seconds:.2f} s on {self.device}",
            "model": entry.label + (f", epoch {epoch}" if epoch else ""),
            "trained at": f"{entry.trained_size} × {entry.trained_size}" if entry.saved else "",
        }
        source = finished(photo.pixels, photo)
        return Translation(
            source,
            target,
            {k: v for k, v in facts.items() if v},
            self.command(path, entry, epoch, direction, side),
        )

    def command(self, path: Path, entry: Entry, epoch: str, direction: str, side: int | None) -> str:
        """The command that gives the same translation; empty for weights whose options are not known."""
        if entry.saved is None and not entry.is_file:
            return ""
        model = ["--pretrained" if entry.is_file else "--name", entry.name]
        if entry.is_file:
            model[1] = Path(entry.name).parent.name
        words = ["python", "test.py", *model, "--input", path.name]
        words += ["--epoch", epoch] * (epoch not in ("", "latest"))
        words += ["--load_size", str(side)] * (side is not None)
        if entry.directions and direction != entry.directions[0]:
            words += ["--direction", direction]
        if not entry.is_file and Path(self.checkpoints_dir) != Path("checkpoints"):
            words += ["--checkpoints_dir", self.checkpoints_dir]
        return shlex.join(words)

    def queries(
        self, path: Path, entry: Entry, epoch: str, direction: str, side: int | None, style: int = 0
    ) -> tuple[str, str]:
        """The page of a photograph's queries (`scripts/queries/page.html`), or why there is none."""
        if entry.saved and "QS_mode" not in option_defaults(entry.saved["model"]):
            return "", f"--model {entry.saved['model']} chooses its patches at random: there are no queries."
        translator = self.translator(entry, epoch, direction, style)
        if not hasattr(translator.net, "encode") or translator.multiple != 4:
            return "", "The queries are shown for ResNet generators only."
        photo = read_photo(path, side).pixels
        if photo.shape[0] * photo.shape[1] > 16 * MOST_POSITIONS:
            return "", "The photograph is too large to show its queries: choose 512 pixels or less."
        saved = entry.saved or {}
        chosen = {name: saved.get(name) or default for name, default in DEFAULTS.items()}
        layers = [n for n in chosen["qs_layers"] if n < len(translator.net.tap_channels())]
        mode = str(saved.get("QS_mode", "global"))
        image = to_input(photo, translator.input_nc)
        views = view_queries(
            translator.net,
            image,
            layers,
            [mode],
            *(chosen[name] for name in ("num_patches", "qs_window", "qs_pool")),
        )
        page = self.folder / "queries.html"
        title = f"{path.name}: queries of {entry.label}"
        with self._lock:
            write_page(views, photo, translator.translate([photo]).numpy()[0], page, title)
            return page.read_text(encoding="utf-8"), ""

    def translate_many(
        self,
        paths: Sequence[Path],
        entry: Entry,
        epoch: str,
        direction: str,
        side: int | None,
        style: int = 0,
        done: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Path, list[Path], list[str]]:
        """Translate photographs, folders and ZIP archives of them.

        Args:
            done: called with how many are done, of how many.

        Returns:
            An archive of the translations, their files, and a line for each photograph that failed.

        Raises:
            UserError: there is no photograph, or the model or an archive cannot be used.
        """
        translator = self.translator(entry, epoch, direction, style)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        photographs = []
        for number, path in enumerate(paths):
            if path.suffix.lower() == ".zip":
                photographs += _unpacked(path, folder / f"archive{number}")
            elif path.is_dir():
                photographs += list_images(path)
            elif path.suffix.lower() in IMAGE_EXTENSIONS:
                photographs.append(path)
        if not photographs:
            raise UserError(f"no photographs among these: known are {' '.join(sorted(IMAGE_EXTENSIONS))}")
        names = output_names([Path(path.name) for path in photographs])
        jobs = [Job(path, folder / "translated" / n) for path, n in zip(photographs, names, strict=True)]
        failures, count = [], 0
        for begin in range(0, len(jobs), 8):  # read and written by threads, eight at a time
            part = jobs[begin : begin + 8]
            failures += translate_files(translator, part, load_size=side)
            count += len(part)
            done(count, len(jobs))
        written = [job.target for job in jobs if job.target.exists()]
        archive = folder / f"{Path(entry.name).stem}_translated.zip"
        with zipfile.ZipFile(archive, "w") as file:  # PNG files are compressed already
            for path in written:
                file.write(path, path.name)
        return archive, written, [f"{source.name}: {reason}" for source, reason in failures]


def _weights(place: Path, epoch: str) -> list[Path]:
    return [place] if place.is_file() else list(place.glob(f"{epoch}_net_*.pth"))


def _unpacked(archive: Path, folder: Path) -> list[Path]:
    """The image files of a ZIP archive, unpacked into `folder`. UserError if it is damaged or hostile."""
    extract(archive, folder)
    return list_images(folder)


# ---- the page ----


def build_page(studio: Studio):
    """The page as Gradio blocks."""
    import gradio as gr

    models = studio.models()
    first = next(iter(models.values()), None)

    def refusing(call: Callable) -> Callable:
        """A UserError becomes a message on the page."""

        @functools.wraps(call)
        def refuse(*args):
            try:
                return call(*args)
            except UserError as error:
                raise gr.Error(str(error), title="Not possible", print_exception=False) from None

        return refuse

    def choices(label: str | None) -> list:
        """What the controls offer for a model: epoch, direction, size, style."""
        entry = studio.entry(label)
        directions = entry.directions or ("",)
        return [
            gr.update(choices=list(entry.epochs), value=entry.epochs[0], visible=not entry.is_file),
            gr.update(
                choices=list(entry.directions), value=directions[0] or None, visible=bool(entry.directions)
            ),
            gr.update(choices=size_choices(entry), value=AS_TRAINED),
            gr.update(visible=entry.has_styles),
        ]

    def settings(label, epoch, direction, side, style) -> tuple:
        """What the controls say; those of another model, chosen a moment ago, count as its first ones."""
        entry = studio.entry(label)
        epoch = epoch if epoch in entry.epochs else entry.epochs[0]
        direction = direction if direction in entry.directions else next(iter(entry.directions), "")
        sides = {AS_IT_IS: None, AS_TRAINED: entry.trained_size}
        return entry, epoch, direction, sides[side] if side in sides else int(side), style

    def show(path, *chosen):
        if not path:
            raise gr.Error("Drop a photograph first.", title="Nothing to translate", print_exception=False)
        done = studio.translate(Path(path), *settings(*chosen))
        saved = Path(tempfile.mkdtemp(dir=studio.folder), f"{Path(path).stem}_translated.png")
        done.target.save(saved)
        return (
            (done.source, str(saved)),
            facts_html(done.facts, done.command),
            gr.update(value=str(saved), visible=True),
            '<p class="note">Looking for the queries …</p>',
        )

    def show_queries(path, *chosen) -> str:
        page, obstacle = studio.queries(Path(path), *settings(*chosen))
        if obstacle:
            return f'<p class="note">{html.escape(obstacle)}</p>'
        return f'<iframe class="queries" title="Chosen queries" srcdoc="{html.escape(page)}"></iframe>'

    def show_many(files, folder, label, epoch, direction, side, style, progress=gr.Progress()):  # noqa: B008
        paths = [Path(path) for path in [*(files or []), *(folder or [])]]
        archive, written, failures = studio.translate_many(
            paths,
            *settings(label, epoch, direction, side, style),
            done=lambda done, total: progress((done, total), unit="photographs"),
        )
        note = f"{len(written)} translated" + (f", {len(failures)} failed:" if failures else ".")
        lines = [f'<p class="note">{html.escape(line)}</p>' for line in (note, *failures)]
        return (
            [str(path) for path in written[:SHOWN]],
            gr.update(value=str(archive), visible=True),
            "".join(lines),
        )

    with gr.Blocks(title="QS-Attn", analytics_enabled=False) as page:
        claim = "Translate photographs with a trained model. Nothing leaves this machine."
        gr.HTML(f"<h1>QS-Attn</h1><p>{claim}</p>", elem_id="title")
        if first is None:
            gr.HTML(
                f"<p>There is no model yet: no run in <code>{html.escape(studio.checkpoints_dir)}</code>, no "
                f"<code>.pth</code> file in <code>{html.escape(str(studio.pretrained_dir))}</code>.</p>"
                '<p class="command">bash scripts/quickstart.sh</p><p>trains one in a few minutes. Start the '
                "demo again then.</p>"
            )
            return page
        with gr.Row():
            model = gr.Dropdown(list(models), value=first.label, label="Model", filterable=True, scale=3)
            epoch = gr.Dropdown(
                list(first.epochs), value=first.epochs[0], label="Epoch", visible=not first.is_file
            )
            direction = gr.Dropdown(
                list(first.directions),
                value=next(iter(first.directions), None),
                label="Direction",
                visible=bool(first.directions),
            )
            side = gr.Dropdown(size_choices(first), value=AS_TRAINED, label="Shorter side", min_width=230)
            style = gr.Slider(0, 99, 0, step=1, label="Style", visible=first.has_styles)
        chosen = [model, epoch, direction, side, style]
        with gr.Tabs():
            with gr.Tab("One photograph"):
                with gr.Row(equal_height=False):
                    with gr.Column(scale=2, min_width=260):
                        photo = gr.Image(
                            label="Photograph",
                            type="filepath",
                            sources=["upload", "clipboard"],
                            height=320,
                            elem_id="photo",
                        )
                        button = gr.Button("Translate", variant="primary", elem_id="translate")
                        facts = gr.HTML()
                        download = gr.DownloadButton(
                            "Save the translation", visible=False, size="sm", elem_id="save"
                        )
                    with gr.Column(scale=3, min_width=320):
                        slider = gr.ImageSlider(
                            label="Input | translation",
                            type="filepath",
                            format="png",  # lossless
                            max_height=640,
                            interactive=False,
                            elem_id="slider",
                        )
                queries = gr.HTML(elem_id="queries")
            with gr.Tab("Many photographs"):
                with gr.Row(equal_height=False):
                    with gr.Column(scale=2, min_width=260):
                        files = gr.File(
                            label="Photographs, or a ZIP archive of them",
                            file_count="multiple",
                            file_types=["image", ".zip"],
                            elem_id="files",
                        )
                        folder = gr.File(label="A folder", file_count="directory", height=140)
                        many = gr.Button("Translate all", variant="primary", elem_id="translate_all")
                    with gr.Column(scale=3, min_width=320):
                        archive = gr.DownloadButton("Save all as ZIP", visible=False, elem_id="save_all")
                        report = gr.HTML(elem_id="report")
                        gallery = gr.Gallery(
                            label=f"The first {SHOWN}", columns=4, object_fit="contain", format="png"
                        )
        # The file as it was dropped: Gradio would decode it, and lose what it cannot.
        photo.preprocess = lambda payload: payload.path if payload else None
        model.change(refusing(choices), model, [epoch, direction, side, style], show_progress="hidden")
        shown = gr.on([button.click, photo.upload], refusing(show), [photo, *chosen],
                      [slider, facts, download, queries])  # fmt: skip
        shown.success(refusing(show_queries), [photo, *chosen], queries, show_progress="hidden")
        many.click(refusing(show_many), [files, folder, *chosen], [gallery, archive, report])
        page.load(lambda: gr.update(choices=list(studio.models())), None, model, show_progress="hidden")
    return page


def size_choices(entry: Entry) -> list[tuple[str, int | str]]:
    """Sizes of the shorter side to choose from: (shown, value)."""
    trained = entry.trained_size
    first = f"{trained} pixels, {AS_TRAINED}" if entry.saved else f"{trained} pixels"
    others = [(f"{size} pixels", size) for size in SIZES if size != trained]
    return [(first, AS_TRAINED), *others, (AS_IT_IS, AS_IT_IS)]


def facts_html(facts: dict[str, str], command: str) -> str:
    """Named values in a line, and a command below."""
    parts = [
        f"<div><span>{html.escape(name)}</span><b>{html.escape(value)}</b></div>"
        for name, value in facts.items()
    ]
    shown = f'<div class="command">{html.escape(command)}</div>' if command else ""
    return f'<div class="facts">{"".join(parts)}</div>{shown}'


def serve(page, port: int, in_browser: bool) -> None:
    """Serve the page to this machine alone, until Ctrl-C. OSError if the port cannot be used."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace"]
    )
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=in_browser,
        share=False,
        theme=theme,
        css=STYLE,
        footer_links=[],
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"Page: {page.local_url} (this machine only; Ctrl-C ends it)", flush=True)
    page.block_thread()


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit status."""
    parser = ArgumentParser(prog="scripts/demo.py", description=__doc__.splitlines()[0])
    parser.add("--checkpoints_dir", "./checkpoints", "where runs are")
    folder = "where further weights files (*.pth) are"
    parser.add("--pretrained_dir", FOLDER, folder, type=Path, shown="pretrained/ beside the code")
    parser.add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    parser.add("--port", 7860, "of the page", type=integer(1, 65535))
    parser.add("--open", False, "open it in the browser")
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    device = get_device(opt.gpu_ids)
    # Before Gradio is imported: it reads them then. Uploads and results vanish with this folder.
    folder = tempfile.TemporaryDirectory(prefix="qsattn_demo_")
    os.environ.update(
        GRADIO_TEMP_DIR=folder.name, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1"
    )
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs Gradio ({error}): pip install -r requirements-demo.txt") from None
    with folder:
        page = build_page(Studio(opt.checkpoints_dir, opt.pretrained_dir, device, Path(folder.name)))
        try:
            serve(page, opt.port, opt.open)
        except OSError as error:
            raise UserError(f"port {opt.port} cannot be used ({error}): give another --port") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
