"""The sections of `scripts/gpu/check.py`, each of which runs as a command:

    python scripts/gpu/sections.py SECTION RESULT.json OUT [--dataroot DATAROOT] [--cpu]

A section adds Markdown and numbers to its `Report`, which is saved with every addition.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from models import qs_attn
from models.speed.triton_support import trials
from models.weights import load_weights
from scripts.benchmark import Side
from scripts.gpu.agreement import agreement
from scripts.gpu.bench import Bench, Report
from scripts.measuring import back_to_back, release_memory, seconds
from util.images import to_pixels
from util.metrics.receipt import versions_and_hardware

ROOT = Path(__file__).resolve().parents[2]


def environment(bench: Bench, report: Report) -> None:
    """Versions, hardware, and the rates that bound everything below."""
    machine = report.data["environment"] = versions_and_hardware(bench.device)
    facts = {**machine["versions"], **machine["hardware"]}
    report.table(
        ["what", "found"], [[name, "absent" if value is None else value] for name, value in facts.items()]
    )

    def median(operation) -> float:
        """Milliseconds."""
        return 1e3 * statistics.median(back_to_back(operation, 3, 2 if bench.cpu else 20, bench.device))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=bench.device, dtype=torch.bfloat16)

    buffers = [random(2**20 if bench.cpu else 2**30) for _ in range(3)]
    copy = median(lambda n: buffers[n % 2].copy_(buffers[2]))
    side = 256 if bench.cpu else 8192
    a, b = random(side, side), random(side, side)
    product = median(lambda n: a @ b)
    c, hw = (16, 16) if bench.cpu else (256, 66)
    x = random(2, c, hw, hw).to(memory_format=torch.channels_last)
    w = random(c, c, 3, 3).to(memory_format=torch.channels_last)
    convolution = median(lambda n: F.conv2d(x, w))
    ceilings = {
        "copy_TB_s": 2 * buffers[0].nbytes / copy / 1e9,
        "bf16_matmul_TFLOP_s": 2 * side**3 / product / 1e9,
        "bf16_residual_conv_TFLOP_s": 2 * 2 * (hw - 2) ** 2 * c * c * 9 / convolution / 1e9,
    }
    report.data["ceilings"] = ceilings
    report.say("Ceilings on random data (the convolution is that of a residual block, for two images):")
    report.table(["ceiling", "rate"], [[name, f"{value:.3g}"] for name, value in ceilings.items()])


def tests(bench: Bench, report: Report) -> None:
    """The tests that need CUDA; in a rehearsal a few that do not."""
    names = ("qs_kernels", "fused", "acceleration", "qs_attn")
    files = [f"tests/test_{name}.py" for name in names]
    which = "options or refused or schedules" if bench.cpu else "cuda or gpu"
    # Without the project's own settings, which need plugins that a bare machine may lack.
    words = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    # Most of their time is compiling.
    words += ["-n", "8"] if find_spec("xdist") and not bench.cpu else []
    done = _run([*words, "-k", which, *files])
    report.say(_quoted(done.stdout.strip().splitlines()[-25:]))
    _require_success(done)


# Name -> options. Predictions for the H200: docs/performance.md.
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
}


def ladder(bench: Bench, report: Report) -> None:
    """Each option alone and combined: time of a step, start-up, memory."""
    variants = {**TEXTBOOK, **LADDER}
    if bench.cpu:
        variants = {name: variants[name] for name in ("textbook (TF32 on)", "float32", "bf16", "fast, local")}
    _time_variants(bench, report, variants, startup=20)


def _time_variants(bench: Bench, report: Report, variants: dict[str, str], startup: float) -> None:
    """Time variants, by name and options, while there is time for the `startup` seconds of the next one."""
    rows = report.data.setdefault("rows", {})
    problems = []
    for name, words in variants.items():
        if time.monotonic() > bench.deadline - startup:
            report.data.setdefault("not run", []).append(name)
            continue
        try:
            rows[name] = _time_variant(bench, name, words)
        except Exception as error:  # the next variant may well work
            problems.append(f"{name}: {type(error).__name__}: {error}")
            print(problems[-1], file=sys.stderr)
        release_memory()
        report.save()
    base = rows.get("textbook (TF32 on)", {}).get("ms", {}).get("median")
    cells = []
    for name, row in rows.items():
        ms = row["ms"]
        times = [f"{ms['median']:.2f}", f"{ms['low']:.2f} to {ms['high']:.2f}"]
        times += [f"{base / ms['median']:.1f} x" if base else "-", f"{row['first_s']:.0f}"]
        cells.append([name, *times, f"{row['peak_GB']:.2f}", ", ".join(row["given_up"]) or "-"])
    head = ["variant", "ms per step", "quartiles", "against textbook", "first step, s", "peak GB", "given up"]
    report.table(head, cells)
    if problems:
        raise SystemExit("\n".join(problems))


def _time_variant(bench: Bench, name: str, words: str) -> dict:
    """One row: `Bench.time_training`, and the speed options that did not work on this machine."""
    # The search tries algorithms with gigabytes of workspace.
    side = bench.side(words, "plain" if name in TEXTBOOK else "fast", search="searched" in name)
    row = bench.time_training(side, bench.batches(8, images=side.opt.batch_size))
    accelerator = side.model.accelerator
    working = {
        "channels_last": accelerator.fused,
        "cuda_graph": accelerator.recordings,
    }
    row["given_up"] = [option for option, found in working.items() if getattr(side.opt, option) and not found]
    row["given_up"] += sorted(trials.failed)
    return row


def choices(bench: Bench, report: Report) -> None:
    """How many of the 256 choices change with precision, and whether the kernels choose as float64 does."""
    images = bench.images("testA", 2 if bench.cpu else 8, bench.size).to(bench.device)
    netG = bench.side().model.netG
    count = 16 if bench.cpu else 256
    encoders = {"tf32": (True, False), "bf16": (False, True)}

    def features(tf32: bool, bf16: bool) -> list[Tensor]:
        torch.backends.cudnn.allow_tf32 = tf32
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16):
            return [f.float() for f in netG.encode(images, (12, 16))]

    def chosen(features: Tensor, mode: str) -> list[set[int]]:
        log_entropy = qs_attn.log_entropy(features, mode)
        return [set(row) for row in log_entropy.sort(dim=1, stable=True).indices[:, :count].tolist()]

    exact, others = features(False, False), {name: features(*how) for name, how in encoders.items()}
    others["rounded to bf16"] = [f.bfloat16().float() for f in exact]
    others["plain code on the CPU"] = [f.cpu() for f in exact]  # in float32, block by block
    rows = []
    for number, layer in enumerate((12, 16)):
        for mode in ("global", "local"):
            base = chosen(exact[number], mode)
            for name, other in others.items():
                pairs = zip(base, chosen(other[number], mode), strict=True)
                changed = [len(before - after) for before, after in pairs]
                rows.append([layer, mode, name, f"{statistics.mean(changed):.1f}", max(changed)])
    report.data["changed"] = rows
    source = "photographs of the data set" if bench.dataroot else "smooth noise"
    title = f"Of {count} choices, changed against the float32 encoder; {len(images)} images ({source})"
    report.say(f"{title}, random weights:")
    report.table(["layer", "mode", "compared", "mean", "largest"], rows)
    spent = report.data["ranking_ms"] = {}
    for mode in ("global", "local"):
        times = back_to_back(lambda n, mode=mode: qs_attn.log_entropy(exact[0][:2], mode), 2, 5, bench.device)
        spent[mode] = 1e3 * statistics.median(times)
    times = ", ".join(f"{ms:.2f} ms ({mode})" for mode, ms in spent.items())
    report.say(f"Ranking the positions of two images takes {times}.")


def benchmark(bench: Bench, report: Report) -> None:
    """`scripts/benchmark.py`, both sides in turn."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "benchmark.json"
        words = f"--json {result} --size 256 --modes global,local --steps 20 --no_memory --fast".split()
        done = _run(["scripts/benchmark.py", *(["--help"] if bench.cpu else words)])
        report.say(_quoted([done.stdout.strip()[-6000:]]))
        if result.is_file():
            report.data["benchmark"] = json.loads(result.read_text(encoding="utf-8"))
            report.save()
    _require_success(done)


