"""Train several configurations with several seeds under one budget, judge all alike, and write one page.

    python scripts/compare.py --dataroot datasets/stripes --out results/study --n_epochs 10
    python scripts/compare.py --configs qs_global,cut --seeds 0,1,2 -- --ngf 16
    python scripts/compare.py --configs all --config scripts/presets/quickstart.txt --jobs 2 --gpu_ids -1

What follows -- goes to train.py, the same for every run whose system has that option. The same command again
continues what was interrupted; a run that fails is reported, and the others continue. OUT has index.html, the
page; study.json, its numbers; runs/NAME, each with compare.json, the record of what is done; results/; logs/.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from data.folders import domain_folders
from models import MODELS
from options.train_options import TrainOptions
from scripts.evaluate import option_words
from scripts.judging import add_judging, write_receipt
from scripts.study_page import study_results, write_page
from util.arguments import ArgumentParser, gpu_list, integer, read_words, some_of
from util.console import say
from util.device import get_device
from util.errors import UserError, entry_point
from util.files import write_atomically
from util.run.checkpoint import STATE_FILE
from util.run.stop_signal import StopSignal
from util.watch.loss_log import read_loss_records

HERE = Path(__file__).resolve().parent
LINES = (shlex.split(line, comments=True) for line in (HERE / "systems.txt").read_text("utf-8").splitlines())
CONFIGS = {line[0]: tuple(line[1:]) for line in LINES if line}  # systems by name, as words for train.py
NEED_VGG = [name for name, words in CONFIGS.items() if "--model=sesim" in words]
TESTS = {"AtoB": "test_latest", "BtoA": "test_latest_BtoA"}  # direction -> folder in results/NAME
# Options of train.py that the study itself sets, as its own options or for each run.
SET_HERE = set(
    "name suffix checkpoints_dir dataroot seed model CUT_mode QS_mode continue_train overwrite dry_run "
    "config gpu_ids n_epochs n_epochs_decay n_iterations n_iterations_decay epoch_count epoch "
    "pretrained_name lr_policy phase direction display_id".split()
)


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that a command line describes; exit status 1 if a run failed."""
    return study_of(sys.argv[1:] if argv is None else argv).run()


def study_of(argv: Sequence[str]) -> "Study":
    """The study that a command line describes. A wrong call exits with status 2."""
    parser = ArgumentParser(prog="scripts/compare.py", description=__doc__.splitlines()[0])
    parser.group("what is compared")
    default = ["qs_global", "qs_local", "qs_local_global", "cut", "fastcut"]
    all_but = f"all: every one, but {', '.join(NEED_VGG)} only with -- --vgg_weights FILE"
    listed = f"list of {', '.join(CONFIGS)}; {all_but}"
    parser.add("--configs", default, listed, type=some_of([*CONFIGS, "all"]))
    opt = parse_study(parser, argv, "./datasets/stripes", [0, 1, 2])
    opt.out = opt.out or Path("results/study")
    if "all" in opt.configs:
        opt.configs = [name for name in CONFIGS if name not in NEED_VGG or "vgg_weights" in opt.train]
    named = ", ".join(opt.configs) if len(opt.configs) <= 6 else f"{len(opt.configs)} configurations"
    return Study(opt, {name: CONFIGS[name] for name in opt.configs}, f"Study of {named}")


def seed_list(text: str) -> list[int]:
    return list(dict.fromkeys(integer(0, 2**32 - 1)(part) for part in text.split(",")))


def parse_study(parser: ArgumentParser, argv: Sequence[str], dataroot: str, seeds: list[int]) -> Namespace:
    """The options of a study; `common` and `train` are those of train.py, in --config and after --."""
    add, group = parser.add, parser.group
    group("data and runs")
    add("--dataroot", dataroot, "folder with trainA, trainB, testA, testB")
    add("--out", None, "folder of the study", type=Path, shown="results/study, results/DATA_ABLATION")
    add("--seeds", seeds, "every configuration is trained with each of these", type=seed_list)
    add("--config", None, "file of options, as train.py takes it; those given count more", type=Path)
    add("--n_epochs", 200, "epochs at the initial learning rate", type=integer(0))
    add("--n_epochs_decay", 200, "epochs of decay to zero", type=integer(0))
    group("how it is done")
    add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    add("--jobs", 1, "trainings at a time, which share the cores and the GPU", type=integer(1, 256))
    add("--samples", 6, "test images on the page", type=integer(1, 10_000))
    group("how it is judged (see scripts/evaluate.py; always SWD, and stripes if the set has masks)")
    others = set(parser.defaults)
    add_judging(add)

    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    given, options = parser.parse_given(words[:split]), TrainOptions()
    config = options.parser.parse_given(read_words(given["config"])) if "config" in given else {}
    budget = {name: config[name] for name in ("n_epochs", "n_epochs_decay") if name in config}
    opt = Namespace(**{**parser.defaults, **budget, **given})
    opt.common = {name: value for name, value in config.items() if name not in SET_HERE}
    opt.train = options.parser.parse_given(words[split + 1 :])
    if taken := sorted(opt.train.keys() & SET_HERE):
        parser.error(f"--{taken[0]} after -- is set by the study itself: leave it out, or see --help")
    opt.judging = {name: given[name] for name in parser.defaults if name in given and name not in others}
    return opt


