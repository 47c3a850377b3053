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

from __future__ import annotations

import argparse
import math
import sys
import time
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from models import MODELS
from models.weights import weights_file
from options.test_options import TestOptions, results_folder
from scripts.judging import METRICS, DomainsJudge, Judge, add_judging, higher_is_better, print_numbers, warn
from util.arguments import ArgumentParser, as_text, integer
from util.device import get_device
from util.errors import UserError, entry_point
from util.metrics.diversity import SQUEEZENET, diversity, load_lpips
from util.metrics.image_set import ImageSet
from util.metrics.networks import INCEPTION, classifier_weights
from util.metrics.published import sha256
from util.metrics.receipt import write_receipt
from util.metrics.segmentation import score_label_folders
from util.metrics.structure import DINO, check_pairs
from util.run.lock import is_held
from util.run.run import run_folder
from util.run.saved_options import option_values

POLL = 10.0  # seconds between looks at a run that is followed
Row = dict[str, Any]  # {"epoch": "100", "numbers": {"FID": 45.5, ...}, ...}
REST = "All options of test.py are taken too, such as --name, --dataroot, --epoch: python test.py --help"


def list_only(parser: ArgumentParser, names: Collection[str]) -> None:
    """Leave all other options out of --help; they are taken as well."""
    for action in parser._actions:
        if action.dest not in {*names, "help", "version"}:
            action.help = argparse.SUPPRESS
    parser.epilog = REST


