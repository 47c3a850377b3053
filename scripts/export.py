"""Export a trained generator for other programs, and compare what was written with the original.

    python scripts/export.py --name NAME --format onnx            NAME_latest.onnx, for ONNX Runtime and its kin
    python scripts/export.py --name NAME --format torch_export    NAME_latest.pt2, for torch.export.load

The exported network takes `image` (B, input_nc, H, W) float32 in [-1, 1] and gives `translation` (B, output_nc, H, W) in
[-1, 1], for any B, H and W, where H and W are multiples of 4 from 16 up (of 256 from 512 up for unet_256, of 128 from 256 up for
unet_128). Dropout is off and a batch norm uses its running statistics, as with test.py --eval.
"""

from __future__ import annotations

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # as a file, a script sees only its own folder

from models.inference import load_generator
from util.arguments import ArgumentParser, real_number
from util.errors import UserError, entry_point

OPSET = 18
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
Run = Callable[[Tensor], np.ndarray]


class Generator(nn.Module):
    """The network with the one argument that the exported model has, so that its input carries a name."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    opt = parse(argv)
    if opt.format == "onnx":
        require_onnx()
    translator = load_generator(opt.name, opt.checkpoints_dir, opt.epoch, device="cpu")
    net = Generator(translator.net)
    multiple, channels = translator.multiple, translator.input_nc
    smallest = max(16, 2 * multiple) if multiple > 4 else 16
    path = (
        Path(opt.output)
        if opt.output
        else Path(f"{Path(opt.name).stem}_{opt.epoch}").with_suffix(SUFFIXES[opt.format])
    )
    program = trace(net, channels, smallest, multiple)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        run = {"onnx": write_onnx, "torch_export": write_torch_export}[opt.format](program, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): give another --output") from None
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    steps = [
        (1, 0, 0),
        (2, 1, 3),
        (3, 5, 2),
    ]  # batch, and by how many multiples the sides exceed the smallest
    shapes = [(b, channels, smallest + multiple * h, smallest + multiple * w) for b, h, w in steps]
    worst = max(compare(net, run, shape) for shape in shapes)
    if worst > opt.tolerance:
        print(
            f"error: the exported network differs by {worst:.2e}, more than --tolerance {opt.tolerance:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> Namespace:
    """The options of this script. A wrong call exits with status 2."""
    parser = ArgumentParser(prog="scripts/export.py", description=__doc__.splitlines()[0])
    parser.add("--name", None, "name of a run, or a ..._net_G.pth file")
    parser.add("--checkpoints_dir", "./checkpoints", "where runs are kept")
    parser.add("--epoch", "latest", "which checkpoint: latest, a number, iter_NUMBER")
    parser.add("--format", "onnx", "what to write", choices=tuple(SUFFIXES))
    parser.add("--output", None, "file to write", shown="NAME_EPOCH.onnx or .pt2")
    parser.add(
        "--tolerance", 1e-3, "largest difference from the original, in values of [-1, 1]", type=real_number(0)
    )
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    if opt.name is None:
        parser.error("--name is missing: name a run, or a ..._net_G.pth file")
    return opt


def require_onnx() -> None:
    """UserError where a package is missing that --format onnx needs."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx needs the package {error.name}: pip install onnx onnxruntime onnxscript (--format torch_export "
            "needs none of them)"
        ) from None


def trace(net: nn.Module, channels: int, smallest: int, multiple: int) -> torch.export.ExportedProgram:
    """The network as a graph with free batch, height and width."""
    example = torch.zeros(2, channels, smallest + multiple, smallest + 2 * multiple)
    height, width = (
        multiple * torch.export.Dim(side, min=smallest // multiple) for side in ("rows", "columns")
    )
    shapes = {"image": {0: torch.export.Dim("batch"), 2: height, 3: width}}
    return torch.export.export(net, (example,), dynamic_shapes=shapes)


def write_torch_export(program: torch.export.ExportedProgram, path: Path) -> Run:
    """Write the .pt2 file; returns the network that is read back from it."""
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda images: loaded(images).numpy()


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> Run:
    """Write the ONNX file, weights inside; returns it as ONNX Runtime runs it."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own parts
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["translation"],
            verbose=False,
        )
    exported.save(os.fspath(path), external_data=False)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["translation"], {"image": images.numpy()})[0]


@torch.inference_mode()
def compare(net: nn.Module, run: Run, shape: tuple[int, ...]) -> float:
    """Print and return the greatest difference between the original and the exported network, on noise of this shape."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exported, original = run(images), net(images).numpy()
    if exported.shape != original.shape:
        raise UserError(
            f"the exported network gives {exported.shape} for {shape}, not {original.shape}: report this"
        )
    difference = float(np.abs(exported - original).max())
    print(f"  {shape[0]} x {shape[1]} x {shape[2]} x {shape[3]}: differs by at most {difference:.2e}")
    return difference


if __name__ == "__main__":
    sys.exit(main())
