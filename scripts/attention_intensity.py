"""Where an ASGIT run looks, class by class and epoch by epoch, with pictures.

    python scripts/attention_intensity.py --name NAME --epochs 20,40,60 --labels DIR   source label maps
    python scripts/attention_intensity.py --name NAME                                  embedded set's masks
    python scripts/attention_intensity.py --name NAME --labels source                  sources are label maps
    python scripts/attention_intensity.py --labels DIR                                 class statistics only

A class counts as seen in an image if at least half of its pixels have attention above 0.5. Into --out go
attention.json (all numbers), intensity.png (share of images by class and epoch), classes.png (images and
instances per class) and maps.png (input, and output and map of each epoch). A file of labels is a mask, white
on the animals, or a Cityscapes label map of its 19 train classes (the supplement has 16); it is found by the
name of its image.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from data import create_loader
from models import MODELS, create_model
from models.attention.guidance import GuidedModel
from models.weights import checkpoint_file, load_weights
from options.test_options import TestOptions
from scripts.evaluate import checkpoints, list_only
from scripts.measuring import markdown_table
from scripts.plots import COLOURS, panels, save
from util.arguments import integer
from util.errors import UserError, entry_point
from util.image_files import list_images, open_rgb
from util.images import to_uint8
from util.metrics.attention_intensity import class_statistics, intensity
from util.metrics.receipt import require_writable
from util.metrics.segmentation import CLASSES, frame_name, nearest_palette_ids, read_label_map

LISTED = "name checkpoints_dir results_dir dataroot phase direction gpu_ids eval max_dataset_size crop_size"
Regions = dict[str, np.ndarray]
WHITE = {(255, 255, 255)}
BLACK_AND_WHITE = WHITE | {(0, 0, 0)}


class IntensityOptions(TestOptions):
    """python scripts/attention_intensity.py [options]"""

    prog = "scripts/attention_intensity.py"
    description = __doc__.splitlines()[0]

    def declare(self) -> None:
        add = self.parser.add
        self.parser.group("what is shown")
        add("--epochs", "all", "checkpoints: all, or a list as 20,40,60")
        masks = "DATAROOT/masks/PHASE + A or B"
        add("--labels", None, "folder of label maps; source: the source images", shown=masks)
        add("--pictures", 4, "images in maps.png", type=integer(1, 100))
        add("--out", None, "folder to write to", type=Path, shown="RESULTS_DIR/NAME/attention_PHASE")
        own = set(self.parser.defaults)
        super().declare()
        list_only(self.parser, own | set(LISTED.split()))

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        if opt.pretrained:
            self.parser.error("--pretrained holds a generator alone: give --name NAME, a run that has D too")
        opt.out = opt.out or Path(opt.results_dir, opt.name, f"attention_{opt.phase}")
        if "name" not in opt.given:
            if opt.labels in (None, "source"):
                raise UserError("give --name NAME, a run of --model asgit, or --labels DIR for its classes")
            return
        if not issubclass(MODELS[opt.model], GuidedModel):
            raise UserError(
                f"--name {opt.name} is a run of --model {opt.model}, without attention: name one of asgit"
            )
        if opt.preprocess in ("crop", "scale_width_and_crop", "scale_shortside_and_crop"):
            raise UserError(
                f"--preprocess {opt.preprocess} shows parts of images, and labels are of whole ones: "
                "give --preprocess resize_and_crop or none"
            )
        opt.load_size = opt.crop_size


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    opt = IntensityOptions().parse(argv)
    require_writable(opt.out / "attention.json")
    if "name" not in opt.given:
        regions = (label_regions(path) for path in list_images(Path(opt.labels)))
        report(opt, {"classes": class_statistics(regions)}, [])
        return
    regions_of = labels_by_source(opt)
    epochs: dict[str, Any] = {}
    rows: list[dict[str, np.ndarray]] = []  # the pictures of the first images, by label
    known: list[Regions] = []
    for epoch in checkpoints(opt):
        seen = []
        for number, (path, source, translation, attention) in enumerate(looks(opt, epoch)):
            size = attention.shape[::-1]
            regions = source_regions(source) if regions_of is None else label_regions(regions_of[path], size)
            seen.append((attention, regions))
            if number < opt.pictures:
                rows += [{"input": source}] if not epochs else []
                grey = np.repeat(np.round(255 * attention).astype(np.uint8)[..., None], 3, axis=2)
                rows[number] |= {f"output, {epoch}": translation, f"map, {epoch}": grey}
        epochs[epoch] = intensity(seen)
        known = known or [regions for _, regions in seen]
    report(opt, {"epochs": epochs, "classes": class_statistics(known)}, rows)


def looks(opt: Namespace, epoch: str) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each source image its file, itself and its translation (H, W, 3) uint8, and where D looks (H, W)."""
    model = create_model(opt)
    observer = model.observer(opt)
    if observer not in model.networks:
        model.networks[observer] = model.build_network(observer).to(model.device)
    for name, net in model.networks.items():
        load_weights(net, checkpoint_file(opt.checkpoints_dir, opt.name, epoch, name), opt)
        net.train(not opt.eval)
    if not hasattr(model.networks[observer], "raw_map"):
        raise UserError(
            f"--name {opt.name} was trained with --netD {opt.netD}, which does not say where it looks"
        )
    loader = create_loader(opt, model.device)
    try:
        for batch in loader.epoch(1):
            with torch.inference_mode():
                translations, maps = model.observe(model.place(batch["A"]))
            for path, *images in zip(batch["A_paths"], batch["A"], translations, maps, strict=True):
                source, translation, attention = images
                yield path, to_uint8(source), to_uint8(translation), attention[0].float().cpu().numpy()
    finally:
        loader.close()


