"""A study: the folder of its runs, how each is trained and judged, and what is kept of it.

runs/       trainings: checkpoints, logs, and compare.json, the record of what is done
results/    translations and receipts; NAME/test_latest_BtoA has those of the other direction, if any
logs/       what train.py, test.py and evaluate.py printed
study.json, index.html, untranslated.json
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import statistics
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.datasets import domain_folders
from models import create_model
from options.train_options import TrainOptions
from scripts.study.command import run_command
from scripts.study.configurations import run_options
from scripts.study.page import write_page
from scripts.study.statistics import study_results
from scripts.words import option_words
from util.device import get_device
from util.errors import UserError
from util.files import write_atomically
from util.metrics.receipt import make_receipt, write_receipt
from util.run.checkpoint import STATE_FILE
from util.run.stop_signal import StopSignal
from util.watch.loss_log import read_loss_records

# Status of train.py after SIGTERM: once it has saved, and before it handles signals.
ENDED_BY_US = (128 + signal.SIGTERM, -signal.SIGTERM)
TESTS = {"AtoB": "test_latest", "BtoA": "test_latest_BtoA"}  # direction -> folder in results/NAME
ENDLESS = 10**6  # epochs, if --minutes ends the training


@dataclass(frozen=True)
class Run:
    """One training: a configuration and a seed."""

    label: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.label}_s{self.seed}"


class Study:
    """Every configuration trained with every seed.

    Args:
        opt: of `StudyOptions`.
        configs: configurations by label, as words for train.py.
        title: of the page.
        published: numbers of papers to show beside ours, metric -> number by label.
        source: where these are from.
        directions: which of AtoB and BtoA to judge; numbers of BtoA have it after the metric's name.
    """

    def __init__(
        self,
        opt: Namespace,
        configs: Mapping[str, Sequence[str]],
        title: str,
        published: Mapping[str, Mapping[str, float | str]] | None = None,
        source: str = "",
        directions: Sequence[str] = ("AtoB",),
    ):
        self.opt, self.title, self.directions = opt, title, directions
        self.published = {"numbers": published or {}, "source": source}
        self.runs = [Run(label, seed) for label in configs for seed in opt.seeds]
        self.console = sys.stdout  # while a run is judged, standard output goes to its log
        self.gpu = "--gpu_ids=" + (",".join(map(str, opt.gpu_ids)) or "-1")
        options = TrainOptions()
        self.given = {
            label: run_options(options, words, opt.preset_options, opt.train)
            for label, words in configs.items()
        }
        for name in opt.train:
            if not any(name in given for given in self.given.values()):
                raise UserError(f"--{name} after -- has no effect in any configuration: leave it out")
        # Refuse a wrong option once, before any run.
        self.options = {
            run.label: TrainOptions().parse([*self.train_words(run), self.gpu]) for run in self.runs
        }
        self.judge_words = option_words(opt.judging)

    def train_words(self, run: Run) -> list[str]:
        """What defines a training, as words for train.py: not its folder, nor the device."""
        opt = self.opt
        budget = (opt.n_epochs, opt.n_epochs_decay) if opt.minutes is None else (ENDLESS, 0)
        words = [f"--dataroot={opt.dataroot}", f"--seed={run.seed}"]
        words += [f"--n_epochs={budget[0]}", f"--n_epochs_decay={budget[1]}"]
        return words + option_words(self.given[run.label])

    # ---- all runs ----

    def work(self, stop: StopSignal) -> dict[str, str]:
        """Train and judge what is not done yet; returns failures by the run's name."""
        domain_folders(self.opt.dataroot, "test")  # refuse a set without test images before hours of training
        (self.opt.out / "logs").mkdir(parents=True, exist_ok=True)
        for run in self.runs:
            self.check_record(run)
        failures: dict[str, str] = {}
        with ThreadPoolExecutor(self.opt.jobs) as pool:
            trainings = {pool.submit(self.train, run, stop): run for run in self.runs}
            for number, future in enumerate(as_completed(trainings), 1):
                run = trainings[future]
                if failure := future.result() or (None if stop.received else self.judge(run)):
                    failures[run.name] = failure
                    self.say(f"failed: {run.name}: {failure}")
                elif self.read_record(run)["judged"] is not None:
                    self.say(f"{run.name}: done ({number} of {len(self.runs)})")
        return failures

    def report(self, failures: dict[str, str]) -> None:
        """Write study.json and the page of the runs done so far."""
        rows = []
        for run in self.runs:
            record = self.read_record(run)
            judged = record["judged"] is not None and self.has_receipts(run)
            row = {"name": run.name, "label": run.label, "seed": run.seed, "train": record["train"]}
            row |= {"images": trained_images(self.folder(run))}
            row["seconds"] = record["seconds"]
            row |= {"memory": peak_of(self.memory(run)), "step_ms": self.step_ms(run)}
            row |= self.numbers(run) if judged else {"numbers": None, "deviations": {}}
            row["failure"] = failures.get(run.name)
            rows.append(row)
        results = {"runs": rows, "untranslated": self.untranslated(), **study_results(rows)}
        results |= {"parameters": self.parameters(), "published": self.published}
        words = {
            name: option_words(getattr(self.opt, name)) for name in ("preset_options", "train", "judging")
        }
        device = get_device(self.opt.gpu_ids)
        receipt = make_receipt({**vars(self.opt), **words}, results, device)
        write_receipt(self.opt.out / "study.json", receipt)
        write_page(self.opt.out, self.title, results, self.facts(str(device)), self.opt.samples)
        self.say(f"{self.opt.out / 'index.html'}")

    def untranslated(self) -> dict[str, float]:
        """The numbers of the source images themselves, which a translation must improve on."""
        receipt, log = self.opt.out / "untranslated.json", self.opt.out / "logs" / "untranslated.log"
        numbers: dict[str, float] = {}
        for direction in self.directions:
            sources, targets = domain_folders(self.opt.dataroot, "test", direction)
            words = [f"--fake={sources}", f"--real={targets}", f"--receipt={receipt}", self.gpu]
            if not call_here("evaluate", words + self.judge_words, log):
                raise UserError(f"the source images cannot be judged: {last_line(log)}")
            numbers |= in_direction(json.loads(receipt.read_text())["numbers"], direction)
        masks = Path(self.opt.dataroot, "masks").is_dir()
        return numbers | ({"stripes-gained": 0.0, "stripes-background": 0.0} if masks else {})

    def parameters(self) -> dict[str, dict[str, int]]:
        """How many parameters each network has, by configuration."""
        counts = {}
        for label, opt in self.options.items():
            networks = create_model(Namespace(**{**vars(opt), "gpu_ids": []})).networks
            counts[label] = {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}
        return counts

    def facts(self, device: str) -> dict[str, str]:
        """The named values at the head of the page."""
        opt = self.opt
        epochs = f"{opt.n_epochs} + {opt.n_epochs_decay} epochs"
        facts = {"data": str(opt.dataroot)}
        shared = " of a shared machine" if opt.jobs > 1 else ""
        facts["budget of each run"] = f"{opt.minutes:g} minutes{shared}" if opt.minutes else epochs
        facts["seeds"] = ", ".join(map(str, opt.seeds))
        facts["device"] = device
        facts["device"] += f", {opt.jobs} trainings at a time" if opt.jobs > 1 else ""
        facts |= {"preset": opt.preset} if opt.preset else {}
        return facts | ({"options of every run": shlex.join(option_words(opt.train))} if opt.train else {})

    def say(self, text: str) -> None:
        # One write for text and line end, since several threads print.
        self.console.write(f"{text}\n")
        self.console.flush()

    # ---- one run ----

    def train(self, run: Run, stop: StopSignal) -> str | None:
        """Train to the end of the budget, from where the run stands. None, or what went wrong."""
        record = self.read_record(run)
        if record["trained"] or stop.received:
            return None
        self.say(f"{run.name}: training")
        state = self.folder(run) / STATE_FILE
        script = Path(__file__).with_name("training.py")
        words = [sys.executable, str(script), str(self.memory(run)), *self.train_words(run)]
        words += [self.gpu, "--display_id=0"]
        words += [f"--name={run.name}", f"--checkpoints_dir={self.opt.out / 'runs'}"]
        words += ["--continue_train"] if state.is_file() else []
        if "num_threads" not in self.given[run.label]:  # batches do not depend on it
            words += [f"--num_threads={min(self.options[run.label].num_threads, self.cores())}"]
        limit = None if self.opt.minutes is None else 60 * self.opt.minutes - record["seconds"]
        began = time.monotonic()
        status, out_of_time = run_command(words, self.log(run), stop, limit, self.environment())
        record["seconds"] += time.monotonic() - began
        record["trained"] = status == 0 or (out_of_time and status in ENDED_BY_US and state.is_file())
        self.write_record(run, record)
        if record["trained"] or stop.received:
            return None
        return f"training ended with status {status}: {last_line(self.log(run))}"

    def environment(self) -> dict[str, str]:
        """The environment of a training; trainings side by side share the cores equally."""
        threads = {"OMP_NUM_THREADS": str(self.cores())} if self.opt.jobs > 1 else {}
        return {**threads, **os.environ}

    def cores(self) -> int:
        """A training's share of the cores that this process may use."""
        affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return max(1, cores // self.opt.jobs)

    def judge(self, run: Run) -> str | None:
        """Translate the test images and evaluate them, unless that is done. None, or what went wrong."""
        record = self.read_record(run)
        if not record["trained"] or (record["judged"] == self.judge_words and self.has_receipts(run)):
            return None
        self.say(f"{run.name}: translating and judging")
        where = [f"--name={run.name}", f"--checkpoints_dir={self.opt.out / 'runs'}", self.gpu]
        for direction in self.directions:
            place = [f"--results_dir={self.opt.out / 'results'}", f"--direction={direction}"]
            words = [*where, *place, "--num_threads=0"]
            for script, more in {"test": [], "evaluate": self.judge_words}.items():
                if not call_here(script, words + more, self.log(run)):
                    return f"{script}.py failed: {last_line(self.log(run))}"
        self.write_record(run, {**record, "judged": self.judge_words})
        return None

    # ---- what is kept of a run ----

    def folder(self, run: Run) -> Path:
        return self.opt.out / "runs" / run.name

    def log(self, run: Run) -> Path:
        return self.opt.out / "logs" / f"{run.name}.log"

    def receipts(self, run: Run) -> dict[str, Path]:
        """The file of its evaluation, by direction."""
        results = self.opt.out / "results" / run.name
        return {direction: results / TESTS[direction] / "evaluation.json" for direction in self.directions}

    def has_receipts(self, run: Run) -> bool:
        return all(file.is_file() for file in self.receipts(run).values())

    def numbers(self, run: Run) -> dict[str, dict[str, float]]:
        """The "numbers" of its evaluations, and the "deviations" of those that are means over subsets."""
        found: dict[str, dict[str, float]] = {"numbers": {}, "deviations": {}}
        for direction, file in self.receipts(run).items():
            receipt = json.loads(file.read_text())
            # Subsets that are the whole set differ by rounding only.
            deviations = {
                name: of["std"]
                for name, of in receipt["numbers_from"].items()
                if of.get("std", 0) > 1e-9 * abs(receipt["numbers"][name])
            }
            found["numbers"] |= in_direction(receipt["numbers"], direction)
            found["deviations"] |= in_direction(deviations, direction)
        return found

    def memory(self, run: Run) -> Path:
        """The peak memory of each session of its training, in bytes, one per line."""
        return self.folder(run) / "peak_memory.txt"

    def step_ms(self, run: Run) -> float | None:
        """The median time of a step in milliseconds, waiting for data included, as logged."""
        times = [record["seconds_per_image"] for record in read_loss_records(self.folder(run))]
        return 1e3 * self.options[run.label].batch_size * statistics.median(times) if times else None

    def read_record(self, run: Run) -> dict[str, Any]:
        path = self.folder(run) / "compare.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return {**self.new_record(run), **found}

    def new_record(self, run: Run) -> dict[str, Any]:
        words = shlex.join(self.train_words(run))
        record = {"train": words, "minutes": self.opt.minutes, "seconds": 0.0}
        return {**record, "trained": False, "judged": None}

    def write_record(self, run: Run, record: dict[str, Any]) -> None:
        self.folder(run).mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(self.folder(run) / "compare.json", lambda path: path.write_text(text))

    def check_record(self, run: Run) -> None:
        """Write the record of the run; `UserError` if its folder holds one of other options or budget."""
        record, now = self.read_record(run), self.new_record(run)
        words, words_now = (f"{r['train']} for {r['minutes'] or 'any'} minutes" for r in (record, now))
        if words != words_now:
            raise UserError(
                f"{self.opt.out} holds {run.name} trained with other options: {words} there, {words_now} "
                "now. Give another --out to keep both, or remove that folder"
            )
        self.write_record(run, record)


def run_study(study: Study) -> int:
    """Train, judge and report; exit status 1 if a run failed."""
    with StopSignal() as stop:
        failures = study.work(stop)
        if stop.received:
            study.say("Stopped. The same command continues from here.")
            return stop.exit_status
    study.report(failures)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def in_direction(numbers: Mapping[str, float], direction: str) -> dict[str, float]:
    """Numbers by metric; of another direction than AtoB with it in the name, as "KID BtoA"."""
    return {
        name if direction == "AtoB" else f"{name} {direction}": number for name, number in numbers.items()
    }


def trained_images(folder: Path) -> int:
    """How many images the run in `folder` was trained on, by its saved state; 0 without a readable one."""
    try:
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
        return state["progress"]["images"]
    except Exception:  # torch raises exceptions of every type; train.py reports a damaged state
        return 0


def peak_of(file: Path) -> int | None:
    """The largest of the numbers in a file, one per line; None without any."""
    lines = file.read_text(encoding="ascii").split() if file.is_file() else []
    return max(map(int, lines), default=None)


def call_here(script: str, words: Sequence[str], log: Path) -> bool:
    """Call test.py or scripts/evaluate.py in this process, its output in the log; whether it succeeded."""
    import test as translation  # the project's test.py, which comes before Python's own on the path
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
        except Exception:  # reported as any failure, with its traceback in the log
            traceback.print_exc()
            return False


def last_line(log: Path) -> str:
    """The last line of a log, and which log that is."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return f"{[line for line in lines if line][-1][:300]} ({log})"
