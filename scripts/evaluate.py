"""Judge translations by FID, KID, SWD, a classifier's distances, stripes or Cityscapes scores.

    python scripts/evaluate.py --name NAME --inception_weights FILE                results/NAME/test_latest, against testB
    python scripts/evaluate.py --name NAME --inception_weights FILE --epochs all   each checkpoint: last and best
    python scripts/evaluate.py --fake DIR --real DIR                               any two folders
    python scripts/evaluate.py --metrics segmentation --pred DIR --label DIR       Cityscapes label maps

The protocol stands in docs/evaluation.md. Every evaluation leaves a receipt: a JSON file with the numbers and all
that is needed to get them again.
"""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # as a file, a script sees only its own folder

from data.folders import domain_folders
from options.saved import option_values, run_folder
from options.test_options import TestOptions
from util.arguments import integer
from util.cpu_threads import shared_cpu
from util.device import get_device
from util.errors import UserError, entry_point
from util.metrics.evaluation import Evaluation, Evaluator
from util.metrics.features import INCEPTION_SHA256, load_classifier, load_inception, sha256
from util.metrics.image_set import ImageSet
from util.metrics.receipt import make_receipt, write_receipt
from util.metrics.segmentation import CLASSES, score_label_folders
from util.metrics.sliced_wasserstein import fitting_size
from util.metrics.stripes import stripe_report
from util.metrics.sweep import draw_sweep, last_and_best

METRICS = ("fid", "kid", "swd", "fd", "kd", "class", "stripes", "segmentation")


class EvaluateOptions(TestOptions):
    """Those of test.py, which say which run is judged and translate with it, and how it is judged."""

    prog = "scripts/evaluate.py"
    description = __doc__.splitlines()[0]

    def declare(self) -> None:
        super().declare()
        of_test = set(self.parser.defaults)
        add, group = self.parser.add, self.parser.group
        group("what is judged, if not results/NAME/PHASE_EPOCH against the data set")
        add("--epochs", None, "all, or a list as 100,200,latest: translate with each of these and judge it")
        add("--fake", None, "a folder of translations", type=Path)
        add("--real", None, "a folder of real images to compare with", type=Path)
        add("--pred", None, "a folder of predicted Cityscapes label maps", type=Path)
        add("--label", None, "a folder of true label maps", type=Path)
        group("how it is judged")
        add("--metrics", None, f"a list of {', '.join(METRICS)}", shown="swd, and all whose files are given")
        add("--inception_weights", None, "pytorch-fid's weights file, for fid and kid", type=Path)
        add("--classifier", "squeezenet1_1", "a torchvision classifier, for fd, kd and class")
        add("--classifier_weights", None, "its weights file", type=Path)
        add("--class_index", None, "a class of it, from 0 (ImageNet's zebra: 340)", type=integer(0))
        add("--kid_subsets", 100, "random subsets of KID and KD", type=integer(1))
        add("--kid_subset_size", None, "images in each", type=integer(2), shown="1000, or the smaller set")
        add(
            "--swd_size",
            None,
            "side in pixels for SWD, 16 * 2^k",
            type=integer(16),
            shown="256, or what fits",
        )
        add("--masks", None, "masks for stripes", type=Path, shown="DATAROOT/masks")
        add("--feature_batch_size", 32, "images at a time; changes no number", type=integer(1))
        add("--receipt", None, "file to write", type=Path, shown="beside the results, or evaluation.json")
        self.own = set(self.parser.defaults) - of_test

    def check(self, opt: Namespace) -> None:
        super().check(opt)
        if opt.input:
            self.parser.error("--input belongs to test.py: a folder of translations is given with --fake")
        if bool(opt.pred) != bool(opt.label):
            self.parser.error("--pred and --label go together: predicted and true label maps")
        if opt.fake and not opt.real:
            self.parser.error("--fake needs the real images to compare with: --real DIR")
        if opt.fake and opt.epochs:
            self.parser.error("--epochs translates with the checkpoints of a run, --fake is made already")
        opt.masks = opt.masks or Path(opt.dataroot, "masks")
        opt.metrics = self._metrics_given(opt) if opt.metrics else self._metrics_possible(opt)

    def _metrics_given(self, opt: Namespace) -> list[str]:
        error = self.parser.error
        metrics = [metric.strip().lower() for metric in opt.metrics.split(",") if metric.strip()]
        for metric in metrics:
            if metric not in METRICS:
                error(f"--metrics {metric} is unknown; there are {', '.join(METRICS)}")
        if ("segmentation" in metrics) != bool(opt.pred) or (opt.pred and len(metrics) > 1):
            error("--metrics segmentation stands alone, and it alone takes --pred DIR --label DIR")
        if "class" in metrics and opt.class_index is None:
            error("--metrics class needs --class_index N, such as 340, ImageNet's zebra")
        if "stripes" in metrics and not self._stripes_possible(opt):
            error(
                f"--metrics stripes needs a run AtoB on a set with masks, without --real; masks: {opt.masks}"
            )
        return metrics

    def _metrics_possible(self, opt: Namespace) -> list[str]:
        if opt.pred:
            return ["segmentation"]
        metrics = ["swd"]
        metrics += ["fid", "kid"] if opt.inception_weights else []
        metrics += ["fd", "kd"] if opt.classifier_weights else []
        metrics += ["class"] if opt.classifier_weights and opt.class_index is not None else []
        metrics += ["stripes"] if self._stripes_possible(opt) else []
        return metrics

    @staticmethod
    def _stripes_possible(opt: Namespace) -> bool:
        return opt.masks.is_dir() and not opt.real and opt.direction == "AtoB"


