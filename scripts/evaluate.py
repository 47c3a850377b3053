"""Judge translations by FID, KID, SWD, a classifier's distances, stripes, structure or Cityscapes scores.

    python scripts/evaluate.py --name NAME                          results of test.py
    python scripts/evaluate.py --name NAME --epochs all             each saved checkpoint: last and best
    python scripts/evaluate.py --follow NAME                        each that a training saves
    python scripts/evaluate.py --name NAME --metrics lpips          how different MUNIT's styles are
    python scripts/evaluate.py --fake DIR --real DIR                any two folders
    python scripts/evaluate.py --metrics segmentation --pred DIR --label DIR       Cityscapes label maps

docs/evaluation.md states the protocol. Every evaluation leaves a receipt: a JSON file with the numbers and
all that is needed to reproduce them.
"""

import math
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import test as translation  # the project's test.py, which comes before Python's own on the path
from models import MODELS
from models.weights import weights_file
from options.test_options import TestOptions, results_folder
from scripts import judging
from scripts.judging import ImageSet, Judge, print_numbers, write_receipt
from util.arguments import as_text
from util.device import get_device
from util.errors import UserError, entry_point
from util.metrics.networks import DINO, INCEPTION, SQUEEZENET, classifier_weights, load_lpips
from util.metrics.pairs import check_pairs, diversity
from util.metrics.segmentation import score_label_folders
from util.pages import put_numbers
from util.run.lock import is_held
from util.run.run import run_folder
from util.watch.training_page import draw_losses
from util.weight_files import sha256

POLL = 10.0  # seconds between looks at a run that is followed
Row = dict[str, Any]  # {"epoch": "100", "numbers": {"FID": 45.5, ...}, ...}
# What a metric needs besides translations and weights.
NEEDS = {
    "class": "--class_index N, such as 340, ImageNet's zebra",
    "stripes": "a run AtoB on a set with masks, and no --real",
    "coats": "a run of many domains, on a set with masks/DOMAIN",
    "structure": "what was translated: give --inputs DIR",
    "segmentation": "--pred DIR --label DIR, which no other metric takes",
    "lpips": "the styles of a run, from test.py --num_styles N, and no other metric beside it",
}


