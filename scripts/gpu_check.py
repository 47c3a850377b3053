"""Verify and measure training on this machine's GPU, in two calls of under 7 minutes each.

    python scripts/gpu_check.py --part correctness [--out gpu_check]
    python scripts/gpu_check.py --part speed [--out gpu_check]

Correctness: the tests that need a GPU; losses and gradients against the textbook step; stopped and continued
trainings, also under another memory layout. Speed: the options one by one and together, large images, the
textbook and the training step in turn, and the kernels of a step. Each finding is added to PART.md at
once, and a check that fails leaves its error there; exit status 1 if one failed. --cpu rehearses without a
GPU, with tiny networks and images. Needs torch, Triton, pytest, hypothesis and no network.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from models.speed.step_graph import Snapshot
from models.speed.triton_support import trials
from models.textbook import TextbookStep
from options.train_options import TrainOptions
from scripts.measuring import Side, back_to_back, markdown_table, release_memory, seconds, spread
from util.metrics.receipt import versions_and_hardware

LOSSES = ("G", "D_real", "D_fake")
# Options, and how far losses and gradients of G may be from the textbook step's, in the median, relative. A
# graph shows gradients of the first step only, where D's update has the sign of even the smallest gradients.
AGREEMENT = {
    "": (1e-4, 1e-2),
    "--channels_last": (1e-4, 1e-2),
    "--channels_last --cuda_graph": (1e-4, 0.2),
    "--precision bf16": (3e-2, 0.5),
    "--fast": (3e-2, 0.8),
}
TEXTBOOK = {
    "textbook (TF32 on)": "",
    "textbook, algorithms searched": "",
    "textbook, local": "--QS_mode local",
}
LADDER = {
    "fast": "--fast",
    "fast, local": "--fast --QS_mode local",
    "fast, local_global": "--fast --QS_mode local_global",
    "fast, cut": "--fast --model cut",
    "fast, batch 4": "--fast --batch_size 4",
    "bf16": "--precision bf16",
    "bf16, channels last": "--precision bf16 --channels_last",
    "bf16, graph": "--precision bf16 --cuda_graph",
    "tf32": "--precision tf32",
    "tf32, channels last, graph": "--precision tf32 --channels_last --cuda_graph",
    "float32": "",
    **{
        f"fast, {mode}, {size} pixels": f"--fast --QS_mode {mode} --crop_size {size} --load_size {size}"
        for size in (512, 1024)
        for mode in ("global", "local")
    },
}
ROW_SECONDS = 20  # what starting and timing one row may take


class Check:
    """The device and sizes of a part, and its report.

    Args:
        out: folder of the report and of traces.
        part: names the report.
        cpu: a rehearsal without a GPU, with tiny networks and images.
        limit: seconds for the part; what is begun late is left out and named.
    """

    def __init__(self, out: Path, part: str, cpu: bool, limit: float):
        self.out, self.path, self.cpu = out, out / f"{part}.md", cpu
        self.deadline = time.monotonic() + limit
        self.device = torch.device("cpu") if cpu else torch.device("cuda", 0)
        self.size, self.steps = (32, 2) if cpu else (256, 50)
        self.words = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 16 --num_patches 16" if cpu else "--gpu_ids 0"
        self.text = ""

    def say(self, text: str) -> None:
        """Add a paragraph to the report."""
        self.text += text + "\n\n"
        self.path.write_text(self.text, encoding="utf-8")
        print(text, flush=True)

    def table(self, head: list[str], rows: list[list]) -> None:
        """Add a Markdown table to the report."""
        self.say(markdown_table(head, rows))

    def side(self, words: str = "", name: str = "fast", search: bool = True) -> Side:
        """The step of a model with these options of train.py, with fresh weights."""
        size = f"--crop_size {self.size} --load_size {self.size}"
        return Side(name, TrainOptions().parse(f"{self.words} {size} {words}".split()), search)

    def batches(self, count: int, size: int, images: int = 1) -> list[dict[str, Tensor]]:
        """Batches of smooth noise on the device, so that loading is not timed."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(count):
            noise = torch.rand(2 * images, 3, size // 8, size // 8, generator=generator) * 2 - 1
            smooth = F.interpolate(noise, size=(size, size), mode="bicubic").clamp(-1, 1).to(self.device)
            found.append({"A": smooth[:images], "B": smooth[images:]})
        return found


# ---- correctness ----


def tests(check: Check) -> None:
    """The tests that need CUDA; in a rehearsal a few that do not."""
    files = [f"tests/test_{name}.py" for name in ("qs_kernels", "fused", "acceleration")]
    # without the project's own settings, whose plugins a bare machine may lack
    words = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "--confcutdir", str(ROOT / "tests")]
    words += ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    words += ["-k", "refused"] if check.cpu else ["-m", "gpu"]
    words += ["-n", "8"] if find_spec("xdist") and not check.cpu else []  # most of their time is compiling
    check.say(run_python("-m", "pytest", *words, *files))