class Judge:
    """What one call of this script compares with: real images, feature networks, and the metrics asked for."""

    def __init__(self, opt: Namespace) -> None:
        device = get_device(opt.gpu_ids)
        self.opt, self.networks = opt, {}
        if {"fid", "kid"} & set(opt.metrics):
            network = self.networks["inception"] = load_inception(opt.inception_weights, device)
            if not network.record["sha256"].startswith(INCEPTION_SHA256):
                published = f"the published file, whose sha256 begins with {INCEPTION_SHA256}"
                _warn(f"{opt.inception_weights} is not {published}: its FID agrees with no other")
        if {"fd", "kd", "class"} & set(opt.metrics):
            self.networks["classifier"] = load_classifier(opt.classifier, opt.classifier_weights, device)
        self.sources, real = (None, opt.real) if opt.real else domain_folders(opt.dataroot, opt.phase)
        if opt.direction == "BtoA" and not opt.real:
            self.sources, real = real, self.sources
        self.real = ImageSet(real)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        opt = self.opt

        def networks(**metrics: str) -> list[Any]:
            return [self.networks[kind] for metric, kind in metrics.items() if metric in opt.metrics]

        return Evaluator(
            self.real,
            frechet=networks(fid="inception", fd="classifier"),
            kernel=networks(kid="inception", kd="classifier"),
            classes=[(self.networks["classifier"], opt.class_index)] if "class" in opt.metrics else [],
            swd_size=opt.swd_size if "swd" in opt.metrics else None,
            kid_subsets=opt.kid_subsets,
            kid_subset_size=opt.kid_subset_size,
            batch_size=opt.feature_batch_size,
            seed=opt.seed,
        )

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """The numbers of a folder of translations, printed, and what they come from, for the receipt."""
        opt, fake = self.opt, ImageSet(folder)
        if opt.swd_size is None:  # one size for a whole sweep: that of its first set
            opt.swd_size = fitting_size(min(min(size) for side in (fake, self.real) for size in side.sizes))
        if set(fake.sizes) != set(self.real.sizes):
            _warn(
                f"{folder} and {self.real.folder} differ in their images' sizes, which every distance feels"
            )
        record = dict(fake.record)
        if self.sources is not None:
            record["of"] = len(ImageSet(self.sources))
            if len(fake) < record["of"]:
                _warn(
                    f"{folder}: {len(fake)} translations of {record['of']} images; fewer give larger distances"
                )
        result = self.evaluator.evaluate(fake)
        if "stripes" in opt.metrics:
            report = stripe_report(self.sources, folder, self.real.folder, opt.masks)
            result.add("stripes-gained", report["gained"], **report)
            result.add("stripes-background", report["background"])
        print(f"{folder}: {len(fake)} translations against {len(self.real)} images of {self.real.folder}")
        _print_numbers(result)
        return {"numbers": result.numbers, "numbers_from": result.details, "fake": record}

    def record(self) -> dict[str, Any]:
        networks = {network.name: network.record for network in self.networks.values()}
        return {"real": self.real.record, "networks": networks, "seed": self.opt.seed}


def evaluate_folder(opt: Namespace, judge: Judge) -> dict[str, Any]:
    """One folder of translations: given by --fake, or what test.py made of one checkpoint."""
    if opt.fake:
        return judge.evaluate(opt.fake)
    folder, checkpoint = _fake_folder(opt, opt.epoch), run_folder(vars(opt)) / f"{opt.epoch}_net_G.pth"
    if not folder.is_dir():
        command = f"python test.py --name {opt.name} --epoch {opt.epoch}"
        raise UserError(f"there are no translations in {folder}; make them: {command}")
    results = judge.evaluate(folder)
    if checkpoint.is_file():
        results["checkpoint"] = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
        if min(path.stat().st_mtime for path in folder.iterdir()) < checkpoint.stat().st_mtime:
            _warn(f"{folder} is older than {checkpoint}: if training went on since, run test.py again")
    return results


