"""Load a trained generator by name: a run, a weights file, or a model that needs no training. From Python:

    from PIL import Image
    from models.inference import load_generator

    translate = load_generator("horse2zebra_qsattn_global")  # a run, or the path of a ..._net_G.pth
    translate(Image.open("horse.jpg")).save("zebra.png")

A model with styles (MUNIT) also takes `style`: a seed, an image, or its numbers. One with many domains takes
`domain`, the name of the target, one of `translate.domains`.
"""

import json
import os
import re
import tarfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch

from data.transforms import LATE_RESIZE
from models import MODELS, create_model, option_defaults, option_rows, require_model
from models.translator import Translator
from models.weights import architecture, bare_generator, checkpoint_file, load_weights, weights_file
from util.arguments import Option
from util.errors import UserError
from util.files import write_atomically
from util.run.saved_options import FILE, checked, saved_options
from util.weight_files import fetch, read_tensors

# The options of translating that every model has, besides those of its networks.
DIRECTION = Option("direction", "AtoB", "", choices=("AtoB", "BtoA"))
COMMON = {"direction": DIRECTION, "eval": Option("eval", True, "")}

WEIGHTS_FILE = re.compile(r"(.+)_net_(\w+)\.pth")  # epoch, network
BOTH = ".pt"  # a file of MUNIT's released code, with both generators, as "a" and "b"


def load_generator(
    name_or_path: str | os.PathLike,
    checkpoints_dir: str | os.PathLike = "./checkpoints",
    epoch: str | int = "latest",
    device: torch.device | str | None = None,
    direction: str | None = None,
) -> Translator:
    """The translator of a run, of a pretrained model, or of a generator's weights file; or UserError.

    `test.py --list_pretrained` lists the pretrained models; those that others publish are fetched. A file,
    `*.pth` or `*.safetensors`, may come from the released code, CUT or CycleGAN; a `*.pt` file holds both
    generators of MUNIT. Without saved options the architecture is read off the weights. `device` None: a GPU
    if there is one. `direction` None: that of the training.
    """
    path, network = Path(name_or_path), None
    is_file = path.suffix in (".pth", ".safetensors", BOTH)
    folder = path.parent if is_file else find_run(path, checkpoints_dir)
    if is_file and (match := WEIGHTS_FILE.fullmatch(path.name)):
        epoch, network = match.groups()
    opt = run_options(folder) if network or not is_file else None
    if opt and network:  # the file's name says which direction it is for
        ways = [way for way, networks in directions(opt).items() if networks[0] == network]
        opt, direction = (opt, ways[0]) if ways else (None, direction)
    if opt is None:
        if not is_file:
            network = bare_generator(folder, str(epoch), direction or "AtoB")
            path, is_file = checkpoint_file(folder.parent, folder.name, str(epoch), network), True
        opt = _options_of_weights(path)
        if path.suffix != BOTH:
            direction = "BtoA" if network == "gen_a" else "AtoB"
    opt.direction = direction or opt.direction
    if opt.direction not in directions(opt):
        raise UserError(f"{folder} was trained {opt.trained_direction} alone: leave direction out")
    opt.isTrain, opt.gpu_ids, opt.precision, opt.channels_last = False, [], "fp32", False
    opt.checkpoints_dir, opt.name, opt.epoch = str(folder.parent), folder.name, str(epoch)
    if device is None:
        own = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else own
    return translator_of_run(opt, torch.device(device), path if is_file else None)


def translator_of_run(
    opt: Namespace, device: torch.device | None = None, file: Path | None = None
) -> Translator:
    """The translator that the options of test.py name, of the weights in `file` if there is one."""
    model = create_model(opt)
    for name, net in model.networks.items():
        if file and file.suffix == BOTH:
            load_weights(net, file, part=name[-1])
        else:  # the first network makes the translation
            path = file if name == model.translating(opt)[0] else None
            load_weights(net, path or checkpoint_file(opt.checkpoints_dir, opt.name, opt.epoch, name))
    device = device or model.device
    net = model.translator().train(not opt.eval).requires_grad_(False).to(device)
    return Translator(net, device, opt, model.size_limits(opt)[0])