def agreement(check: Check) -> None:
    """Losses and gradients of steps against those of the textbook step, from the same weights each time."""
    steps = 3 if check.cpu else 60
    rows, problems = [], []
    for words, (most, most_of_gradient) in AGREEMENT.items():
        if check.cpu and "channels_last" in words:
            continue
        losses, gradients = differences(check.side(words).model, check.batches(steps, check.size))
        release_memory()
        median, of_gradient = losses.median().item(), statistics.median(gradients)
        rows.append([words or "float32", f"{median:.1e}", f"{losses.max():.1e}", f"{of_gradient:.1e}"])
        if not (median <= most and of_gradient <= most_of_gradient):
            problems.append(f"{words or 'float32'} disagrees")
    check.say("Relative difference of G, D_real, D_fake and of G's gradient from the textbook step:")
    check.table(["options", "losses, median", "largest", "gradient, median"], rows)
    if problems:
        raise SystemExit("\n".join(problems))


def differences(model, batches: list[dict]) -> tuple[Tensor, list[float]]:
    """Relative differences from the textbook step: the largest of the losses (steps,), and G's gradient's."""
    plain = TextbookStep(model)  # on the same parameters, with its own optimisers
    model.accelerator.set_switches()
    torch.manual_seed(1)
    losses, gradients = [], []
    for batch in batches:
        model.set_input(batch)
        before = Snapshot(model)
        plain.optimize_parameters()
        expected = torch.stack([plain.losses[name].detach() for name in LOSSES])
        expected_gradients = {p: p.grad for p in model.netG.parameters() if p.grad is not None}
        plain.losses = {}  # their history ties the weights' gradients to this stream: no capture would work
        before.restore()  # without gradients
        model.optimize_parameters()
        found = torch.stack([model.losses[name].detach().float() for name in LOSSES])
        losses.append(((found - expected).abs() / expected.abs().clamp_min(1e-3)).amax())
        pairs = [(p.grad.float(), wanted) for p, wanted in expected_gradients.items() if p.grad is not None]
        if pairs:  # a graph leaves gradients in place only where it was captured
            off = sum((grad - wanted).square().sum() for grad, wanted in pairs).sqrt()
            gradients.append((off / sum(wanted.square().sum() for _, wanted in pairs).sqrt()).item())
    if model.opt.cuda_graph and not model.accelerator.recordings:
        raise SystemExit("the step was not captured")
    return torch.stack(losses).cpu(), gradients


def resume(check: Check) -> None:
    """train.py, stopped and continued, gives the weights of the uninterrupted run; layouts may change."""
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0)
        for domain in "AB":
            Path(folder, "data", f"train{domain}").mkdir(parents=True)
            for number in range(6):
                pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((check.size, check.size))
                image.save(Path(folder, "data", f"train{domain}", f"{number}.png"))

        settings = f"--dataroot {folder}/data --checkpoints_dir {folder} --display_id 0 --no_html --seed 1 "
        settings += f"--num_threads 2 --crop_size {check.size} --load_size {check.size} {check.words}"

        def train(name: str, steps: int, words: str) -> dict[str, Tensor]:
            run_python("train.py", *f"{settings} --name {name} --n_iterations {steps} {words}".split())
            return torch.load(Path(folder, name, "latest_net_G.pth"), weights_only=True)

        for name, words in (("plain", ""), ("fast", "--fast --deterministic")):
            whole = train(f"whole_{name}", 6, words)
            train(name, 3, words)
            continued = train(name, 6, "--continue_train")
            equal = all(torch.equal(whole[key], continued[key]) for key in whole)
            check.say(f"Continued after 3 of 6 steps, {name}: weights {'equal' if equal else 'DIFFER'}.")
            if not equal and (name == "fast" or check.cpu):
                raise SystemExit("a continued run is not the uninterrupted one")
        # the last run's layout, then another, then its own again
        for words in ("--channels_last false --cuda_graph false", "--channels_last"):
            steps = 9 if "false" in words else 12
            made = train("fast", steps, f"--continue_train {words}")
            if not all(weight.isfinite().all() for weight in made.values()):
                raise SystemExit(f"weights are not finite after {words}")
        check.say("Continued with another memory layout, there and back.")


# ---- speed ----


def environment(check: Check) -> None:
    """Versions and hardware."""
    machine = versions_and_hardware(check.device)
    facts = {**machine["versions"], **machine["hardware"]}
    check.table(["what", "found"], [[name, value] for name, value in facts.items() if value is not None])