def sweep(opt: Namespace, judge: Judge) -> dict[str, Any]:
    """Translate with every checkpoint asked for, judge each, and tell the last and the best apart."""
    import test as translation  # this project's test.py: its folder stands before Python's own on the path

    rows = []
    for epoch, checkpoint in _checkpoints(opt).items():
        print(f"checkpoint {epoch}")
        if translation.main(_test_arguments(opt, epoch)):
            raise UserError(f"test.py did not translate every image with {checkpoint}: see its message above")
        identity = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
        rows.append({"epoch": epoch, "checkpoint": identity, **judge.evaluate(_fake_folder(opt, epoch))})
    numbers = last_and_best(rows)
    last = numbers["last"]
    print(f"\n{'':26}last ({last['epoch']})    best, chosen by the test images themselves")
    for name, best in numbers["best"].items():
        print(f"  {name:22}{last[name]:12.4f}    {best['number']:.4f} ({best['epoch']})")
    return {"numbers": numbers, "checkpoints": rows}


def evaluate_labels(opt: Namespace) -> dict[str, Any]:
    """Cityscapes scores of label maps, in per cent."""
    scores, pairs = score_label_folders(opt.label, opt.pred)
    result = Evaluation()
    result.add("mean IoU", 100 * scores.mean_iou)
    result.add("pixel accuracy", 100 * scores.pixel_accuracy)
    result.add("class accuracy", 100 * scores.class_accuracy)
    print(f"{opt.pred}: {pairs} label maps against {opt.label}, in %")
    _print_numbers(result)
    iou = {name: 100 * share for (name, _, _), share in zip(CLASSES, scores.class_iou, strict=True)}
    folders = {"pred": str(opt.pred), "label": str(opt.label), "pairs": pairs}
    return {"numbers": result.numbers, "class_iou": iou, **folders}


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    opt = EvaluateOptions().parse(argv)
    with shared_cpu(get_device(opt.gpu_ids)):
        evaluate(opt)


def evaluate(opt: Namespace) -> None:
    """Judge what the options name, and write the receipt."""
    run = Path(opt.results_dir, opt.name)
    if opt.pred:
        receipt, results = Path("evaluation.json"), evaluate_labels(opt)
    else:
        judge = Judge(opt)
        if opt.epochs:
            receipt, results = run / f"evaluation_{opt.phase}.json", sweep(opt, judge)
        else:
            folder = Path() if opt.fake else run / f"{opt.phase}_{opt.epoch}"
            receipt, results = folder / "evaluation.json", evaluate_folder(opt, judge)
        results |= judge.record()
    receipt = opt.receipt or receipt
    write_receipt(receipt, make_receipt(option_values(opt), results, str(get_device(opt.gpu_ids))))
    print(f"receipt: {receipt}")
    if opt.epochs:
        draw_sweep(results["checkpoints"], receipt.with_suffix(".png"))
        print(f"plot: {receipt.with_suffix('.png')}")


def _fake_folder(opt: Namespace, epoch: str) -> Path:
    return Path(opt.results_dir, opt.name, f"{opt.phase}_{epoch}", "images", "fake_B")


def _checkpoints(opt: Namespace) -> dict[str, Path]:
    """The generators that --epochs names, oldest first. Of `all`, latest only if it is not the last numbered one."""
    folder = run_folder(vars(opt))
    if opt.epochs != "all":
        names = [name.strip() for name in opt.epochs.split(",")]
    else:
        numbers = [path.name.removesuffix("_net_G.pth") for path in folder.glob("*_net_G.pth")]
        names = sorted((name for name in numbers if name.isdigit()), key=int) + ["latest"]
        *_, last, latest = [None, *(folder / f"{name}_net_G.pth" for name in names)]
        if not latest.is_file() or (last and sha256(last) == sha256(latest)):
            names.remove("latest")
    checkpoints = {name: folder / f"{name}_net_G.pth" for name in names}
    missing = [path for path in checkpoints.values() if not path.is_file()]
    if missing or not checkpoints:
        raise UserError(
            f"--epochs {opt.epochs}: there is no {missing[0] if missing else folder / '*_net_G.pth'}"
        )
    return checkpoints


def _test_arguments(opt: Namespace, epoch: str) -> list[str]:
    """The command line of test.py that translates with another checkpoint of the same run."""
    own = EvaluateOptions().own
    values = {name: getattr(opt, name) for name in opt.given if name not in own}
    values |= {"name": opt.name, "suffix": "", "epoch": epoch, "gpu_ids": opt.gpu_ids or [-1]}
    words = {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in values.items()
    }
    return [f"--{name}={word}" for name, word in words.items()]


def _print_numbers(result: Evaluation) -> None:
    for name, number in result.numbers.items():
        details, note = result.details[name], ""
        if "std" in details:
            subsets = f"{details['subsets']} subsets of {details['subset_size']}"
            note = f"standard deviation {details['std']:.4f} over {subsets}"
        elif "levels" in details:
            levels = ", ".join(f"{size}: {distance:.2f}" for size, distance in details["levels"].items())
            note = f"{details['images_per_side']} images a side; levels {levels}"
        elif "unit" in details:
            note = f"{details['unit']}; of the real images {details['real']:.2f} {details['unit']}"
        print(f"  {name:22}{number:12.4f}  {note}".rstrip())


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