# ---- what translating takes from the options of a run ----


def run_options(folder: Path) -> Namespace | None:
    """What translating with the run in `folder` takes from its options; None where it has saved none."""
    saved = saved_options(folder)
    if saved is None:
        return None
    require_model(saved.get("model"), folder)
    rows = {**option_rows(saved["model"]), **COMMON}
    return _with_defaults(saved["model"], checked(saved, rows, folder / FILE), translate_size(saved))


def _options_of_weights(path: Path) -> Namespace:
    found = architecture(read_tensors(path, "a" if path.suffix == BOTH else None))
    if not found or (path.suffix == BOTH and "style_dim" not in found):
        raise UserError(f"{path} holds no generator of this project: give a ..._net_G.pth")
    return _with_defaults("cut", found, None)


def _with_defaults(model: str, values: Mapping[str, object], size: int | None) -> Namespace:
    values = {"model": model, **values}
    common = {name: row.default for name, row in COMMON.items()}
    opt = Namespace(**{**common, **option_defaults(values["model"]), **values}, translate_size=size)
    opt.trained_direction = opt.direction
    return opt


def final_load_size(saved: Mapping[str, object]) -> int:
    """The load_size that images had at the end of a training, given its options, for whole test images."""
    crop_size = saved.get("crop_size", 256)
    in_iterations = saved.get("n_iterations") or saved.get("n_iterations_decay")
    crops_ended = saved.get("n_epochs_decay") and not (in_iterations or saved.get("crop_late"))
    mode = saved.get("preprocess", "resize_and_crop")
    return crop_size if crops_ended and mode in LATE_RESIZE else saved.get("load_size", crop_size)


def translate_size(saved: Mapping[str, object]) -> int | None:
    """The shorter side that a run with these options translates photographs at, in pixels; None: any."""
    if saved.get("translate_size"):
        return saved["translate_size"]
    mode = saved.get("preprocess", "resize_and_crop")
    if mode == "resize_and_crop":
        return final_load_size(saved)
    if mode.startswith("scale_width"):
        return min(saved.get("load_size", 256), saved.get("crop_size", 256))
    return None


def directions(opt: Namespace) -> dict[str, tuple[str, ...]]:
    """The directions that a run translates in, that of its training first, with the networks each takes."""
    trained = getattr(opt, "trained_direction", opt.direction)
    found: dict[str, tuple[str, ...]] = {}
    for direction in (trained, "AtoB", "BtoA"):
        asked = Namespace(**{**vars(opt), "trained_direction": trained, "direction": direction})
        networks = MODELS[opt.model].translating(asked)
        if networks not in found.values():
            found[direction] = networks
    return found


# ---- models that need no training, as run folders: with the code, or published, which are fetched once ----

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = "pretrained"  # the folder of ROOT, and of torch's cache, that has their runs
HUB = "hf:"  # before USER/REPO, a repository of the Hugging Face hub
CYCLE_GAN = "http://efrosgans.eecs.berkeley.edu/cyclegan/pretrained_models"  # /NAME.pth
CUT = "http://efrosgans.eecs.berkeley.edu/CUT/pretrained_models.tar"  # holds NAME/latest_net_G.pth
_NAMES = {  # by address, and the direction that they translate their authors' data set in
    (CYCLE_GAN, "AtoB"): "apple2orange summer2winter_yosemite horse2zebra monet2photo sat2map "
    "cityscapes_photo2label facades_photo2label iphone2dslr_flower",
    (CYCLE_GAN, "BtoA"): "orange2apple winter2summer_yosemite zebra2horse style_monet style_cezanne "
    "style_ukiyoe style_vangogh map2sat cityscapes_label2photo facades_label2photo",
    (CUT, "AtoB"): "horse2zebra_cut_pretrained horse2zebra_fastcut_pretrained cat2dog_cut_pretrained "
    "cat2dog_fastcut_pretrained",
    (CUT, "BtoA"): "cityscapes_cut_pretrained cityscapes_fastcut_pretrained",
}
PUBLISHED = {name: place for place, names in _NAMES.items() for name in names.split()}
SIZE = 256  # pixels of the images that all of them were trained on