def option_words(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command line: --NAME=VALUE; None is left out."""
    return [f"--{name}={as_text(value)}" for name, value in options.items() if value is not None]


class EvaluateOptions(TestOptions):
    """python scripts/evaluate.py [options]"""

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
        add("--metrics", None, f"a list of {', '.join(METRICS)}", shown="swd, and all whose files are there")
        add_judging(add)
        add("--kid_subsets", 100, "random subsets of KID and KD", type=integer(1, 10_000))
        images = integer(2, 1_000_000)
        add("--kid_subset_size", None, "images in each", type=images, shown="1000, or the smaller set")
        size = "side in pixels for SWD"
        sides = (16, 32, 64, 128, 256, 512, 1024, 2048)
        add("--swd_size", None, size, type=int, choices=sides, shown="256, or what fits")
        add("--masks", None, "masks for stripes", type=Path, shown="DATAROOT/masks")
        inputs = "images that were translated, for structure"
        add("--inputs", None, inputs, type=Path, shown="real_A beside the translations")
        receipt = "beside the results, or evaluation.json"
        add("--receipt", None, "file to write the receipt to", type=Path, shown=receipt)
        self.own = set(self.parser.defaults)
        super().declare()
        list_only(self.parser, self.own)

    def resolve(self, given: dict[str, object]) -> Namespace:
        if given.get("follow"):
            given = {**given, "name": given["follow"], "epochs": "all"}
        return super().resolve(given)

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        error = self.parser.error
        if opt.pretrained and opt.epochs:
            error("--pretrained is one checkpoint, --epochs names several of a run: give one")
        if bool(opt.pred) != bool(opt.label):
            error("--pred and --label go together: predicted and true label maps")
        if opt.fake and not opt.real:
            error("--fake needs the real images to compare with: --real DIR")
        if opt.fake and opt.epochs:
            error("--epochs makes translations with checkpoints, --fake names existing ones")
        opt.masks = opt.masks or Path(opt.dataroot, "masks")
        pairs = bool(opt.domains) and not opt.fake and not opt.pred
        if pairs and opt.real:
            error("--real is one domain, but this run has many: give --fake too, or leave it out")
        striped = opt.masks.is_dir() and not opt.real and opt.direction == "AtoB"
        striped = striped and (not pairs or (opt.domains, opt.domain) == (["A", "B"], ["B"]))
        masks = (Path(opt.dataroot, "masks", name) for name in opt.domains)
        coats = pairs and all(folder.is_dir() for folder in masks)
        has_inputs = bool(opt.inputs) or not opt.fake
        if opt.metrics is None:
            opt.metrics = self._possible_metrics(opt, striped, coats, has_inputs)
            return
        opt.metrics = [metric.strip().lower() for metric in opt.metrics.split(",") if metric.strip()]
        for metric in opt.metrics:
            if metric not in METRICS:
                error(f"--metrics {metric} is unknown; there are {', '.join(METRICS)}")
        if ("segmentation" in opt.metrics) != bool(opt.pred) or (opt.pred and len(opt.metrics) > 1):
            error("--metrics segmentation stands alone, and it alone takes --pred DIR --label DIR")
        if "lpips" in opt.metrics and (len(opt.metrics) > 1 or opt.fake or opt.epochs):
            error("--metrics lpips stands alone: it compares the styles of a run, test.py --num_styles N")
        if "class" in opt.metrics and opt.class_index is None:
            error("--metrics class needs --class_index N, such as 340, ImageNet's zebra")
        if "stripes" in opt.metrics and not striped:
            error(f"--metrics stripes needs a run AtoB on a set with masks, no --real; masks: {opt.masks}")
        if "coats" in opt.metrics and not coats:
            error(f"--metrics coats needs a run of many domains with masks/DOMAIN in {opt.dataroot}")
        if "structure" in opt.metrics and not has_inputs:
            error("--metrics structure compares translations with what was translated: give --inputs DIR")

    @staticmethod
    def _possible_metrics(opt: Namespace, striped: bool, coats: bool, has_inputs: bool) -> list[str]:
        """The metrics whose weights are given or in torch's cache."""
        if opt.pred:
            return ["segmentation"]
        metrics = ["swd"]
        if opt.download_weights or INCEPTION.is_there(opt.inception_weights):
            metrics += ["fid", "fid_clean", "kid"]
        if classifier_weights(opt.classifier).is_there(opt.classifier_weights):
            metrics += ["fd", "kd"] + (["class"] if opt.class_index is not None else [])
        metrics += ["stripes"] if striped else []
        metrics += ["coats"] if coats else []
        metrics += ["structure"] if has_inputs and DINO.is_there(opt.dino_weights) else []
        return metrics

    def words_for_test(self, opt: Namespace, epoch: str) -> list[str]:
        """The command line of test.py that translates with another checkpoint of the same run."""
        values = {name: getattr(opt, name) for name in opt.given if name not in self.own}
        values |= {"name": opt.name, "suffix": "", "epoch": epoch, "gpu_ids": opt.gpu_ids or [-1]}
        return option_words(values)


# ---- what is judged ----


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    options = EvaluateOptions()
    opt = options.parse(argv)
    if opt.epochs:
        evaluate_sweep(opt, options)
        return
    of_run = not opt.fake and not opt.pred
    receipt = opt.receipt or (results_folder(opt, opt.epoch) if of_run else Path()) / "evaluation.json"
    if of_run and opt.metrics != ["lpips"]:
        require_translations(opt)
    receipt.parent.mkdir(parents=True, exist_ok=True)
    if opt.pred:
        results = evaluate_labels(opt)
    elif opt.metrics == ["lpips"]:
        results = evaluate_styles(opt)
    else:
        judge = create_judge(opt)
        results = {**(judge.evaluate(opt.fake) if opt.fake else evaluate_run(opt, judge)), **judge.record()}
    write_receipt(receipt, option_values(opt), results, get_device(opt.gpu_ids))
    print_numbers(results)
    print(f"receipt: {receipt}")


def create_judge(opt: Namespace) -> Judge | DomainsJudge:
    """The judge of a run, or of --fake."""
    return DomainsJudge(opt) if opt.domains and not opt.fake else Judge(opt)


def fake_folder(opt: Namespace, epoch: str) -> Path:
    """Where test.py writes the translations of a checkpoint; of many domains, with to_DOMAIN in it."""
    images = results_folder(opt, epoch) / "images"
    return images if opt.domains else images / "fake_B"


def require_translations(opt: Namespace) -> None:
    """UserError where test.py has not translated with the checkpoint that the options name."""
    folder = fake_folder(opt, opt.epoch)
    if not all(place.is_dir() for place in (folder, *(folder / f"to_{name}" for name in opt.domain))):
        run = f"--pretrained {opt.pretrained}" if opt.pretrained else f"--name {opt.name} --epoch {opt.epoch}"
        raise UserError(f"there are no translations in {folder}; make them: python test.py {run}")


def evaluate_run(opt: Namespace, judge: Judge | DomainsJudge) -> dict[str, Any]:
    """What test.py made of one checkpoint."""
    folder, checkpoint = fake_folder(opt, opt.epoch), weights_of(opt, opt.epoch)
    results = judge.evaluate(folder)
    if checkpoint.is_file():
        results["checkpoint"] = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
        if min(path.stat().st_mtime for path in folder.rglob("*.png")) < checkpoint.stat().st_mtime:
            warn(f"{folder} is older than {checkpoint}: if training continued since, run test.py again")
    return results


def evaluate_styles(opt: Namespace) -> dict[str, Any]:
    """The diversity of translations in several styles, as test.py --num_styles N makes them."""
    folder = fake_folder(opt, opt.epoch).parent
    styles = [ImageSet(style) for style in sorted(folder.glob("fake_B_style*"))]
    if len(styles) < 2:
        command = f"python test.py --name {opt.name} --epoch {opt.epoch} --num_styles 10"
        raise UserError(f"{folder} has no translations in several styles; make them: {command}")
    given = opt.classifier_weights if opt.classifier == SQUEEZENET else None
    path = classifier_weights(SQUEEZENET).find(given, opt.download_weights)
    network, record = load_lpips(path, get_device(opt.gpu_ids))
    for style in styles:
        check_pairs(styles[0].paths, style.paths)
    inputs = zip(*(style.images("lpips") for style in styles), strict=True)
    found = diversity(inputs, network)
    return {
        "numbers": {"LPIPS": float(np.mean(found))},
        "notes": {"LPIPS": f"deviation {np.std(found):.4f} over images"},
        "compared": f"{folder}: {len(found)} images in {len(styles)} styles",
        "networks": {SQUEEZENET: record},
    }


def evaluate_labels(opt: Namespace) -> dict[str, Any]:
    """Cityscapes scores of label maps, in per cent."""
    scores, iou, pairs = score_label_folders(opt.label, opt.pred)
    return {
        "numbers": {name: 100 * share for name, share in scores.items()},
        "notes": {},
        "class_iou": {name: None if math.isnan(share) else 100 * share for name, share in iou.items()},
        "compared": f"{opt.pred}: {pairs} label maps against {opt.label}, in %",
    }


# ---- the checkpoints of a run ----


def weights_of(opt: Namespace, epoch: str) -> Path:
    """The file of the network that translates, at an epoch of the run."""
    return weights_file(run_folder(vars(opt)), epoch, MODELS[opt.model].translating(opt)[0])


def checkpoints(opt: Namespace, in_training: bool = False) -> dict[str, Path]:
    """The generators that --epochs names, oldest first; `in_training`, only numbered ones, perhaps none yet.

    `all` includes latest only if it differs from the last numbered one.
    """
    if opt.epochs != "all":
        names = [name.strip() for name in opt.epochs.split(",")]
    else:
        pattern = weights_of(opt, "*")
        end = pattern.name.removeprefix("*")
        names = [path.name.removesuffix(end) for path in pattern.parent.glob(pattern.name)]
        names = sorted((name for name in names if name.isdigit()), key=int)
        last, latest = (weights_of(opt, name) for name in (names[-1] if names else "", "latest"))
        if in_training:
            return {name: weights_of(opt, name) for name in names}
        if latest.is_file() and not (last.is_file() and sha256(last) == sha256(latest)):
            names.append("latest")
    found = {name: weights_of(opt, name) for name in names}
    missing = [path for path in found.values() if not path.is_file()]
    if missing or not found:
        raise UserError(f"--epochs {opt.epochs}: there is no {(missing or [weights_of(opt, '*')])[0]}")
    return found


def evaluate_sweep(opt: Namespace, options: EvaluateOptions) -> None:
    """Translate with each checkpoint asked for, judge it, and keep receipt, plot and table of last and best.

    With --follow, checkpoints that the training saves later too, until it ends.
    """
    import test as translation  # the project's test.py, which comes before Python's own on the path

    receipt = opt.receipt or Path(opt.results_dir, opt.name, f"evaluation_{opt.phase}.json")
    receipt.parent.mkdir(parents=True, exist_ok=True)
    judge, rows = create_judge(opt), []
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
            results = {"numbers": last_and_best(rows), "checkpoints": rows, **judge.record()}
            write_receipt(receipt, option_values(opt), results, get_device(opt.gpu_ids))
            draw_sweep(rows, receipt.with_suffix(".png"))
            print_numbers(rows[-1])
        if not in_training:
            break
        time.sleep(POLL)
    print_sweep(last_and_best(rows))
    print(f"receipt: {receipt}\nplot: {receipt.with_suffix('.png')}")


def last_and_best(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The last and the best number of each metric, of rows in order of training.

    Returns:
        {"last": {"epoch", metric: number}, "best": {metric: {"epoch", "number"}}}.
    """
    best = {}
    for name in rows[-1]["numbers"]:
        choose = max if higher_is_better(name) else min
        row = choose(rows, key=lambda row, name=name: row["numbers"][name])
        best[name] = {"epoch": row["epoch"], "number": row["numbers"][name]}
    return {"last": {"epoch": rows[-1]["epoch"], **rows[-1]["numbers"]}, "best": best}


def print_sweep(numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """A table of `last_and_best`."""
    last = numbers["last"]
    print(f"\n{'':26}last ({last['epoch']})    best, chosen by the test images themselves")
    for name, best in numbers["best"].items():
        print(f"  {name:22}{last[name]:12.4f}    {best['number']:.4f} ({best['epoch']})")


def draw_sweep(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with the course of each metric over the checkpoints."""
    from matplotlib.figure import Figure

    names, epochs = list(rows[-1]["numbers"]), [row["epoch"] for row in rows]
    step = max(1, len(rows) // 8)
    figure = Figure(figsize=(6, 2 * len(names)), layout="constrained")
    for panel, name in zip(figure.subplots(len(names), squeeze=False).flat, names, strict=True):
        panel.plot([row["numbers"][name] for row in rows], marker="o")
        panel.set_xticks(range(0, len(rows), step), epochs[::step])
        panel.set_ylabel(name)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
