"""Where an ASGIT run looks, class by class and epoch by epoch (ASGIT's supplement, attention intensity).

    python scripts/attention_intensity.py --name NAME                                   embedded set's masks
    python scripts/attention_intensity.py --name NAME --epochs 20,40,60 --labels DIR    label maps of sources

A pixel is crucial if its attention exceeds 0.5; an image is aware of a class that it shows if at least half
of the class's pixels are crucial. The numbers are printed and written to OUT/attention.json. A file of
labels, of its image's name, is a mask, white on the animals, or a Cityscapes label map (19 classes; the
supplement has 16).
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from data import create_loader
from models import MODELS, create_model
from models.asgit_model import GuidedModel
from models.attention import resize_map
from models.build import ATTENDING
from models.weights import checkpoint_file, load_weights
from options.test_options import TestOptions
from scripts.evaluate import EvaluateOptions, checkpoints
from util.errors import UserError, entry_point
from util.image_files import list_images, open_rgb
from util.metrics.segmentation import CLASSES, frame_name, read_label_map

WHITE = {(255, 255, 255)}
BLACK_AND_WHITE = WHITE | {(0, 0, 0)}
Regions = Mapping[str, np.ndarray]  # the pixels (H, W), bool, of each class of an image
Numbers = dict[str, dict[str, float]]  # of each class


class IntensityOptions(TestOptions):
    prog = "scripts/attention_intensity.py"
    description = __doc__.splitlines()[0]
    print_help = EvaluateOptions.print_help  # lists the options of this script, and names test.py's

    def declare(self) -> None:
        add = self.parser.add
        self.parser.group("what is measured")
        add("--epochs", "all", "checkpoints: all, or a list as 20,40,60")
        add("--labels", None, "folder of label maps", type=Path, shown="DATAROOT/masks/PHASE + A or B")
        add("--out", None, "folder to write to", type=Path, shown="RESULTS_DIR/NAME/attention_PHASE")
        self.own = set(self.parser.defaults)
        super().declare()

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        if opt.pretrained:
            self.parser.error("--pretrained holds a generator alone: give --name NAME, a run that has D too")
        opt.out = opt.out or Path(opt.results_dir, opt.name, f"attention_{opt.phase}")
        if not issubclass(MODELS[opt.model], GuidedModel) or opt.netD not in ATTENDING:
            found = f"--name {opt.name} is a run of --model {opt.model} --netD {opt.netD}"
            raise UserError(f"{found}, which does not say where it looks: name one of asgit")
        if "crop" in opt.preprocess and opt.preprocess != "resize_and_crop":
            found = f"--preprocess {opt.preprocess} shows parts of images, and labels are of whole ones"
            raise UserError(f"{found}: give --preprocess resize_and_crop or none")
        opt.load_size = opt.crop_size


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    opt = IntensityOptions().parse(argv)
    opt.out.mkdir(parents=True, exist_ok=True)
    labels = labels_by_source(opt)
    epochs: dict[str, Numbers] = {}
    for epoch in checkpoints(opt):
        seen = [(look, label_regions(labels[path], look.shape[::-1])) for path, look in looks(opt, epoch)]
        epochs[epoch] = intensity(seen)
    classes = class_statistics(regions for _, regions in seen)
    (opt.out / "attention.json").write_text(json.dumps({"classes": classes, "epochs": epochs}, indent=1))
    print("Images that show a class, instances per image; images aware of it and its attention by epoch:")
    for name, found in classes.items():
        cells = [f"{name:<14}{found['share']:7.1%}{found['instances']:8.2f}"]
        for epoch, numbers in epochs.items():
            if name in numbers:
                cells.append(f"{epoch}: {numbers[name]['aware']:.1%} ({numbers[name]['attention']:.1%})")
        print("   ".join(cells))
    print(f"written to {opt.out / 'attention.json'}")


def looks(opt: Namespace, epoch: str) -> Iterator[tuple[str, np.ndarray]]:
    """The file of each source image, and where D looks, (H, W) in [0, 1]."""
    model = create_model(opt)
    for name in model.network_names:
        if name.startswith("D") and name not in model.networks:
            model.networks[name] = model.build_network(name).to(model.device)
    for name, net in model.networks.items():
        load_weights(net, checkpoint_file(opt.checkpoints_dir, opt.name, epoch, name))
        net.train(not opt.eval)
    loader = create_loader(opt, model.device)
    try:
        for batch in loader.epoch(1):
            with torch.inference_mode():
                images = model.place(batch["A"])
                maps = resize_map(model.observe(images), images.shape[2:])
            for path, attention in zip(batch["A_paths"], maps, strict=True):
                yield path, attention[0].float().cpu().numpy()
    finally:
        loader.close()


def labels_by_source(opt: Namespace) -> dict[str, Path]:
    """The label map of each source image, by its file."""
    folder = opt.labels or Path(opt.dataroot, "masks", f"{opt.phase}{opt.direction[0]}")
    found = {frame_name(path): path for path in list_images(folder)}
    labels = {}
    for source in create_loader(opt, "cpu").dataset.stores["A"].paths:
        name = frame_name(Path(source))
        if name not in found:
            raise UserError(f"{source} has no label map: {folder} holds no file named {name}.*")
        labels[source] = found[name]
    return labels


def label_regions(path: Path, size: tuple[int, int] | None = None) -> Regions:
    """The pixels of each class of a label map, at (width, height) `size`; of a mask, animals are white."""
    image = open_rgb(path)
    if {colour for _, colour in image.getcolors(2) or ()} in (WHITE, BLACK_AND_WHITE):
        mask = np.asarray(image.resize(size or image.size, Image.Resampling.NEAREST).convert("L")) > 0
        return {"animal": mask, "background": ~mask}
    ids = read_label_map(path, size)
    return {name: ids == number for number, (name, _, _) in enumerate(CLASSES)}


# ---- the measures; attention (H, W) in [0, 1] ----


def intensity(images: Iterable[tuple[np.ndarray, Regions]]) -> Numbers:
    """By class, over the images that show it: `images`, their number; `aware`, the share that is aware of it;
    `attention`, the mean share of an image's attention on it; `area`, its mean share of pixels.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for attention, regions in images:
        for name, region in regions.items():
            if region.any():
                aware = (attention[region] > 0.5).mean() >= 0.5
                share = attention[region].sum() / max(attention.sum(), 1e-12)
                rows.setdefault(name, []).append((aware, share, region.mean()))
    names = ("aware", "attention", "area")
    return {
        name: {"images": len(seen), **dict(zip(names, map(float, np.mean(seen, axis=0)), strict=True))}
        for name, seen in rows.items()
    }


def class_statistics(images: Iterable[Regions]) -> Numbers:
    """By class: `share` of images that show it, and `instances`, the mean number per image of all.

    An instance is a connected region, so instances that touch, at a corner too, count as one.
    """
    counts: dict[str, list[int]] = {}
    for regions in images:
        for name, region in regions.items():
            counts.setdefault(name, []).append(ndimage.label(region, np.ones((3, 3)))[1])
    return {
        name: {"share": float(np.mean(np.array(found) > 0)), "instances": float(np.mean(found))}
        for name, found in counts.items()
    }


if __name__ == "__main__":
    sys.exit(main())