def profile(bench: Bench, report: Report) -> None:
    """Which kernels take the time of a step, and how much of it is gaps between them."""
    variants = {"fast": "--fast"} | ({} if bench.cpu else {"eager bf16": "--precision bf16 --channels_last"})
    for name, words in variants.items():
        _profile_variant(bench, report, name, bench.side(words))
        release_memory()


def _profile_variant(bench: Bench, report: Report, name: str, side: Side) -> None:
    batches = bench.batches(4)

    def step(number: int) -> None:
        side.step(batches[number % len(batches)])

    steps = 1 if bench.cpu else 5
    bare = 1e3 * statistics.median(back_to_back(step, 1 if bench.cpu else 8, steps, bench.device))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not bench.cpu)
    with profiler(activities=activities) as run:
        seconds(lambda: [step(number) for number in range(steps)], bench.device)
    run.export_chrome_trace(str(bench.out / f"trace_{name.replace(' ', '_')}.json.gz"))
    spent = {}
    for event in run.key_averages():
        if getattr(event, "is_user_annotation", False) or not (bench.cpu or "CUDA" in str(event.device_type)):
            continue
        total = event.self_cpu_time_total if bench.cpu else event.self_device_time_total
        spent[event.key] = (total / steps / 1e3, event.count / steps)
    busy, launches = sum(ms for ms, _ in spent.values()), sum(count for _, count in spent.values())
    ranked = sorted(spent.items(), key=lambda item: -item[1][0])
    report.data[name] = {"ms": bare, "busy_ms": busy, "launches": launches, "kernels": dict(ranked)}
    report.say(
        f"**{name}**: {bare:.2f} ms per step, kernels {busy:.2f} ms in {launches:.0f} launches; "
        f"gaps about {max(0.0, 1 - busy / bare):.0%}."
    )
    top = ranked[: 8 if bench.cpu else 25]
    rows = [[f"`{kernel[:90]}`", f"{ms:.3f}", f"{count:.0f}"] for kernel, (ms, count) in top]
    report.table(["kernel", "ms per step", "calls"], rows)


