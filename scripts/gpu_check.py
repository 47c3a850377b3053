"""Verify and measure training on this machine's GPU, in two calls of under 7 minutes each.

    python scripts/gpu_check.py --part correctness [--out gpu_check]
    python scripts/gpu_check.py --part speed [--out gpu_check]

Correctness: agreement with the textbook step, resuming, the tests that need a GPU. Speed: options, large
images, kernels. Findings are added to PART.md at once; where a check fails its error, and the exit status is
1.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from datasets.make_stripes import make_stripes
from models.speed.step_graph import Snapshot
from models.textbook import TextbookStep
from options.train_options import TrainOptions
from scripts.benchmark import Side, facts_of, format_spread, markdown_table, synthetic_batches, time_steps

LOSSES = ("G", "D_real", "D_fake")
# Options, and how far losses and gradients of G may be from the textbook step's, in the median, relative. A
# graph shows gradients of the first step only, where D's update has the sign of even the smallest gradients.
AGREEMENT = {"": (1e-4, 1e-2), "--channels_last": (1e-4, 1e-2), "--channels_last --cuda_graph": (1e-4, 0.2)}
AGREEMENT |= {"--precision bf16": (3e-2, 0.5), "--fast": (3e-2, 0.8)}
LADDER = (
    "textbook, textbook --QS_mode local, --fast, --fast --QS_mode local, --fast --QS_mode local_global, "
    "--fast --model cut, --fast --batch_size 4, --precision bf16, --precision bf16 --channels_last, "
    "--precision bf16 --cuda_graph, --precision tf32, --precision tf32 --channels_last --cuda_graph, , "
    "--fast --crop_size 512 --load_size 512, --fast --crop_size 512 --load_size 512 --QS_mode local, "
    "--fast --crop_size 1024 --load_size 1024, --fast --crop_size 1024 --load_size 1024 --QS_mode local"
).split(", ")
SPEED_SECONDS = 330  # no row of the ladder begins later


class Check:
    """The device and sizes of the checks, and their report in the folder `out`, named after the part."""

    def __init__(self, out: Path, part: str, cpu: bool):
        self.out, self.path, self.cpu = out, out / f"{part}.md", cpu
        self.device = torch.device("cpu") if cpu else torch.device("cuda", 0)
        self.size, self.steps, self.warm_up = (32, 3, 1) if cpu else (256, 50, 10)
        self.words = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 16 --num_patches 16" if cpu else "--gpu_ids 0"
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text + "\n\n"
        self.path.write_text(self.text, encoding="utf-8")
        print(text, flush=True)

    def side(self, words: str, textbook: bool = False) -> Side:
        """The step, or textbook step, of a model with these options of train.py and fresh weights."""
        size = f"--crop_size {self.size} --load_size {self.size}"
        return Side(TrainOptions().parse(f"{self.words} {size} {words}".split()), textbook)


def agreement(check: Check) -> None:
    """Losses and gradients of steps against those of the textbook step, from the same weights each time."""
    rows, problems = [], []
    for words, (most, most_of_gradient) in AGREEMENT.items():
        if check.cpu and "channels_last" in words:
            continue
        losses, gradients = differences(check.side(words).model, check.steps)
        release_memory()
        median, of_gradient = losses.median().item(), statistics.median(gradients)
        rows.append([words or "float32", f"{median:.1e}", f"{losses.max():.1e}", f"{of_gradient:.1e}"])
        if not (median <= most and of_gradient <= most_of_gradient):
            problems.append(f"{words or 'float32'} disagrees")
    check.say("Relative difference of G, D_real, D_fake and of G's gradient from the textbook step:")
    check.say(markdown_table(["options", "losses, median", "largest", "gradient, median"], rows))
    if problems:
        raise SystemExit("\n".join(problems))


def differences(model, steps: int) -> tuple[Tensor, list[float]]:
    """Relative differences from the textbook step: the largest of the losses (steps,), and G's gradient's."""
    plain = TextbookStep(model)  # on the same parameters, with its own optimisers
    model.accelerator.set_switches()
    torch.manual_seed(1)
    losses, gradients = [], []
    for batch in synthetic_batches(model.opt, model.device, steps):
        model.set_input(batch)
        before = Snapshot(model)
        plain.optimize_parameters()
        expected = torch.stack([plain.losses[name].detach() for name in LOSSES])
        expected_gradients = {p: p.grad for p in model.netG.parameters() if p.grad is not None}
        plain.losses = {}  # no capture would work: their history ties the weights' gradients to this stream
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
    """train.py, stopped and continued, gives the weights of the uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        make_stripes(Path(folder, "data"), check.size, train=6, test=1)
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


