"""Export a trained generator for other programs, and compare the exported file with the original.

    python scripts/export.py --name NAME                        NAME_latest.onnx, for ONNX Runtime
    python scripts/export.py --name NAME --format pretrained    pretrained/NAME/, for test.py --pretrained

The second is a run folder that only translates, with the weights in float16. The first holds a network that
takes `image` (B, input_nc, H, W) float32 and returns `translation` (B, output_nc, H, W), both in [-1, 1], for
any B, and for H and W that are multiples of 4 and at least 16 (unet_128: of 128, at least 256; unet_256: of
256, at least 512; at least 24 where a discriminator guides the generator). A model with styles (munit) has a
second input, `style` (B, style_dim), standard normal numbers or the style of an image; one with many domains
(qs_multi) has `domain` (B,) int64, the targets' numbers, which are printed; --domain dog fixes it. Dropout is
off and batch norm uses its running statistics, as with test.py --eval true.
"""

import copy
import functools
import itertools
import json
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import option_rows
from models.domain_networks import AffineInstanceNorm, DomainNorm
from models.inference import PRETRAINED, ROOT, directions, final_load_size, load_generator, run_options
from models.layers import InstanceNorm
from models.munit_networks import EPS, AdaIN, LayerNorm
from models.translator import Translator
from models.weights import checkpoint_file, save_tensors, weights_file
from options.test_options import FROM_THE_RUN, with_pretrained
from util.arguments import ArgumentParser
from util.errors import UserError, entry_point
from util.files import write_atomically
from util.run.saved_options import FILE, saved_options
from util.weight_files import read_tensors

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
MOST_IMAGES = 2**20  # of a batch; torch 2.6 cannot trace one without a limit
TOLERANCE = 1e-3  # of values in [-1, 1]
Run = Callable[..., np.ndarray]


class Generator(nn.Module):
    """The translator's network with the inputs of the exported one: images, and what `second` names."""

    def __init__(self, translator: Translator):
        super().__init__()
        self.net, self.domain = translator.net, translator.variant if translator.domains else None
        takes_domain = translator.domains and self.domain is None
        self.second = "style" if translator.style_dim else "domain" if takes_domain else ""

    def forward(self, image: Tensor, second: Tensor | None = None) -> Tensor:
        if self.domain is not None:
            second = self.domain.expand(image.shape[0])
        return self.net(image) if second is None else self.net(image, second)

    def inputs(self, count: int, *shape: int) -> dict[str, Tensor]:
        """Noise as images of this shape, and what the network takes besides, by name."""
        generator = torch.Generator().manual_seed(0)
        inputs = {"image": torch.rand(count, *shape, generator=generator) * 2 - 1}
        if self.second == "style":
            inputs["style"] = torch.randn(count, self.net.style_dim, generator=generator)
        elif self.second:
            inputs["domain"] = torch.arange(count) % 2
        return inputs


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Write the file that a command line asks for; exit status 1 if it differs too much from the original."""
    opt = parse(argv)
    if opt.format == "pretrained":
        return pack(opt, Path(opt.output or Path(ROOT, PRETRAINED, Path(opt.name).name)))
    if missing := [name for name in ONNX_PACKAGES if not find_spec(name)]:
        raise UserError(f"--format onnx needs more packages: pip install {' '.join(missing)}")
    translator = load_generator(opt.name, opt.checkpoints_dir, opt.epoch, "cpu", opt.direction)
    if translator.net.training:
        told = "the run translates as in training (--eval false), but is exported in evaluation mode: "
        print(f"note: {told}test.py --eval true gives the same translations", file=sys.stderr)
    net = Generator(translator.with_domain(opt.domain) if opt.domain else translator).eval()
    parts = [Path(opt.name).name.removesuffix(".pth"), opt.epoch]
    parts += [opt.direction] * bool(opt.direction) + [f"to_{opt.domain}"] * bool(opt.domain)
    path = Path(opt.output or "_".join(parts) + ".onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    multiple = translator.multiple
    smallest = max(translator.smallest, 2 * multiple) if multiple > 4 else translator.smallest
    # Batch, and by how many multiples height and width exceed the smallest.
    steps = [(2, 1, 2), (1, 0, 0), (2, 1, 3), (3, 5, 2)]
    shapes = [(b, translator.input_nc, *(smallest + multiple * more for more in s)) for b, *s in steps]
    example, *others = (net.inputs(*shape) for shape in shapes)
    program = trace(net, example, smallest // multiple, multiple)
    run = write_onnx(program, path, list(example))
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    if net.second == "domain":
        numbers = ", ".join(f"{number} {name}" for number, name in enumerate(translator.domains))
        print(f"  input domain: {numbers}")
    worst = max(compare(net, run, inputs) for inputs in others)
    if worst > TOLERANCE:
        print(f"error: the exported network differs by {worst:.2e}, more than {TOLERANCE:g}", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(prog="scripts/export.py", description=__doc__.splitlines()[0])
    add = parser.add
    add("--name", None, "name of a run, or a ..._net_G.pth file")
    add("--pretrained", None, "a model that test.py --list_pretrained lists, instead of --name")
    add("--checkpoints_dir", "./checkpoints", "where runs are kept")
    add("--epoch", "latest", "which checkpoint: latest, a number, iter_NUMBER")
    both, shown = "of a run that learns both, such as CycleGAN's", "that of its training"
    add("--direction", None, both, choices=("AtoB", "BtoA"), shown=shown)
    add("--domain", None, "of a run with many domains: the one to translate to", shown="a second input")
    add("--format", "onnx", "what to write", choices=("onnx", "pretrained"))
    add("--output", None, "file to write", shown="NAME_EPOCH.onnx, or the folder pretrained/NAME")
    opt = Namespace(**{**parser.defaults, **with_pretrained(parser.parse_given(argv))})
    if opt.name is None:
        parser.error("--name is missing: name a run, or a ..._net_G.pth file")
    return opt


def trace(
    net: Generator, example: dict[str, Tensor], least: int, multiple: int
) -> torch.export.ExportedProgram:
    """The network as a graph for any batch, and any height and width of at least `least` multiples."""
    height, width = (multiple * torch.export.Dim(side, min=least) for side in ("rows", "columns"))
    batch = torch.export.Dim("batch", max=MOST_IMAGES)
    shapes = ({0: batch, 2: height, 3: width}, {0: batch})[: len(example)]
    net = copy.deepcopy(net)
    for module in net.modules():
        if type(module) in PLAIN_FORMS:
            module.forward = functools.partial(PLAIN_FORMS[type(module)], module)
    return torch.export.export(net, tuple(example.values()), dynamic_shapes=shapes)


def write_onnx(program: torch.export.ExportedProgram, path: Path, names: list[str]) -> Run:
    """Write the ONNX file, including the weights; returns the model as ONNX Runtime runs it."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own parts
        named = {"input_names": names, "output_names": ["translation"]}
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **named)
    exported.save(os.fspath(path), external_data=False)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0]