def cache_folder() -> Path:
    return Path(torch.hub.get_dir(), PRETRAINED)


def pretrained_list() -> str:
    """The names that --pretrained takes, below their sources."""
    sources = {"with the code": [path.parent.name for path in Path(ROOT, PRETRAINED).glob(f"*/{FILE}")]}
    for name, (url, _) in PUBLISHED.items():
        sources.setdefault(url, []).append(name)
    sources["Hugging Face hub"] = [f"{HUB}USER/REPO"]
    return "\n".join("\n    ".join([source, *sorted(names)]) for source, names in sources.items())


def find_run(name: str | Path, checkpoints_dir: str | Path) -> Path:
    """The folder of a run; where there is none, that of the pretrained model of this name if there is one."""
    folder = Path(checkpoints_dir, name)
    return folder if folder.is_dir() else pretrained_run(str(name)) or folder


def pretrained_run(name: str) -> Path | None:
    """The run folder of a pretrained model, fetched if need be; None if there is no such model."""
    for folder in (Path(ROOT, PRETRAINED, name), cache_folder() / name):
        if folder.name == name and Path(folder, FILE).is_file():
            return folder
    if name in PUBLISHED:
        return _published(name, *PUBLISHED[name])
    return _of_the_hub(name) if name.startswith(HUB) else None


def _published(name: str, url: str, direction: str) -> Path:
    weights = weights_file(cache_folder() / name, "latest", "G")
    if weights.is_file():
        pass
    elif url.endswith(".tar"):
        archive = cache_folder() / "CUT_pretrained_models.tar"
        if not archive.is_file():
            fetch(url, archive)
        end = f"{name}/{weights.name}"
        try:
            with tarfile.open(archive) as files:
                data = next(files.extractfile(file).read() for file in files if file.name.endswith(end))
        except (tarfile.TarError, EOFError, StopIteration) as error:
            raise UserError(f"{archive} has no {end} ({error}): remove it, and it is fetched again") from None
        weights.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(weights, lambda path: path.write_bytes(data))
    else:
        fetch(f"{url}/{name}.pth", weights)
    return _as_run(weights, direction)


def _of_the_hub(name: str) -> Path:
    repository = name.removeprefix(HUB)
    folder = cache_folder() / re.sub(r"\W+", "_", repository)
    if (folder / FILE).is_file():
        return folder
    try:
        from huggingface_hub import snapshot_download

        snapshot_download(repository, local_dir=folder, allow_patterns=["*.pth", "*.safetensors", FILE])
    except ImportError as error:
        raise UserError(f"{name} needs a package ({error}): pip install huggingface_hub") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch {name}: {' '.join(str(error).split())}") from None
    weights = weights_file(folder, "latest", "G")
    files = [*folder.glob("*.safetensors"), *folder.glob("*.pth")]
    if not (folder / FILE).is_file() and not weights.is_file():
        if len(files) != 1:
            raise UserError(f"{name} has {len(files)} files of weights: one generator is expected")
        state = read_tensors(files[0])
        write_atomically(weights, lambda path: torch.save(state, path))
    return _as_run(weights, "AtoB")


def _as_run(weights: Path, direction: str) -> Path:
    """The folder of a generator's weights as a run, with the options that they show."""
    file = weights.parent / FILE
    if not file.is_file():
        found = architecture(read_tensors(weights))
        if not found:
            raise UserError(f"{weights} holds no generator of this project")
        sizes = dict.fromkeys(("load_size", "crop_size", "translate_size"), SIZE)
        text = json.dumps({"model": "cut", **found, **sizes, "direction": direction}, indent=1)
        write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    return weights.parent