def tests(check: Check) -> None:
    """The tests that need CUDA; in a rehearsal a few that do not."""
    files = [f"tests/test_{name}.py" for name in ("qs_kernels", "fused", "acceleration")]
    # without the project's own settings, whose plugins a bare machine may lack
    words = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "--confcutdir", str(ROOT / "tests")]
    words += ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    words += ["-k", "refused"] if check.cpu else ["-m", "gpu"]
    words += ["-n", "8"] if find_spec("xdist") and not check.cpu else []  # most of their time is compiling
    check.say(run_python("-m", "pytest", *words, *files))


def ladder(check: Check) -> None:
    """Each option alone and combined: time of a step, time of the first step, memory."""
    rows, problems, begun = [], [], time.monotonic()
    for words in ["textbook", "", "--fast"] if check.cpu else LADDER:
        if time.monotonic() > begun + SPEED_SECONDS:
            problems.append(f"{words}: no time was left")
            continue
        try:
            side = check.side(words.removeprefix("textbook"), "textbook" in words)
            if not check.cpu:
                torch.cuda.reset_peak_memory_stats()
            steps = min(check.steps, 10) if side.opt.crop_size > 256 else check.steps
            (times,), (first,) = time_steps([side], 1 + check.warm_up, steps)
            peak = 0.0 if check.cpu else torch.cuda.max_memory_allocated() / 1e9
            captured = "yes" if side.model.accelerator.recordings else "no"
            rows.append([words or "float32", format_spread(times), f"{first:.0f}", f"{peak:.2f}", captured])
        except Exception as error:  # the next one may well work
            problems.append(f"{words}: {type(error).__name__}: {error}")
        side = None
        release_memory()
    check.say(markdown_table(["step", "ms per step (quartiles)", "first step, s", "peak GB", "graph"], rows))
    if problems:
        raise SystemExit("\n".join(problems))


def kernels(check: Check) -> None:
    """Which kernels take the time of a step, as a table and as a trace."""
    side, steps = check.side("--fast"), 5
    (times,), _ = time_steps([side], check.warm_up, steps)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not check.cpu)) as run:
        time_steps([side], 0, steps)
    run.export_chrome_trace(str(check.out / "trace.json.gz"))
    order = "self_cpu_time_total" if check.cpu else "self_device_time_total"
    table = run.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=80)
    check.say(f"{format_spread(times)} ms per step without the profiler; {steps} steps with it:")
    check.say(f"```\n{table}\n```")


PARTS = {"correctness": (agreement, resume, tests), "speed": (ladder, kernels)}


def run_python(*words: str) -> str:
    """Run Python in the project's folder: the last lines of its output. SystemExit with them if it fails."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, **pipes)
    said = "```\n" + "\n".join(done.stdout.strip().splitlines()[-30:]) + "\n```"
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}\n\n{said}")
    return said


def release_memory() -> None:
    """Return the memory of deleted models to the device, so that the next measurement starts without it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the report")
    parser.add_argument("--cpu", action="store_true", help="rehearse without a GPU, with tiny sizes")
    options = parser.parse_args(argv)
    if not options.cpu and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --cpu rehearses without one")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    check, failed = Check(out, options.part, options.cpu), []
    check.say(facts_of(check.device))
    for section in PARTS[options.part]:
        check.say(f"## {section.__name__.capitalize()}")
        begun = time.monotonic()
        try:
            section(check)
        except (Exception, SystemExit) as error:  # the next section may well work
            said = error if isinstance(error, SystemExit) else traceback.format_exc(limit=-8)
            check.say(f"**Failed.** {said}")
            failed.append(section.__name__)
        check.say(f"{time.monotonic() - begun:.0f} s")
        release_memory()
    check.say(f"Failed: {', '.join(failed)}." if failed else "All passed.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
