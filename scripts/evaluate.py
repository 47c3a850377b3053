"""Judge translations by FID, KID, SWD, a classifier's distances, stripes, structure or Cityscapes scores.

    python scripts/evaluate.py --name NAME --inception_weights FILE                results of test.py
    python scripts/evaluate.py --name NAME --inception_weights FILE --epochs all   last and best checkpoint
    python scripts/evaluate.py --fake DIR --real DIR                               any two folders
    python scripts/evaluate.py --metrics segmentation --pred DIR --label DIR       Cityscapes label maps

docs/evaluation.md states the protocol. Every evaluation leaves a receipt: a JSON file with the numbers and
all that is needed to reproduce them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from options.saved import option_values, results_folder
from scripts.evaluation.judge import Judge, print_numbers, warn
from scripts.evaluation.options import EvaluateOptions
from scripts.evaluation.sweep import checkpoints, draw_sweep, last_and_best, weights_of
from util.device import get_device
from util.errors import UserError, entry_point
from util.metrics.evaluation import Evaluation
from util.metrics.features import sha256
from util.metrics.receipt import make_receipt, write_receipt
from util.metrics.segmentation import CLASSES, score_label_folders


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    options = EvaluateOptions()
    opt = options.parse(argv)
    evaluate(opt, options)


def evaluate(opt: Namespace, options: EvaluateOptions) -> None:
    """Judge what the options name, print the numbers and write the receipt."""
    run = Path(opt.results_dir, opt.name)
    if opt.pred:
        receipt, results = Path("evaluation.json"), evaluate_labels(opt)
    else:
        judge = Judge(opt)
        if opt.epochs:
            receipt, results = run / f"evaluation_{opt.phase}.json", evaluate_sweep(opt, options, judge)
        elif opt.fake:
            receipt, results = Path("evaluation.json"), judge.evaluate(opt.fake)
        else:
            receipt = results_folder(opt, opt.epoch) / "evaluation.json"
            results = evaluate_run(opt, judge)
        results |= judge.record()
    receipt = opt.receipt or receipt
    write_receipt(receipt, make_receipt(option_values(opt), results, get_device(opt.gpu_ids)))
    print(f"receipt: {receipt}")
    if opt.epochs:
        draw_sweep(results["checkpoints"], receipt.with_suffix(".png"))
        print(f"plot: {receipt.with_suffix('.png')}")


def evaluate_run(opt: Namespace, judge: Judge) -> dict[str, Any]:
    """What test.py made of one checkpoint."""
    folder, checkpoint = fake_folder(opt, opt.epoch), weights_of(opt, opt.epoch)
    if not folder.is_dir():
        run = f"--name {opt.name} --epoch {opt.epoch}"
        command = f"python test.py {f'--pretrained {opt.pretrained}' if opt.pretrained else run}"
        if styles := sorted(folder.parent.glob("fake_B_style*")):
            raise UserError(
                f"{folder.parent} has translations in {len(styles)} styles, but a run is judged in one: "
                f"translate with {command}, or judge each style with --fake {styles[0]} --real FOLDER"
            )
        raise UserError(f"there are no translations in {folder}; make them: {command}")
    results = judge.evaluate(folder)
    if checkpoint.is_file():
        results["checkpoint"] = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
        if min(path.stat().st_mtime for path in folder.iterdir()) < checkpoint.stat().st_mtime:
            warn(f"{folder} is older than {checkpoint}: if training continued since, run test.py again")
    return results


def evaluate_sweep(opt: Namespace, options: EvaluateOptions, judge: Judge) -> dict[str, Any]:
    """Translate with every checkpoint asked for, judge each, and report the last and the best."""
    import test as translation  # the project's test.py, which comes before Python's own on the path

    rows = []
    for epoch, checkpoint in checkpoints(opt).items():
        print(f"checkpoint {epoch}")
        if translation.main(options.words_for_test(opt, epoch)):
            raise UserError(f"test.py did not translate every image with {checkpoint}: see its message above")
        identity = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
        rows.append({"epoch": epoch, "checkpoint": identity, **judge.evaluate(fake_folder(opt, epoch))})
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
    print_numbers(result)
    iou = {name: 100 * share for (name, _, _), share in zip(CLASSES, scores.class_iou, strict=True)}
    folders = {"pred": str(opt.pred), "label": str(opt.label), "pairs": pairs}
    return {"numbers": result.numbers, "class_iou": iou, **folders}


def fake_folder(opt: Namespace, epoch: str) -> Path:
    """Where test.py writes the translations of a checkpoint."""
    return results_folder(opt, epoch) / "images" / "fake_B"


if __name__ == "__main__":
    sys.exit(main())