Options = dict[str, object]  # of train.py, by name


def run_options(words: Sequence[str], common: Options, more: Options) -> Options:
    """The options of a configuration: `common` ones, its own in `words`, and `more`; the later ones override.

    `common` and `more` are for all configurations of a study. Options of theirs that have no effect in this
    one, such as --nce_layers on a model without a contrastive loss, are left out.
    """
    parser = TrainOptions().parser
    own = parser.parse_given(words)
    given = {**common, **own, **more}
    model = MODELS[given.get("model", parser.defaults["model"])]
    values = {**parser.defaults, **model.defaults, **given}

    def acts(name: str) -> bool:
        conditions = parser.options[name].only or {}
        return name not in model.lacking and all(values[other] in of for other, of in conditions.items())

    return {name: value for name, value in given.items() if name in own or acts(name)}


class Run(NamedTuple):
    """One training: a configuration and a seed."""

    label: str
    seed: int
    words: list[str]  # what defines the training, for train.py: not its folder, nor the device

    @property
    def name(self) -> str:
        return f"{self.label}_s{self.seed}"


class Study:
    """Every configuration, given as words for train.py by its label, trained with every seed.

    published: {"numbers": {label: {metric: number}}, "source": where they are from}, shown beside ours.
    directions: which of AtoB and BtoA to judge; numbers of BtoA have it after the metric's name.
    """

    def __init__(
        self, opt: Namespace, configs: Mapping[str, Sequence], title: str, published=None, directions=None
    ):
        self.opt, self.title, self.directions = opt, title, directions or ["AtoB"]
        self.published = published or {"numbers": {}, "source": ""}
        self.gpu = "--gpu_ids=" + (",".join(map(str, opt.gpu_ids)) or "-1")
        self.judge_words = option_words(opt.judging)
        given = {label: run_options(words, opt.common, opt.train) for label, words in configs.items()}
        for name in opt.train:
            if not any(name in of for of in given.values()):
                raise UserError(f"--{name} after -- has no effect in any configuration: leave it out")
        budget = {"n_epochs": opt.n_epochs, "n_epochs_decay": opt.n_epochs_decay}
        self.runs, self.options = [], {}
        for label, seed in product(configs, opt.seeds):
            words = option_words({"dataroot": opt.dataroot, "seed": seed, **budget, **given[label]})
            self.runs.append(Run(label, seed, words))
            self.options[label] = TrainOptions().parse([*words, self.gpu])  # refuses what is wrong

    def run(self) -> int:
        """Train and judge what is not done yet, and report; exit status 1 if a run failed."""
        (self.opt.out / "logs").mkdir(parents=True, exist_ok=True)
        for run in self.runs:
            self.read_record(run)  # refuses a folder of other options
        failures: dict[str, str] = {}
        with StopSignal() as self.stop:
            # What cannot be judged, for want of test images or weights, is found before hours of training.
            untranslated = self.judge_sources()
            with ThreadPoolExecutor(self.opt.jobs) as pool:
                runs = {pool.submit(self.complete, run): run.name for run in self.runs}
                for number, future in enumerate(as_completed(runs), 1):
                    try:
                        future.result()
                    except UserError as error:
                        failures[runs[future]] = str(error)
                        say(f"failed: {runs[future]}: {error}", file=sys.stderr)
                    else:
                        done = "stopped" if self.stop.received else "done"
                        say(f"{runs[future]}: {done} ({number} of {len(runs)})")
            if self.stop.received:
                say("Stopped. The same command continues from here.")
                return 128 + self.stop.received  # as shells have it
        self.report(failures, untranslated)
        return 1 if failures else 0

    def judge_sources(self) -> dict[str, float]:
        """The numbers of the source images themselves, which a translation must improve on."""
        for direction in self.directions:
            sources, targets = domain_folders(self.opt.dataroot, "test", direction)
            self.judge("untranslated", direction, [f"--fake={sources}", f"--real={targets}", self.gpu])
        masks = Path(self.opt.dataroot, "masks").is_dir()
        drawn = {"stripes-gained": 0.0, "stripes-background": 0.0} if masks else {}
        return {**(self.numbers("untranslated") or {}), **drawn}

    def complete(self, run: Run) -> None:
        """Train, translate and judge, as far as that is not done. UserError if it fails."""
        record = self.read_record(run)
        place = [f"--name={run.name}", f"--checkpoints_dir={self.opt.out / 'runs'}", self.gpu]
        if not record["trained"] and not self.stop.received:
            say(f"{run.name}: training")
            words = [*run.words, *place, "--display_id=0"]
            words += ["--continue_train"] if (self.folder(run) / STATE_FILE).is_file() else []
            self.write_record(run, record)
            began = time.monotonic()
            try:
                record["trained"] = self.call("train.py", words, run.name)
            finally:
                record["seconds"] += time.monotonic() - began
                self.write_record(run, record)
        if record["trained"] and not self.is_judged(run) and not self.stop.received:
            say(f"{run.name}: translating and judging")
            place += [f"--results_dir={self.opt.out / 'results'}", "--epochs=latest", "--num_threads=0"]
            many = self.options[run.label].domains  # such a model has no direction, but a target
            for direction in self.directions:
                to = f"--domain={direction[-1]}" if many else f"--direction={direction}"
                if not self.judge(run.name, direction, [*place, to]):
                    return
            self.write_record(run, {**record, "judged": self.judge_words})

    def judge(self, name: str, direction: str, words: Sequence[str]) -> bool:
        """Run evaluate.py, with its receipt where `numbers` looks for it; see `call`."""
        words = [*words, f"--receipt={self.receipt(name, direction)}", *self.judge_words]
        return self.call("scripts/evaluate.py", words, name)

    def call(self, script: str, words: Sequence[str], name: str) -> bool:
        """Run a script, its output in logs/NAME.log; False if it was stopped. UserError if it fails."""
        log, environment = self.opt.out / "logs" / f"{name}.log", dict(os.environ)
        if self.opt.jobs > 1:  # they share the cores
            environment.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // self.opt.jobs)))
        status = run_command([sys.executable, str(HERE.parent / script), *words], log, self.stop, environment)
        if status and not self.stop.received:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
            raise UserError(f"{script} ended with status {status}: {last[:300]} ({log})")
        return status == 0

    def report(self, failures: Mapping[str, str], untranslated: Mapping[str, float]) -> None:
        """Write study.json and the page of the runs done so far."""
        opt, rows = self.opt, []
        for run in self.runs:
            record, losses = self.read_record(run), read_loss_records(self.folder(run))
            row = {"name": run.name, "label": run.label, "seed": run.seed, "train": record["train"]}
            row |= {"seconds": record["seconds"], "images": losses[-1].images if losses else 0}
            row["numbers"] = self.numbers(run.name) if self.is_judged(run) else None
            rows.append({**row, "failure": failures.get(run.name)})
        results = {"runs": rows, "untranslated": untranslated, "published": self.published}
        results |= study_results(rows)
        write_receipt(opt.out / "study.json", opt, results)
        facts = {
            "data": opt.dataroot,
            "seeds": ", ".join(map(str, opt.seeds)),
            "budget of each run": f"{opt.n_epochs} + {opt.n_epochs_decay} epochs",
            "device": f"{get_device(opt.gpu_ids)}, trainings at a time: {opt.jobs}",
            "options of every run": shlex.join(option_words({"config": opt.config, **opt.train})) or "none",
        }
        write_page(opt.out, self.title, results, facts, opt.samples)
        say(f"{opt.out / 'index.html'}")

    # ---- what is kept of a run ----

    def folder(self, run: Run) -> Path:
        return self.opt.out / "runs" / run.name

    def read_record(self, run: Run) -> dict[str, Any]:
        """compare.json of a run. `UserError` if it is damaged, or of a run of other options."""
        path, train = self.folder(run) / "compare.json", shlex.join(run.words)
        if not path.is_file():
            return {"train": train, "seconds": 0.0, "trained": False, "judged": None}
        try:
            record = json.loads(path.read_text("utf-8"))
            there = record["train"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): remove that run's folder") from None
        if there != train:
            found = f"{self.opt.out} holds {run.name} trained with other options: {there} there, {train} now"
            raise UserError(f"{found}. Give another --out to keep both, or remove that folder")
        return record

    def write_record(self, run: Run, record: Mapping[str, Any]) -> None:
        self.folder(run).mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(self.folder(run) / "compare.json", lambda path: path.write_text(text))

    def is_judged(self, run: Run) -> bool:
        """Whether its numbers by the options of judging are there."""
        return self.read_record(run)["judged"] == self.judge_words and self.numbers(run.name) is not None

    def receipt(self, name: str, direction: str) -> Path:
        return self.opt.out / "results" / name / TESTS[direction] / "evaluation.json"

    def numbers(self, name: str) -> dict[str, float] | None:
        """The numbers of its receipts, if all are there; those of BtoA with it in the name, as "KID BtoA"."""
        numbers = {}
        for direction in self.directions:
            receipt, end = self.receipt(name, direction), "" if direction == "AtoB" else f" {direction}"
            if not receipt.is_file():
                return None
            found = json.loads(receipt.read_text("utf-8"))
            found = found["checkpoints"][0] if "checkpoints" in found else found
            numbers |= {metric + end: number for metric, number in found["numbers"].items()}
        return numbers


def run_command(words: Sequence[str], log: Path, stop: StopSignal, environment=None) -> int:
    """Run `words`, output appended to `log`; the exit status. On `stop` send SIGTERM and wait for the end."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {shlex.join(words)}\n")
        file.flush()
        # In a session of its own: Ctrl-C in the terminal reaches it only once, from here.
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
        while not stop.received:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.2)
        process.terminate()
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
