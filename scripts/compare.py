"""Train several configurations with several seeds under one budget, judge them alike, and write one page.

    python scripts/compare.py --dataroot datasets/stripes --out results/study --n_epochs 10 --n_epochs_decay 10
    python scripts/compare.py --configs qs_global,cut --queries 64,256 --seeds 0,1,2 -- --ngf 16 --crop_size 64

What follows -- goes to train.py, the same for every run. The budget is a number of epochs, or with --minutes the time each run
may train. The page is OUT/index.html, all its numbers stand in OUT/study.json. A rerun of the same command repeats nothing that
is done and continues what was interrupted; a run that fails is named, and the others go on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import sys
import time
import traceback
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # as a file, a script sees only its own folder

from data.folders import domain_folders
from options.train_options import TrainOptions
from scripts.study.command import run_command
from scripts.study.page import write_page
from scripts.study.runs import study_results
from util.arguments import ArgumentParser, gpu_list, integer, real_number
from util.errors import UserError, entry_point
from util.files import write_atomically
from util.metrics.receipt import make_receipt, write_receipt
from util.run.checkpoint import STATE_FILE
from util.run.stop_signal import StopSignal
from util.watch.loss_log import read_loss_records

# FastCUT comes with its own loss (lambda_NCE 10, no identity term, flip equivariance), but not with its own number of epochs.
CONFIGS = {
    "qs_global": ("--model=qs", "--QS_mode=global"),
    "qs_local": ("--model=qs", "--QS_mode=local"),
    "qs_local_global": ("--model=qs", "--QS_mode=local_global"),
    "cut": ("--model=cut",),
    "fastcut": ("--model=fastcut",),
}
# Options of train.py that the study itself sets.
SET_HERE = set(
    "name suffix checkpoints_dir dataroot seed model CUT_mode QS_mode continue_train overwrite dry_run gpu_ids n_epochs "
    "n_epochs_decay epoch_count epoch pretrained_name lr_policy phase direction display_id".split()
)
JUDGED_WITH = (
    "inception_weights",
    "classifier",
    "classifier_weights",
    "class_index",
)  # options of evaluate.py
ENDED_BY_US = (
    128 + signal.SIGTERM,
    -signal.SIGTERM,
)  # status of train.py after saving, and before it could answer
ENDLESS = 10**6  # epochs, where --minutes ends the training


@dataclass(frozen=True)
class Run:
    """One training: a configuration (with its number of queries, where the study varies it) and a seed."""

    config: str
    queries: int | None
    seed: int

    @property
    def label(self) -> str:
        return self.config if self.queries is None else f"{self.config}_q{self.queries}"

    @property
    def name(self) -> str:
        return f"{self.label}_s{self.seed}"


def parse(argv: Sequence[str]) -> Namespace:
    """The study's options, with `train` (words for train.py). A wrong call exits with status 2."""
    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    parser = ArgumentParser(prog="scripts/compare.py", description=__doc__.splitlines()[0])
    add, group = parser.add, parser.group
    group("what is compared")
    add("--dataroot", "./datasets/stripes", "folder with trainA, trainB, testA, testB")
    add("--out", Path("results/study"), "folder of the study", type=Path, shown="results/study")
    add("--configs", ",".join(CONFIGS), "list of configurations")
    add("--seeds", "0,1,2", "list of seeds; every configuration is trained with each")
    add("--queries", None, "list of --num_patches to try with every configuration", shown="train.py's own")
    group("the budget of each run")
    add("--n_epochs", 200, "epochs at the initial learning rate", type=integer(0))
    add("--n_epochs_decay", 200, "epochs of decay to zero", type=integer(0))
    add(
        "--minutes",
        None,
        "train so long instead, at a constant learning rate",
        type=real_number(0, above=True),
    )
    group("how it is done")
    add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    add("--jobs", 1, "trainings at a time", type=integer(1))
    add("--samples", 6, "test images on the page", type=integer(1))
    group("how it is judged (see scripts/evaluate.py; SWD, and stripes where the set has masks, in any case)")
    add("--inception_weights", None, "pytorch-fid's weights file, for FID and KID")
    add("--classifier", "squeezenet1_1", "a torchvision classifier, for its distances")
    add("--classifier_weights", None, "its weights file")
    add("--class_index", None, "a class of it, from 0", type=integer(0))
    given = parser.parse_given(words[:split])
    opt = Namespace(**{**parser.defaults, **given}, train=words[split + 1 :])
    opt.configs = _listed(parser, "--configs", opt.configs, str)
    opt.seeds = _listed(parser, "--seeds", opt.seeds, integer(0))
    opt.queries = _listed(parser, "--queries", opt.queries, integer(1)) if opt.queries else [None]
    for config in opt.configs:
        if config not in CONFIGS:
            parser.error(f"--configs {config} is unknown; there are {', '.join(CONFIGS)}")
    if opt.minutes and {"n_epochs", "n_epochs_decay"} & set(given):
        parser.error("--minutes and --n_epochs are two budgets: give one of them")
    for name in TrainOptions().parser.parse_given(opt.train):
        if name in SET_HERE or (name == "num_patches" and opt.queries != [None]):
            parser.error(f"--{name} after -- is set by the study itself: leave it out, or see --help")
    return opt