def sizes(bench: Bench, report: Report) -> None:
    """Training at 512 and 1024 pixels."""
    rows = report.data.setdefault("rows", [])
    cases = [(512, "global"), (512, "local"), (1024, "global"), (1024, "local")]
    bench.steps = min(bench.steps, 10)
    for size, mode in [(64, "global")] if bench.cpu else cases:
        side = bench.side(f"--fast --QS_mode {mode} --crop_size {size} --load_size {size}")
        found = bench.time_training(side, bench.batches(2, size))
        finite = side.model.guard.failure(wait=True) is None
        rows.append([size, mode, f"{found['ms']['median']:.1f}", f"{found['peak_GB']:.2f}", finite])
        del side
        release_memory()
        report.save()
    report.table(["side", "mode", "ms per step", "peak GB", "finite"], rows)


def training(bench: Bench, report: Report) -> None:
    """train.py on the data set for one short epoch, and translations of test images."""
    if bench.dataroot is None:
        report.say("No data folder was given: bash scripts/gpu_check.sh DATAROOT")
        return
    netG = bench.side().model.netG
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "train.py",
            "--dataroot",
            str(bench.dataroot),
            "--checkpoints_dir",
            folder,
            *bench.words.split(),
        ]
        words += "--name gpu_check --n_epochs 1 --n_epochs_decay 0 --display_id 0 --no_html --fast".split()
        words += ["--max_dataset_size", "4" if bench.cpu else "1000"]
        words += ["--load_size", str(bench.size), "--crop_size", str(bench.size)] if bench.cpu else []
        begun = time.monotonic()
        done = _run(words)
        report.data["seconds"] = time.monotonic() - begun
        said = [line for line in done.stdout.splitlines() if line.startswith(("(", "End of epoch"))]
        report.say(f"{report.data['seconds']:.0f} s with start-up.\n\n{_quoted(said[-12:])}")
        _require_success(done)
        load_weights(netG, Path(folder) / "gpu_check" / "latest_net_G.pth")
    images = bench.images("testA", 6, bench.size)
    with torch.no_grad():
        made = torch.cat([netG(image[None].to(bench.device)).cpu() for image in images])
    rows = [torch.cat(list(row), 2) for row in (images, made)]  # (3, H, 6 W) each
    pixels = to_pixels(torch.cat(rows, 1)[None])[0].numpy()  # (2 H, 6 W, 3)
    Image.fromarray(pixels).save(bench.out / "translations.png")
    report.say("Test images above their translations: ![translations](translations.png)")


def _run(words: list[str]) -> subprocess.CompletedProcess:
    """A Python command in the project's folder, its output kept."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )


def _require_success(done: subprocess.CompletedProcess) -> None:
    if done.returncode:
        problem = f"{' '.join(done.args[1:])} ended with status {done.returncode}"
        raise SystemExit(f"{problem}\n{done.stdout[-4000:]}\n{done.stderr[-3000:]}")


def _quoted(lines: list[str]) -> str:
    return "\n".join(["```", *lines, "```"])


SECTIONS = (environment, tests, ladder, agreement, choices)
SECTIONS += (benchmark, profile, sizes, training)


def main() -> None:
    sections = {section.__name__: section for section in SECTIONS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=sections)
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataroot", default="")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; --cpu rehearses without one")
    report = Report(options.result)
    bench = Bench(options.dataroot, options.cpu, options.out, options.seconds)
    sections[options.section](bench, report)
    report.save()


if __name__ == "__main__":
    main()