def option_words(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command line: --NAME=VALUE; None is left out."""
    return [f"--{name}={as_text(value)}" for name, value in options.items() if value is not None]


class EvaluateOptions(TestOptions):
    prog = "scripts/evaluate.py"
    description = __doc__.splitlines()[0]

    def declare(self) -> None:
        add, group = self.parser.add, self.parser.group
        group("what is judged, if not results/NAME/PHASE_EPOCH against the data set")
        add("--epochs", None, "all, or a list as 100,200,latest: translate with each checkpoint and judge it")
        follow = "a run in training: judge each checkpoint that it saves, until it ends"
        add("--follow", None, follow, shown="none")
        add("--fake", None, "a folder of translations", type=Path)
        add("--real", None, "a folder of real images to compare with", type=Path)
        add("--pred", None, "a folder of predicted Cityscapes label maps", type=Path)
        add("--label", None, "a folder of true label maps", type=Path)
        group("how it is judged")
        metrics = f"a list of {', '.join(judging.METRICS)}"
        add("--metrics", None, metrics, shown="swd, and all whose files are there")
        judging.add_judging(add)
        sides = (16, 32, 64, 128, 256, 512, 1024, 2048)
        add("--swd_size", None, "side in pixels for SWD", type=int, choices=sides, shown="256, or what fits")
        inputs = "images that were translated, for structure"
        add("--inputs", None, inputs, type=Path, shown="real_A beside the translations")
        receipt = "beside the results, or evaluation.json"
        add("--receipt", None, "file to write the receipt to", type=Path, shown=receipt)
        self.own = set(self.parser.defaults)
        super().declare()

    def print_help(self, model: str) -> None:
        others = "All options of test.py are taken too, such as --name, --dataroot: python test.py --help"
        self.parser.list_only(self.own, others)
        self.parser.print_help()

    def resolve(self, given: dict[str, object]) -> Namespace:
        if given.get("follow"):
            given = {**given, "name": given["follow"], "epochs": "all"}
        return super().resolve(given)

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        if opt.fake and not opt.real:
            raise UserError("--fake needs the real images to compare with: --real DIR")
        if opt.epochs and (opt.fake or opt.pretrained):
            raise UserError("--epochs takes checkpoints of a run: --name NAME, not --fake or --pretrained")
        pairs = bool(opt.domains) and not opt.fake and not opt.pred
        if pairs and opt.real:
            raise UserError("--real is one domain, but this run has many: give --fake too, or leave it out")
        masks, from_a_to_b = Path(opt.dataroot, "masks"), opt.direction == "AtoB"
        if pairs:
            from_a_to_b = (opt.domains, opt.domain) == (["A", "B"], ["B"])
        metrics = opt.metrics and [metric.strip().lower() for metric in opt.metrics.split(",")]
        able = {
            **dict.fromkeys(judging.METRICS, True),
            "class": opt.class_index is not None,
            "stripes": masks.is_dir() and not opt.real and from_a_to_b,
            "coats": pairs and all((masks / name).is_dir() for name in opt.domains),
            "structure": bool(opt.inputs) or not opt.fake,
            "segmentation": bool(opt.pred and opt.label) and metrics in (None, ["segmentation"]),
            "lpips": metrics == ["lpips"] and not (opt.fake or opt.epochs or opt.pred),
        }
        labels = ["segmentation"] if opt.pred or opt.label else []
        opt.metrics = metrics or labels or self._with_weights(opt, able)
        for metric in opt.metrics:
            if metric not in able:
                raise UserError(f"--metrics {metric} is unknown; there are {', '.join(judging.METRICS)}")
            if not able[metric] or (labels and metric != "segmentation"):
                raise UserError(f"--metrics {metric} needs {NEEDS.get(metric, 'images, not label maps')}")

    @staticmethod
    def _with_weights(opt: Namespace, able: Mapping[str, bool]) -> list[str]:
        """The metrics that can be computed with the weights that are given or in torch's cache."""
        inception = opt.download_weights or opt.inception_weights or INCEPTION.cached.is_file()
        asked = opt.class_index is not None  # then missing weights are an error
        classifier = opt.classifier_weights or asked or classifier_weights(opt.classifier).cached.is_file()
        there = {"swd": True, **dict.fromkeys(("fid", "fid_clean", "kid"), inception)}
        there |= dict.fromkeys(("fd", "kd", "class"), classifier)
        there |= {"stripes": True, "coats": True, "structure": opt.dino_weights or DINO.cached.is_file()}
        return [metric for metric in there if there[metric] and able[metric]]

    def words_for_test(self, opt: Namespace, epoch: str) -> list[str]:
        """The command line of test.py that translates with another checkpoint of the same run."""
        values = {name: getattr(opt, name) for name in opt.given if name not in self.own}
        values |= {"name": opt.name, "suffix": "", "epoch": epoch, "gpu_ids": opt.gpu_ids or [-1]}
        return option_words(values)


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    options = EvaluateOptions()
    opt = options.parse(argv)
    if opt.receipt:
        opt.receipt.parent.mkdir(parents=True, exist_ok=True)
    if opt.epochs:
        evaluate_sweep(opt, options)
        return
    folder = Path() if opt.fake or opt.pred else results_folder(opt, opt.epoch)
    receipt = opt.receipt or folder / "evaluation.json"
    if opt.pred:
        results = evaluate_labels(opt)
    elif opt.metrics == ["lpips"]:
        results = evaluate_styles(opt)
    else:
        results = evaluate_folder(opt)
    write_receipt(receipt, opt, results)
    if not (opt.fake or opt.pred):
        put_numbers(folder / "index.html", receipt, results)
    print_numbers(results)
    print(f"receipt: {receipt}")


def evaluate_folder(opt: Namespace) -> dict[str, Any]:
    """The folder named, or what test.py made of one checkpoint. UserError where it has not."""
    folder = opt.fake or fake_folder(opt, opt.epoch)
    if not opt.fake and not all(
        place.is_dir() for place in (folder, *(folder / f"to_{name}" for name in opt.domain))
    ):
        which = ["pretrained"] if opt.pretrained else ["name", "epoch", "checkpoints_dir"]
        words = shlex.join(option_words({name: getattr(opt, name) for name in [*which, "results_dir"]}))
        raise UserError(f"there are no translations in {folder}; make them: python test.py {words}")
    judge = Judge(opt)
    results = {**judge.evaluate(folder), **judge.record()}
    if not opt.fake and (checkpoint := weights_of(opt, opt.epoch)).is_file():
        results["checkpoint"] = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
        if min(path.stat().st_mtime for path in folder.rglob("*.png")) < checkpoint.stat().st_mtime:
            judging.warn(f"{folder} is older than {checkpoint}: run test.py again if training went on")
    return results


def fake_folder(opt: Namespace, epoch: str) -> Path:
    """Where test.py writes the translations of a checkpoint; of many domains, with to_DOMAIN in it."""
    images = results_folder(opt, epoch) / "images"
    return images if opt.domains else images / "fake_B"


def evaluate_styles(opt: Namespace) -> dict[str, Any]:
    """The diversity of translations in several styles, as test.py --num_styles N makes them."""
    folder = results_folder(opt, opt.epoch) / "images"
    styles = [ImageSet(style) for style in sorted(folder.glob("fake_B_style*"))]
    if len(styles) < 2:
        command = f"python test.py --name {opt.name} --epoch {opt.epoch} --num_styles 10"
        raise UserError(f"{folder} has no translations in several styles; make them: {command}")
    given = opt.classifier_weights if opt.classifier == SQUEEZENET else None
    path = classifier_weights(SQUEEZENET).find(given, opt.download_weights)
    network, record = load_lpips(path, get_device(opt.gpu_ids))
    for style in styles:
        check_pairs(styles[0].paths, style.paths)
    found = diversity(zip(*(style.images("lpips") for style in styles), strict=True), network)
    compared = f"{folder}: {len(found)} images in {len(styles)} styles"
    results = {"notes": {"LPIPS": f"deviation {np.std(found):.4f} over images"}, "compared": compared}
    return {"numbers": {"LPIPS": float(np.mean(found))}, **results, "networks": {SQUEEZENET: record}}


def evaluate_labels(opt: Namespace) -> dict[str, Any]:
    """Cityscapes scores of label maps, in per cent."""
    scores, iou, pairs = score_label_folders(opt.label, opt.pred)
    compared = f"{opt.pred}: {pairs} label maps against {opt.label}, in %"
    of_classes = {name: None if math.isnan(share) else 100 * share for name, share in iou.items()}
    numbers = {name: 100 * share for name, share in scores.items()}
    return {"numbers": numbers, "notes": {}, "class_iou": of_classes, "compared": compared}


def weights_of(opt: Namespace, epoch: str) -> Path:
    """The file of the network that translates, at an epoch of the run."""
    return weights_file(run_folder(vars(opt)), epoch, MODELS[opt.model].translating(opt)[0])


def checkpoints(opt: Namespace, in_training: bool = False) -> dict[str, Path]:
    """What --epochs names, oldest first, latest if it differs; `in_training` only numbered ones."""
    if opt.epochs != "all":
        names = [name.strip() for name in opt.epochs.split(",")]
    else:
        pattern = weights_of(opt, "*")
        names = [path.name.removesuffix(pattern.name[1:]) for path in pattern.parent.glob(pattern.name)]
        names = sorted((name for name in names if name.isdigit()), key=int)
        if in_training:
            return {name: weights_of(opt, name) for name in names}
        latest = weights_of(opt, "latest")
        if latest.is_file() and not (names and sha256(weights_of(opt, names[-1])) == sha256(latest)):
            names.append("latest")
    found = {name: weights_of(opt, name) for name in names or ["latest"]}
    for path in found.values():
        if not path.is_file():
            raise UserError(f"--epochs {opt.epochs}: there is no {path}")
    return found


def evaluate_sweep(opt: Namespace, options: EvaluateOptions) -> None:
    """Translate with each checkpoint, of --follow as they come, judge it, and keep receipt and curves."""
    receipt = opt.receipt or Path(opt.results_dir, opt.name, f"evaluation_{opt.phase}.json")
    plot = receipt.with_suffix(".svg")
    judge, rows = Judge(opt), []
    while True:
        in_training = bool(opt.follow) and is_held(run_folder(vars(opt)))
        for epoch, checkpoint in checkpoints(opt, in_training).items():
            if any(row["epoch"] == epoch for row in rows):
                continue
            print(f"checkpoint {epoch}", flush=True)
            if translation.main(options.words_for_test(opt, epoch)):
                raise UserError(f"test.py did not translate every image with {checkpoint}: see above")
            identity = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
            rows.append({"epoch": epoch, "checkpoint": identity, **judge.evaluate(fake_folder(opt, epoch))})
            numbers = last_and_best(rows)
            write_receipt(receipt, opt, {"numbers": numbers, "checkpoints": rows, **judge.record()})
            put_numbers(results_folder(opt, epoch) / "index.html", receipt, rows[-1])
            course = {
                name: [x for n, row in enumerate(rows, 1) for x in (n, row["numbers"][name])]
                for name in numbers["best"]
            }
            plot.write_text(draw_losses(course, "checkpoints"), encoding="utf-8")
            print_numbers(rows[-1])
        if not in_training:
            break
        time.sleep(POLL)
    last, best = numbers["last"], numbers["best"]
    rows = [[name, f"{last[name]:.4f}", f"{of['number']:.4f} ({of['epoch']})"] for name, of in best.items()]
    head = ["", f"last ({last['epoch']})", "best, chosen by the test images themselves"]
    print(f"{judging.markdown_table(head, rows)}\nreceipt: {receipt}\ncurves: {plot}")


def last_and_best(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Of rows in order of training the last and the best number of each metric, with their epochs."""
    best = {}
    for name in rows[-1]["numbers"]:
        choose = max if judging.higher_is_better(name) else min
        row = choose(rows, key=lambda row, name=name: row["numbers"][name])
        best[name] = {"epoch": row["epoch"], "number": row["numbers"][name]}
    return {"last": {"epoch": rows[-1]["epoch"], **rows[-1]["numbers"]}, "best": best}


if __name__ == "__main__":
    sys.exit(main())
