"""Where an ASGIT run looks, class by class and epoch by epoch.

    python scripts/attention_intensity.py --name NAME --epochs 20,40,60 --labels DIR   source label maps
    python scripts/attention_intensity.py --name NAME                                  embedded set's masks
    python scripts/attention_intensity.py --name NAME --labels source                  sources are label maps
    python scripts/attention_intensity.py --labels DIR                                 class statistics only

A class counts as seen in an image if at least half of its pixels have attention above 0.5. The numbers are
printed as a table and written to OUT/attention.json. A file of labels is a mask, white on the animals, or a
Cityscapes label map of its 19 train classes (the supplement has 16); it is found by the name of its image.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from data import create_loader
from models import MODELS, create_model
from models.attention.guidance import GuidedModel
from models.weights import checkpoint_file, load_weights
from options.test_options import TestOptions
from scripts.evaluate import checkpoints, list_only
from scripts.measuring import markdown_table
from util.errors import UserError, entry_point
from util.image_files import list_images, open_rgb
from util.images import to_uint8
from util.metrics.attention_intensity import Regions, class_statistics, intensity
from util.metrics.segmentation import CLASSES, frame_name, nearest_palette_ids, read_label_map

WHITE = {(255, 255, 255)}
BLACK_AND_WHITE = WHITE | {(0, 0, 0)}


class IntensityOptions(TestOptions):
    """python scripts/attention_intensity.py [options]"""

    prog = "scripts/attention_intensity.py"
    description = __doc__.splitlines()[0]

    def declare(self) -> None:
        add = self.parser.add
        self.parser.group("what is measured")
        add("--epochs", "all", "checkpoints: all, or a list as 20,40,60")
        masks = "DATAROOT/masks/PHASE + A or B"
        add("--labels", None, "folder of label maps; source: the source images", shown=masks)
        add("--out", None, "folder to write to", type=Path, shown="RESULTS_DIR/NAME/attention_PHASE")
        own = set(self.parser.defaults)
        super().declare()
        list_only(self.parser, own)

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
        if "crop" in opt.preprocess and opt.preprocess != "resize_and_crop":
            raise UserError(
                f"--preprocess {opt.preprocess} shows parts of images, and labels are of whole ones: "
                "give --preprocess resize_and_crop or none"
            )
        opt.load_size = opt.crop_size


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    opt = IntensityOptions().parse(argv)
    opt.out.mkdir(parents=True, exist_ok=True)
    epochs: dict[str, dict[str, dict[str, float]]] = {}
    if "name" in opt.given:
        labels = labels_by_source(opt)
        for epoch in checkpoints(opt):
            seen = [
                (attention, regions_of(source, labels and labels[path], attention.shape[::-1]))
                for path, source, attention in looks(opt, epoch)
            ]
            epochs[epoch] = intensity(seen)
        classes = class_statistics(regions for _, regions in seen)
    else:
        classes = class_statistics(label_regions(path) for path in list_images(Path(opt.labels)))
    (opt.out / "attention.json").write_text(json.dumps({"classes": classes, "epochs": epochs}, indent=1))
    print(table(classes, epochs))
    print(f"written to {opt.out / 'attention.json'}")


def looks(opt: Namespace, epoch: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of each source image its file, itself, (H, W, 3) uint8, and where D looks, (H, W)."""
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
                _, maps = model.observe(model.place(batch["A"]))
            for path, source, attention in zip(batch["A_paths"], batch["A"], maps, strict=True):
                yield path, to_uint8(source), attention[0].float().cpu().numpy()
    finally:
        loader.close()


def labels_by_source(opt: Namespace) -> dict[str, Path] | None:
    """The label map of each source image, by its file; None where the sources are label maps themselves."""
    if opt.labels == "source":
        return None
    folder = Path(opt.labels or Path(opt.dataroot, "masks", f"{opt.phase}{opt.direction[0]}"))
    found = {frame_name(path): path for path in list_images(folder)}
    labels = {}
    for source in create_loader(opt, "cpu").dataset.stores["A"].paths:
        name = frame_name(Path(source))
        if name not in found:
            raise UserError(f"{source} has no label map: {folder} holds no file named {name}.*")
        labels[source] = found[name]
    return labels


def regions_of(source: np.ndarray, labels: Path | None, size: tuple[int, int]) -> Regions:
    """The pixels of each class, by a file of labels or by a source (H, W, 3) in Cityscapes' colours."""
    return by_class(nearest_palette_ids(source)) if labels is None else label_regions(labels, size)


def label_regions(path: Path, size: tuple[int, int] | None = None) -> Regions:
    """The pixels of each class of a file of labels, scaled to the (width, height) `size`.

    A black and white picture is a mask, white on the animals.
    """
    image = open_rgb(path)
    if {colour for _, colour in image.getcolors(2) or ()} in (WHITE, BLACK_AND_WHITE):
        mask = np.asarray(image.resize(size or image.size, Image.Resampling.NEAREST).convert("L")) > 0
        return {"animal": mask, "background": ~mask}
    return by_class(read_label_map(path, size))


def by_class(ids: np.ndarray) -> Regions:
    """Train ids (H, W) as a region for each class."""
    return {name: ids == number for number, (name, _, _) in enumerate(CLASSES)}


def table(classes: dict[str, dict[str, float]], epochs: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for each class, with the images that are aware of it and its attention at each epoch."""
    head = ["class", "images that show it", "instances per image"]
    lines = []
    for name, found in classes.items():
        line = [name, f"{found['share']:.1%}", f"{found['instances']:.2f}"]
        for epoch in epochs.values():
            seen = epoch.get(name)
            line.append(f"{seen['aware']:.1%} ({seen['attention']:.1%})" if seen else "-")
        lines.append(line)
    return markdown_table([*head, *(f"aware (attention), {epoch}" for epoch in epochs)], lines)


if __name__ == "__main__":
    sys.exit(main())