def labels_by_source(opt: Namespace) -> dict[str, Path] | None:
    """The label map of each source image, by its file; None where the sources are label maps themselves."""
    if opt.labels == "source":
        return None
    folder = Path(opt.labels or Path(opt.dataroot, "masks", f"{opt.phase}{opt.direction[0]}"))
    if not folder.is_dir():
        raise UserError(f"there are no label maps in {folder}: give --labels DIR, or --labels source")
    found = {frame_name(path): path for path in list_images(folder)}
    sources = create_loader(opt, "cpu").dataset.stores["A"].paths
    for source in sources:
        if frame_name(Path(source)) not in found:
            raise UserError(
                f"{source} has no label map: {folder} holds no file named {frame_name(Path(source))}.*"
            )
    return {source: found[frame_name(Path(source))] for source in sources}


def label_regions(path: Path, size: tuple[int, int] | None = None) -> Regions:
    """The pixels of each class of a file of labels, scaled to the (width, height) `size`.

    A black and white picture is a mask, white on the animals.
    """
    image = open_rgb(path)
    if {colour for _, colour in image.getcolors(2) or ()} in (WHITE, BLACK_AND_WHITE):
        mask = np.asarray(image.resize(size or image.size, Image.Resampling.NEAREST).convert("L")) > 0
        return {"animal": mask, "background": ~mask}
    return by_class(read_label_map(path, size))


def source_regions(source: np.ndarray) -> Regions:
    """The pixels of each class of a source image (H, W, 3) in Cityscapes' colours."""
    return by_class(nearest_palette_ids(source))


def by_class(ids: np.ndarray) -> Regions:
    """Train ids (H, W) as a region for each class."""
    return {name: ids == number for number, (name, _, _) in enumerate(CLASSES)}


def report(opt: Namespace, numbers: dict[str, Any], rows: list[dict[str, np.ndarray]]) -> None:
    """Write the numbers and their drawings, and print the numbers."""
    (opt.out / "attention.json").write_text(json.dumps(numbers, indent=1) + "\n")
    draw(opt.out, numbers, rows)
    epochs = numbers.get("epochs", {})
    head = ["class", "images that show it", "instances per image"]
    lines = []
    for name, found in numbers["classes"].items():
        line = [name, f"{found['share']:.1%}", f"{found['instances']:.2f}"]
        for epoch in epochs.values():
            seen = epoch.get(name)
            line.append(f"{seen['aware']:.1%} ({seen['attention']:.1%})" if seen else "-")
        lines.append(line)
    print(markdown_table([*head, *(f"aware (attention), {epoch}" for epoch in epochs)], lines))
    print(f"written to {opt.out}")


def draw(folder: Path, numbers: dict[str, Any], rows: list[dict[str, np.ndarray]]) -> None:
    """intensity.png, classes.png and maps.png, each where there is something to draw."""
    shown = {name: found for name, found in numbers["classes"].items() if found["share"] > 0}
    titles = ["share of images that show the class", "instances per image"]
    figure, axes = panels(titles, 0.25 * len(shown) + 1.5)
    for panel, key in zip(axes, ("share", "instances"), strict=True):
        panel.barh(range(len(shown)), [found[key] for found in shown.values()], color=COLOURS[0])
        panel.set_yticks(range(len(shown)), shown)
    save(figure, folder / "classes.png", dpi=150)
    if epochs := numbers.get("epochs"):
        figure, axes = panels(["images aware of a class", "share of attention on it (dotted: its area)"], 3.6)
        for number, name in enumerate(shown):
            colour, marker = COLOURS[number % len(COLOURS)], "os^v"[number // len(COLOURS) % 4]
            courses = {
                key: [epoch.get(name, {}).get(key, np.nan) for epoch in epochs.values()]
                for key in ("aware", "attention", "area")
            }
            for panel, key in zip(axes, ("aware", "attention"), strict=True):
                panel.plot(list(epochs), courses[key], label=name, color=colour, marker=marker, ms=4)
                panel.set_xlabel("epoch")
            axes[1].plot(list(epochs), courses["area"], ":", color=colour)
        axes[0].set_ylim(-0.05, 1.05)
        axes[0].legend(frameon=False, fontsize=7, ncols=1 + len(shown) // 8)
        save(figure, folder / "intensity.png", dpi=150)
    if rows:
        columns = list(rows[0])
        figure = Figure(figsize=(1.6 * len(columns), 1.6 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, pictures in zip(axes, rows, strict=True):
            for panel, label in zip(line, columns, strict=True):
                panel.imshow(pictures[label])
                panel.set_axis_off()
                panel.set_title(label if pictures is rows[0] else "", fontsize=8)
        save(figure, folder / "maps.png", dpi=150)


if __name__ == "__main__":
    sys.exit(main())