def ladder(check: Check) -> None:
    """Each option alone and combined: time of a step, start-up, memory, what did not work here."""
    variants = {**TEXTBOOK, **LADDER}
    if check.cpu:
        variants = {name: variants[name] for name in ("textbook (TF32 on)", "float32", "fast, local")}
    rows, problems, base = [], [], None
    for name, words in variants.items():
        if time.monotonic() > check.deadline - ROW_SECONDS:
            problems.append(f"{name}: no time was left")
            continue
        try:
            times, first, peak, given_up = time_variant(check, name, words)
        except Exception as error:  # the next variant may well work
            problems.append(f"{name}: {type(error).__name__}: {error}")
            continue
        finally:
            release_memory()
        base = base or times["median"]
        cells = [f"{times['median']:.2f}", f"{times['low']:.2f} to {times['high']:.2f}"]
        cells += [
            f"{base / times['median']:.1f} x",
            f"{first:.0f}",
            f"{peak:.2f}",
            ", ".join(given_up) or "-",
        ]
        rows.append([name, *cells])
    head = ["variant", "ms per step", "quartiles", "against textbook", "first step, s", "peak GB", "given up"]
    check.table(head, rows)
    if problems:
        raise SystemExit("\n".join(problems))


def time_variant(check: Check, name: str, words: str) -> tuple[dict, float, float, list[str]]:
    """Spread of ms per step, seconds of the first step, peak memory in GB, and options that did not work."""
    # a search for algorithms tries some with gigabytes of workspace
    side = check.side(words, "plain" if name in TEXTBOOK else "fast", search="searched" in name)
    batches = check.batches(2 if side.opt.crop_size > 256 else 8, side.opt.crop_size, side.opt.batch_size)
    if not check.cpu:
        torch.cuda.reset_peak_memory_stats()

    def step(number: int) -> None:
        side.step(batches[number % len(batches)])

    first = seconds(lambda: step(0), check.device)
    steps = min(check.steps, 10) if side.opt.crop_size > 256 else check.steps
    times = back_to_back(step, 1 if check.cpu else 10, steps, check.device)
    peak = 0.0 if check.cpu else torch.cuda.max_memory_allocated() / 1e9
    accelerator = side.model.accelerator
    working = {"channels_last": accelerator.fused, "cuda_graph": accelerator.recordings}
    given_up = [option for option, found in working.items() if getattr(side.opt, option) and not found]
    return spread(times), first, peak, given_up + sorted(trials.failed)


def benchmark(check: Check) -> None:
    """`scripts/benchmark.py`, both sides in turn."""
    words = "--modes global,local --steps 20 --no_memory --fast".split()
    check.say(run_python("scripts/benchmark.py", *(["--help"] if check.cpu else words)))


def kernels(check: Check) -> None:
    """Which kernels take the time of a step, and how much of it is gaps between them."""
    side, batches = check.side("--fast"), check.batches(4, check.size)

    def step(number: int) -> None:
        side.step(batches[number % len(batches)])

    steps = 1 if check.cpu else 5
    bare = 1e3 * statistics.median(back_to_back(step, 1 if check.cpu else 8, steps, check.device))
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not check.cpu)) as run:
        seconds(lambda: [step(number) for number in range(steps)], check.device)
    run.export_chrome_trace(str(check.out / "trace.json.gz"))
    spent = {}
    for event in run.key_averages():
        if not getattr(event, "is_user_annotation", False) and (
            check.cpu or "CUDA" in str(event.device_type)
        ):
            total = event.self_cpu_time_total if check.cpu else event.self_device_time_total
            spent[event.key] = (total / steps / 1e3, event.count / steps)
    busy, launches = (sum(values) for values in zip(*spent.values(), strict=True))
    gaps = max(0.0, 1 - busy / bare)
    check.say(
        f"{bare:.2f} ms per step; kernels {busy:.2f} ms in {launches:.0f} launches; gaps about {gaps:.0%}."
    )
    ranked = sorted(spent.items(), key=lambda item: -item[1][0])[:25]
    rows = [[f"`{kernel[:90]}`", f"{ms:.3f}", f"{count:.0f}"] for kernel, (ms, count) in ranked]
    check.table(["kernel", "ms per step", "calls"], rows)


PARTS = {
    "correctness": (agreement, resume, tests),
    "speed": (environment, ladder, benchmark, kernels),
}


def run_python(*words: str) -> str:
    """Run Python in the project's folder: the last lines of its output. SystemExit with them if it fails."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = "```\n" + "\n".join(done.stdout.strip().splitlines()[-30:]) + "\n```"
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}\n\n{said}")
    return said


def failures_of(check: Check, sections: tuple) -> Iterator[str]:
    """Run the sections; the names of those that fail."""
    for section in sections:
        check.say(f"## {section.__name__.capitalize()}")
        begun = time.monotonic()
        try:
            section(check)
        except (Exception, SystemExit) as error:  # the next section may well work
            said = error if isinstance(error, SystemExit) else traceback.format_exc(limit=-8)
            check.say(f"**Failed.** {said}")
            yield section.__name__
        check.say(f"{time.monotonic() - begun:.0f} s")
        release_memory()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the report")
    parser.add_argument("--cpu", action="store_true", help="rehearse without a GPU, with tiny sizes")
    parser.add_argument("--seconds", type=float, default=400, help="time for the part")
    options = parser.parse_args(argv)
    if not options.cpu and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --cpu rehearses without one")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    check = Check(out, options.part, options.cpu, options.seconds)
    failed = list(failures_of(check, PARTS[options.part]))
    check.say(f"Failed: {', '.join(failed)}." if failed else "All passed.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
