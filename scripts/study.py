"""A study: every configuration trained with every seed, judged, and shown on one page. What it leaves in OUT:

runs/       trainings: checkpoints, logs, and compare.json, the record of what is done
results/    translations and receipts; NAME/test_latest_BtoA has those of the other direction, if any
logs/       what train.py and evaluate.py printed
study.json, index.html
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from data.folders import domain_folders
from options.train_options import TrainOptions
from scripts.configurations import run_options
from scripts.evaluate import option_words
from scripts.significance import study_results
from scripts.study_page import write_page
from util.device import get_device
from util.errors import UserError
from util.files import write_atomically
from util.metrics.receipt import write_receipt
from util.run.checkpoint import STATE_FILE
from util.run.stop_signal import StopSignal
from util.watch.loss_log import read_loss_records

# Status of train.py after SIGTERM: once it has saved, and before it handles signals.
ENDED_BY_US = (128 + signal.SIGTERM, -signal.SIGTERM)
TESTS = {"AtoB": "test_latest", "BtoA": "test_latest_BtoA"}  # direction -> folder in results/NAME
ENDLESS = 10**6  # epochs, if --minutes ends the training
ROOT = Path(__file__).resolve().parent.parent


class Run(NamedTuple):
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
        (self.opt.out / "logs").mkdir(parents=True, exist_ok=True)
        for run in self.runs:
            self.read_record(run)  # refuse a folder of other options
        # What cannot be judged, for want of test images or weights, is found before hours of training.
        self.untranslated = self.judge_sources(stop)
        failures: dict[str, str] = {}
        with ThreadPoolExecutor(self.opt.jobs) as pool:
            runs = {pool.submit(self.complete, run, stop): run for run in self.runs}
            for number, future in enumerate(as_completed(runs), 1):
                run = runs[future]
                if failure := future.result():
                    failures[run.name] = failure
                    say(f"failed: {run.name}: {failure}")
                elif self.is_judged(run):
                    say(f"{run.name}: done ({number} of {len(self.runs)})")
        return failures

    def judge_sources(self, stop: StopSignal) -> dict[str, float]:
        """The numbers of the source images themselves, which a translation must improve on."""
        numbers = {}
        for direction in self.directions:
            sources, targets = domain_folders(self.opt.dataroot, "test", direction)
            receipt = self.opt.out / "results" / "untranslated" / TESTS[direction] / "evaluation.json"
            words = [f"--fake={sources}", f"--real={targets}", f"--receipt={receipt}", self.gpu]
            status, _ = self.run_script("scripts/evaluate.py", words + self.judge_words, "untranslated", stop)
            if status and not stop.received:
                raise UserError(f"the test images cannot be judged: {self.last_line('untranslated')}")
            numbers |= {} if status else read_numbers(receipt, direction)
        masks = Path(self.opt.dataroot, "masks").is_dir()
        return numbers | ({"stripes-gained": 0.0, "stripes-background": 0.0} if masks else {})

    def report(self, failures: Mapping[str, str]) -> None:
        """Write study.json and the page of the runs done so far."""
        opt, rows = self.opt, []
        for run in self.runs:
            record, losses = self.read_record(run), read_loss_records(self.folder(run))
            row = {"name": run.name, "label": run.label, "seed": run.seed, "train": record["train"]}
            row |= {"seconds": record["seconds"], "images": losses[-1].images if losses else 0}
            rows.append({**row, "numbers": self.numbers(run), "failure": failures.get(run.name)})
        results = {"runs": rows, "untranslated": self.untranslated, **study_results(rows)}
        results["published"] = self.published
        device = get_device(opt.gpu_ids)
        write_receipt(opt.out / "study.json", vars(opt), results, device)
        epochs = f"{opt.n_epochs} + {opt.n_epochs_decay} epochs"
        facts = {"data": str(opt.dataroot), "seeds": ", ".join(map(str, opt.seeds))}
        facts["budget of each run"] = f"{opt.minutes:g} minutes" if opt.minutes else epochs
        facts["device"] = f"{device}, {opt.jobs} trainings at a time" if opt.jobs > 1 else str(device)
        facts |= {"preset": opt.preset} if opt.preset else {}
        facts |= {"options of every run": shlex.join(option_words(opt.train))} if opt.train else {}
        write_page(opt.out, self.title, results, facts, opt.samples)
        say(f"{opt.out / 'index.html'}")

    # ---- one run ----

    def complete(self, run: Run, stop: StopSignal) -> str | None:
        """Train, translate and judge, as far as that is not done. None, or what went wrong."""
        record = self.read_record(run)
        if not record["trained"] and not stop.received:
            say(f"{run.name}: training")
            if failure := self.train(run, record, stop):
                return failure
        if not record["trained"] or stop.received or self.is_judged(run):
            return None
        say(f"{run.name}: translating and judging")
        for direction, receipt in self.receipts(run).items():
            words = [*self.place(run), f"--results_dir={self.opt.out / 'results'}", f"--receipt={receipt}"]
            many = self.options[run.label].domains  # they have no direction, but a target
            words += [f"--domain={direction[-1]}" if many else f"--direction={direction}"]
            words += ["--epochs=latest", "--num_threads=0", *self.judge_words]
            status, _ = self.run_script("scripts/evaluate.py", words, run.name, stop)
            if status:
                return None if stop.received else f"evaluate.py failed: {self.last_line(run.name)}"
        self.write_record(run, {**record, "judged": self.judge_words})
        return None

    def train(self, run: Run, record: dict[str, Any], stop: StopSignal) -> str | None:
        """Train from where the run stands, and keep the `record`. None, or what went wrong."""
        state = self.folder(run) / STATE_FILE
        words = [*self.train_words(run), *self.place(run), "--display_id=0"]
        words += ["--continue_train"] if state.is_file() else []
        if "num_threads" not in self.given[run.label]:  # batches do not depend on it
            words += [f"--num_threads={min(self.options[run.label].num_threads, self.cores())}"]
        limit = None if self.opt.minutes is None else 60 * self.opt.minutes - record["seconds"]
        self.write_record(run, record)
        began = time.monotonic()
        status, out_of_time = self.run_script("train.py", words, run.name, stop, limit)
        record["seconds"] += time.monotonic() - began
        record["trained"] = status == 0 or (out_of_time and status in ENDED_BY_US and state.is_file())
        self.write_record(run, record)
        if record["trained"] or stop.received:
            return None
        return f"training ended with status {status}: {self.last_line(run.name)}"

    def run_script(
        self, script: str, words: Sequence[str], name: str, stop: StopSignal, limit: float | None = None
    ) -> tuple[int, bool]:
        """Run a script, its output in logs/NAME.log; trainings side by side share the cores."""
        threads = {"OMP_NUM_THREADS": str(self.cores())} if self.opt.jobs > 1 else {}
        command = [sys.executable, str(ROOT / script), *words]
        return run_command(command, self.log(name), stop, limit, {**threads, **os.environ})

    def cores(self) -> int:
        """A training's share of the cores that this process may use."""
        affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return max(1, cores // self.opt.jobs)

    # ---- what is kept of a run ----

    def folder(self, run: Run) -> Path:
        return self.opt.out / "runs" / run.name

    def place(self, run: Run) -> list[str]:
        """Where the run lies and computes, as words."""
        return [f"--name={run.name}", f"--checkpoints_dir={self.opt.out / 'runs'}", self.gpu]

    def log(self, name: str) -> Path:
        return self.opt.out / "logs" / f"{name}.log"

    def last_line(self, name: str) -> str:
        """The last line of a log, and which log that is."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1][:300]} ({self.log(name)})"

    def receipts(self, run: Run) -> dict[str, Path]:
        """The file of its evaluation, by direction."""
        results = self.opt.out / "results" / run.name
        return {direction: results / TESTS[direction] / "evaluation.json" for direction in self.directions}

    def is_judged(self, run: Run) -> bool:
        """Whether its numbers by the options of judging are there."""
        judged = self.read_record(run)["judged"] == self.judge_words
        return judged and all(file.is_file() for file in self.receipts(run).values())

    def numbers(self, run: Run) -> dict[str, float] | None:
        """The numbers of its evaluations; None before they are there."""
        if not self.is_judged(run):
            return None
        found = {}
        for direction, file in self.receipts(run).items():
            found |= read_numbers(file, direction)
        return found

    def read_record(self, run: Run) -> dict[str, Any]:
        """compare.json: the training's options and minutes, its seconds so far, and what is done.

        `UserError` if the folder holds a run of other options or of another budget.
        """
        path = self.folder(run) / "compare.json"
        record = {"train": shlex.join(self.train_words(run)), "minutes": self.opt.minutes}
        if not path.is_file():
            return {**record, "seconds": 0.0, "trained": False, "judged": None}
        try:
            found = json.loads(path.read_text("utf-8"))
            words, words_now = (f"{r['train']} for {r['minutes'] or 'any'} minutes" for r in (found, record))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): remove that run's folder") from None
        if words != words_now:
            raise UserError(
                f"{self.opt.out} holds {run.name} trained with other options: {words} there, {words_now} "
                "now. Give another --out to keep both, or remove that folder"
            )
        return found

    def write_record(self, run: Run, record: Mapping[str, Any]) -> None:
        self.folder(run).mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(self.folder(run) / "compare.json", lambda path: path.write_text(text))


def run_study(study: Study) -> int:
    """Train, judge and report; exit status 1 if a run failed."""
    with StopSignal() as stop:
        failures = study.work(stop)
        if stop.received:
            say("Stopped. The same command continues from here.")
            return stop.exit_status
    study.report(failures)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run_command(
    words: Sequence[str],
    log: Path,
    stop: StopSignal,
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, bool]:
    """Run `words` to the end; on `stop` or after `limit` seconds send SIGTERM once, and wait for the end.

    The command and its output are appended to `log`. Returns the exit status, negative for the signal that
    killed the program, and whether it ran out of time.
    """
    began, out_of_time, asked = time.monotonic(), False, False
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {shlex.join(words)}\n")
        file.flush()
        # In a session of its own: Ctrl-C in the terminal reaches it only once, from here.
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.2), out_of_time
            out_of_time = out_of_time or (limit is not None and time.monotonic() - began > limit)
            if not asked and (stop.received or out_of_time):
                process.terminate()
                asked = True


def read_numbers(receipt: Path, direction: str) -> dict[str, float]:
    """The numbers of a receipt; of another direction than AtoB with it in the name, as "KID BtoA"."""
    found = json.loads(receipt.read_text("utf-8"))
    numbers = found["checkpoints"][0]["numbers"] if "checkpoints" in found else found["numbers"]
    end = "" if direction == "AtoB" else f" {direction}"
    return {name + end: number for name, number in numbers.items()}


def say(text: str) -> None:
    # One write for text and line end, since several threads print.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