def _listed(parser: ArgumentParser, flag: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        values = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ArgumentTypeError as error:
        parser.error(f"{flag} {text}: each {error}")
    if not values or len(set(values)) < len(values):
        parser.error(f"{flag} takes a list without repeats, not {text!r}")
    return values


class Study:
    """A folder of runs: runs/ (trainings), results/ (translations and receipts), logs/, study.json, index.html."""

    def __init__(self, opt: Namespace):
        self.opt = opt
        self.runs = [Run(c, q, s) for c in opt.configs for q in opt.queries for s in opt.seeds]
        self.console = sys.stdout  # while a run is judged, standard output goes to its log
        self.gpu = "--gpu_ids=" + (",".join(map(str, opt.gpu_ids)) or "-1")
        for run in self.runs:  # refuse a wrong option now and not with every run
            TrainOptions().parse([*self.train_words(run), self.gpu])
        self.sources, self.targets = domain_folders(opt.dataroot, "test")
        judged = {name: getattr(opt, name) for name in JUDGED_WITH}
        self.judge_words = [f"--{name}={value}" for name, value in judged.items() if value is not None]

    def train_words(self, run: Run) -> list[str]:
        """What defines a training, as words for train.py: all but where it is kept and what it runs on."""
        opt = self.opt
        budget = (opt.n_epochs, opt.n_epochs_decay) if opt.minutes is None else (ENDLESS, 0)
        words = [f"--dataroot={opt.dataroot}", *CONFIGS[run.config], f"--seed={run.seed}"]
        words += [f"--n_epochs={budget[0]}", f"--n_epochs_decay={budget[1]}"]
        words += [f"--num_patches={run.queries}"] if run.queries is not None else []
        return words + opt.train

    # ---- one run ----

    def train(self, run: Run, stop: StopSignal) -> str | None:
        """Train to the end of the budget, from where the run stands. None, or what went wrong."""
        record = self.read_record(run)
        if record["trained"] or stop.received:
            return None
        self.say(f"{run.name}: training")
        folder = self.opt.out / "runs" / run.name
        words = [sys.executable, str(ROOT / "train.py"), *self.train_words(run), self.gpu, "--display_id=0"]
        words += [f"--name={run.name}", f"--checkpoints_dir={self.opt.out / 'runs'}"]
        words += ["--continue_train"] if (folder / STATE_FILE).is_file() else []
        limit = None if self.opt.minutes is None else 60 * self.opt.minutes - record["seconds"]
        began = time.monotonic()
        status, out_of_time = run_command(words, self.log(run), stop, limit, self.environment())
        record["seconds"] += time.monotonic() - began
        stopped = out_of_time and status in ENDED_BY_US and (folder / STATE_FILE).is_file()
        record["trained"] = status == 0 or stopped
        self.write_record(run, record)
        if record["trained"] or stop.received:
            return None
        return f"training ended with status {status}: {_last_line(self.log(run))}"

    def environment(self) -> dict[str, str]:
        """The environment of a training: side by side, each has its share of the cores."""
        if self.opt.jobs == 1:
            return dict(os.environ)
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.opt.jobs)), **os.environ}

    def judge(self, run: Run) -> str | None:
        """Translate the test images and evaluate them, unless that is done. None, or what went wrong."""
        record = self.read_record(run)
        if not record["trained"] or (record["judged"] == self.judge_words and self.receipt(run).is_file()):
            return None
        self.say(f"{run.name}: translating and judging")
        where = [f"--name={run.name}", f"--checkpoints_dir={self.opt.out / 'runs'}", self.gpu]
        where += [f"--results_dir={self.opt.out / 'results'}", "--num_threads=0"]
        for script, words in {"test": where, "evaluate": where + self.judge_words}.items():
            if not self.call_here(script, words, self.log(run)):
                return f"{script}.py failed: {_last_line(self.log(run))}"
        self.write_record(run, {**record, "judged": self.judge_words})
        return None

    def call_here(self, script: str, words: list[str], log: Path) -> bool:
        """Call test.py or scripts/evaluate.py, its output in the log; whether it succeeded."""
        import test as translation  # this project's test.py: its folder stands before Python's own on the path
        from scripts import evaluate

        main = {"test": translation.main, "evaluate": evaluate.main}[script]
        with (
            open(log, "a", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            print(f"\n$ {script}.py {shlex.join(words)}")
            try:
                return not main(words)
            except SystemExit as end:
                return not end.code
            except Exception:  # named in the report like any failure; its traceback stands in the log
                traceback.print_exc()
                return False

    # ---- all of them ----

    def work(self, stop: StopSignal) -> dict[str, str]:
        """Train and judge what is not done yet; returns what went wrong by the run's name."""
        (self.opt.out / "logs").mkdir(parents=True, exist_ok=True)
        for run in self.runs:
            self.check_record(run)
        failures: dict[str, str] = {}
        with ThreadPoolExecutor(self.opt.jobs) as pool:
            trainings: dict[Future[str | None], Run] = {
                pool.submit(self.train, run, stop): run for run in self.runs
            }
            for number, future in enumerate(as_completed(trainings), 1):
                run = trainings[future]
                if failure := future.result() or (None if stop.received else self.judge(run)):
                    failures[run.name] = failure
                    self.say(f"failed: {run.name}: {failure}")
                elif self.read_record(run)["judged"] is not None:
                    self.say(f"{run.name}: done ({number} of {len(self.runs)})")
        return failures

    def untranslated(self) -> dict[str, float]:
        """The same numbers of the source images themselves, left as they are: what a translation must improve on."""
        receipt, log = self.opt.out / "untranslated.json", self.opt.out / "logs" / "untranslated.log"
        where = [f"--fake={self.sources}", f"--real={self.targets}", f"--receipt={receipt}", self.gpu]
        if not self.call_here("evaluate", where + self.judge_words, log):
            raise UserError(f"the source images cannot be judged: {_last_line(log)}")
        numbers = json.loads(receipt.read_text())["numbers"]
        masks = Path(self.opt.dataroot, "masks").is_dir()
        return numbers | ({"stripes-gained": 0.0, "stripes-background": 0.0} if masks else {})

    def report(self, failures: dict[str, str]) -> None:
        """Write study.json and the page of what is there by now."""
        opt, rows = self.opt, []
        for run in self.runs:
            record, losses = self.read_record(run), read_loss_records(opt.out / "runs" / run.name)
            judged = record["judged"] is not None and self.receipt(run).is_file()
            row = {"name": run.name, "label": run.label, "seed": run.seed, "train": record["train"]}
            row["images"] = losses[-1]["images"] if losses else 0
            row["seconds"] = record["seconds"]
            row["numbers"] = json.loads(self.receipt(run).read_text())["numbers"] if judged else None
            row["failure"] = failures.get(run.name)
            rows.append(row)
        results = {"runs": rows, "untranslated": self.untranslated(), **study_results(rows)}
        device = "CPU" if not opt.gpu_ids else f"GPU {opt.gpu_ids[0]}"
        write_receipt(opt.out / "study.json", make_receipt(vars(opt), results, device))
        write_page(opt.out, results, self.facts(), opt.samples)
        self.say(f"{opt.out / 'index.html'}")

    def facts(self) -> dict[str, str]:
        """What the page says at its head."""
        opt = self.opt
        epochs = f"{opt.n_epochs} + {opt.n_epochs_decay} epochs"
        budget = f"{opt.minutes:g} minutes" if opt.minutes else epochs
        seeds = ", ".join(map(str, opt.seeds))
        facts = {"data": str(opt.dataroot), "budget of each run": budget, "seeds": seeds}
        return facts | ({"options of every run": shlex.join(opt.train)} if opt.train else {})

    # ---- what is kept of a run ----

    def log(self, run: Run) -> Path:
        return self.opt.out / "logs" / f"{run.name}.log"

    def receipt(self, run: Run) -> Path:
        return self.opt.out / "results" / run.name / "test_latest" / "evaluation.json"

    def read_record(self, run: Run) -> dict[str, Any]:
        path = self.opt.out / "runs" / run.name / "compare.json"
        if path.is_file():
            return json.loads(path.read_text())
        return self.new_record(run)

    def new_record(self, run: Run) -> dict[str, Any]:
        words = shlex.join(self.train_words(run))
        return {"train": words, "minutes": self.opt.minutes, "seconds": 0.0, "trained": False, "judged": None}

    def write_record(self, run: Run, record: dict[str, Any]) -> None:
        folder = self.opt.out / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(folder / "compare.json", lambda path: path.write_text(text))

    def check_record(self, run: Run) -> None:
        """Write down what the run is, or `UserError` where its folder holds a run of other options or another budget."""
        record, now = self.read_record(run), self.new_record(run)
        words, words_now = (f"{r['train']} for {r['minutes'] or 'any'} minutes" for r in (record, now))
        if words != words_now:
            raise UserError(
                f"{self.opt.out} holds {run.name} trained with other options: {words} there, {words_now} now. Give another "
                "--out to keep both, or remove that folder"
            )
        self.write_record(run, record)

    def say(self, text: str) -> None:
        print(text, file=self.console, flush=True)


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[-1][:300]} ({log})"


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that the words of a command line describe; exit status 1 where a run failed."""
    opt = parse(sys.argv[1:] if argv is None else argv)
    for library in ("matplotlib", "dominate"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"the page is made with {library}, which is not installed: pip install {library}")
    study = Study(opt)
    with StopSignal() as stop:
        failures = study.work(stop)
        if stop.received:
            study.say("Stopped; the same command goes on from here.")
            return stop.exit_status
    study.report(failures)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