@torch.inference_mode()
def compare(net: Generator, run: Run, inputs: dict[str, Tensor]) -> float:
    """Print and return the largest difference of the two networks' translations."""
    exported, original = run(*inputs.values()), net(*inputs.values()).numpy()
    difference = float(np.abs(exported - original).max())
    print(f"  {' x '.join(map(str, inputs['image'].shape))}: differs by at most {difference:.2e}")
    return difference


# Over free sizes the ONNX exporter of torch 2.6 has no variance, addcmul or nearest neighbour upsampling.


def instance_norm(module: InstanceNorm | AdaIN, x: Tensor) -> Tensor:
    x = x - x.mean((2, 3), keepdim=True)
    return x * ((x * x).mean((2, 3), keepdim=True) + InstanceNorm.EPS).rsqrt()


def adain(module: AdaIN, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return instance_norm(module, x) * scale[:, :, None, None] + shift[:, :, None, None]


def domain_norm(module: DomainNorm, x: Tensor) -> Tensor:
    scale, shift = module.affine(module.target.vectors)[:, :, None, None].chunk(2, 1)
    return module.norm(x) * (1 + scale) + shift


def affine_norm(module: AffineInstanceNorm, x: Tensor) -> Tensor:
    return instance_norm(module, x) * module.weight[:, None, None] + module.bias[:, None, None]


def layer_norm(module: LayerNorm, x: Tensor) -> Tensor:
    x = x - x.mean((1, 2, 3), keepdim=True)
    elements = x.shape[1] * x.shape[2] * x.shape[3]
    std = ((x * x).sum((1, 2, 3), keepdim=True) / (elements - 1)).sqrt()
    return x * (module.gamma[:, None, None] / (std + EPS)) + module.beta[:, None, None]


def upsample(module: nn.Upsample, x: Tensor) -> Tensor:
    """Each pixel as a square of pixels, for a whole `scale_factor`."""
    factor = int(module.scale_factor)
    x = x[:, :, :, None, :, None].expand(-1, -1, -1, factor, -1, factor)  # (B, C, H, factor, W, factor)
    return x.flatten(4, 5).flatten(2, 3)


PLAIN_FORMS = {
    InstanceNorm: instance_norm,
    DomainNorm: domain_norm,
    AffineInstanceNorm: affine_norm,
    AdaIN: adain,
    LayerNorm: layer_norm,
    nn.Upsample: upsample,
}


def pack(opt: Namespace, folder: Path) -> None:
    """Write a run folder that only translates: the generators in float16, and the options they need."""
    run = Path(opt.checkpoints_dir, opt.name)
    options, saved = run_options(run), saved_options(run)
    if options is None:
        raise UserError(f"{run} has no {FILE}: --format pretrained packs a run of train.py")
    if folder.exists():
        raise UserError(f"{folder} exists already: remove it, or give another --output")
    names = {*FROM_THE_RUN, *option_rows(options.model)} - {"dataroot"}
    kept = {name: value for name, value in saved.items() if name in names}
    kept |= {"load_size": final_load_size(saved), "translate_size": options.translate_size}
    folder.mkdir(parents=True)
    for network in set(itertools.chain(*directions(options).values())):
        state = read_tensors(checkpoint_file(opt.checkpoints_dir, opt.name, opt.epoch, network))
        save_tensors(state, weights_file(folder, "latest", network), torch.float16)
    text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
    write_atomically(folder / FILE, lambda file: file.write_text(text, encoding="utf-8"))
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
