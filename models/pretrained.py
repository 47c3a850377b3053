"""Models that need no training, as run folders: those that come with the code, and those that others publish.

The latter are fetched once, into torch's cache.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import torch

from models.architecture import architecture, kind
from models.weights import save_tensors, weights_file
from util.errors import UserError
from util.fetch import fetch
from util.files import write_atomically
from util.run.saved_options import FILE
from util.weight_files import read_tensors

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = "pretrained"  # the folder of ROOT, and of torch's cache, that has their runs

# By address: the models there, each with the direction that it translates its authors' data set in.
CYCLE_GAN = "http://efrosgans.eecs.berkeley.edu/cyclegan/pretrained_models"  # /NAME.pth
CUT = "http://efrosgans.eecs.berkeley.edu/CUT/pretrained_models.tar"  # holds NAME/latest_net_G.pth
PUBLISHED = {
    CYCLE_GAN: {
        "apple2orange": "AtoB",
        "orange2apple": "BtoA",
        "summer2winter_yosemite": "AtoB",
        "winter2summer_yosemite": "BtoA",
        "horse2zebra": "AtoB",
        "zebra2horse": "BtoA",
        "monet2photo": "AtoB",
        "style_monet": "BtoA",
        "style_cezanne": "BtoA",
        "style_ukiyoe": "BtoA",
        "style_vangogh": "BtoA",
        "sat2map": "AtoB",
        "map2sat": "BtoA",
        "cityscapes_photo2label": "AtoB",
        "cityscapes_label2photo": "BtoA",
        "facades_photo2label": "AtoB",
        "facades_label2photo": "BtoA",
        "iphone2dslr_flower": "AtoB",
    },
    CUT: {
        "horse2zebra_cut_pretrained": "AtoB",
        "horse2zebra_fastcut_pretrained": "AtoB",
        "cat2dog_cut_pretrained": "AtoB",
        "cat2dog_fastcut_pretrained": "AtoB",
        "cityscapes_cut_pretrained": "BtoA",
        "cityscapes_fastcut_pretrained": "BtoA",
    },
}
SIZE = 256  # pixels of the images that all of them were trained on
HUB = "hf:"  # before USER/REPO, a repository of the Hugging Face hub


def cache_folder() -> Path:
    """Where fetched models are kept."""
    return Path(torch.hub.get_dir(), PRETRAINED)


def pretrained_list() -> str:
    """The names that --pretrained takes, below their sources."""
    own = {path.parent.name for path in Path(ROOT, PRETRAINED).glob("*/train_opt.json")}
    sources = {"with the code": own, **PUBLISHED, "Hugging Face hub": [f"{HUB}USER/REPO"]}
    return "\n".join("\n    ".join([source, *sorted(names)]) for source, names in sources.items())


def find_run(name: str | Path, checkpoints_dir: str | Path) -> Path:
    """The folder of a run; where there is none, that of the pretrained model of this name if there is one."""
    folder = Path(checkpoints_dir, name)
    return folder if folder.is_dir() else _pretrained(str(name)) or folder


def pretrained_run(name: str) -> Path:
    """The run folder of a pretrained model, fetched if need be. UserError if there is no such model."""
    if folder := _pretrained(name):
        return folder
    raise UserError(
        f"there is no pretrained model {name}: test.py --list_pretrained lists them, and a run of yours is "
        "named by --name"
    )


def _pretrained(name: str) -> Path | None:
    for folder in (Path(ROOT, PRETRAINED, name), cache_folder() / name):
        if folder.name == name and Path(folder, FILE).is_file():
            return folder
    for url, models in PUBLISHED.items():
        if name in models:
            return _published(url, name, models[name])
    return _of_the_hub(name.removeprefix(HUB)) if name.startswith(HUB) else None


def _published(url: str, name: str, direction: str) -> Path:
    folder = cache_folder() / name
    weights = weights_file(folder, "latest", "G")
    if not weights.is_file() and url == CUT:
        archive = cache_folder() / "CUT_pretrained_models.tar"
        if not archive.is_file():
            fetch(url, archive)
        _extract(archive, f"{name}/{weights.name}", weights)
    elif not weights.is_file():
        fetch(f"{url}/{name}.pth", weights)
    return _as_run(folder, direction)


def _extract(archive: Path, ending: str, target: Path) -> None:
    """Write the file of an archive whose path ends so."""
    try:
        with tarfile.open(archive) as files:
            data = next(files.extractfile(file).read() for file in files if file.name.endswith(ending))
    except (tarfile.TarError, EOFError, StopIteration) as error:
        raise UserError(f"{archive} has no {ending} ({error}): remove it, and it is fetched again") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: path.write_bytes(data))


def _of_the_hub(repository: str) -> Path:
    folder = cache_folder() / re.sub(r"\W+", "_", repository)
    weights = weights_file(folder, "latest", "G")
    if (folder / FILE).is_file():
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{HUB}{repository} needs a package ({error}): pip install huggingface_hub") from None
    try:
        snapshot_download(repository, local_dir=folder, allow_patterns=["*.pth", "*.safetensors", FILE])
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch {HUB}{repository}: {' '.join(str(error).split())}") from None
    files = [*folder.glob("*.safetensors"), *folder.glob("*.pth")]
    if not (folder / FILE).is_file() and not weights.is_file():
        if len(files) != 1:
            raise UserError(f"{HUB}{repository} has {len(files)} files of weights: one generator is expected")
        save_tensors(read_tensors(files[0]), weights)
    return _as_run(folder, "AtoB")


def _as_run(folder: Path, direction: str) -> Path:
    """The folder of a generator's weights as a run, with the options that they show."""
    if not (folder / FILE).is_file():
        state = read_tensors(weights_file(folder, "latest", "G"))
        found = architecture(state)
        if "netG" not in found:
            raise UserError(f"{folder} holds {kind(state)}, not a generator")
        sizes = dict.fromkeys(("load_size", "crop_size", "translate_size"), SIZE)
        options = {**found, **sizes, "model": "cut", "direction": direction}
        text = json.dumps(options, indent=1)
        write_atomically(folder / FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return folder
