"""The sections of `scripts/gpu/check.py`, each run as: python scripts/gpu/sections.py SECTION RESULT.json OUT [--dataroot D] [--cpu]

A section adds Markdown and numbers to its `Report`, which is saved as it grows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from models import qs_attn
from models.speed import triton_support
from models.textbook import textbook_step
from scripts.gpu.agreement import agreement
from scripts.gpu.bench import Bench, Report, freed

ROOT = Path(__file__).resolve().parents[2]


def environment(bench: Bench, report: Report) -> None:
    found = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    found["triton"] = triton_support.triton.__version__ if triton_support.installed() else "absent"
    if not bench.cpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count}
        found |= {"memory_GB": round(properties.total_memory / 1e9), "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version(), "capability": torch.cuda.get_device_capability()}
    report.data["environment"] = found
    report.table(["what", "found"], [[name, value] for name, value in found.items()])

    def median(operation: Callable[[int], object]) -> float:
        return statistics.median(bench.milliseconds(operation, 3, 2 if bench.cpu else 20))

    count = 2**20 if bench.cpu else 2**30
    buffers = [torch.rand(count, device=bench.device, dtype=torch.float32).bfloat16() for _ in range(3)]
    copy = median(lambda n: buffers[n % 2].copy_(buffers[2]))
    side = 256 if bench.cpu else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    product = median(lambda n: a @ b)
    c, hw = (16, 16) if bench.cpu else (256, 66)
    x = torch.randn(2, c, hw, hw, device=bench.device, dtype=torch.bfloat16).to(
        memory_format=torch.channels_last
    )
    w = torch.randn(c, c, 3, 3, device=bench.device, dtype=torch.bfloat16).to(
        memory_format=torch.channels_last
    )
    conv = median(lambda n: F.conv2d(x, w))
    ceilings = {
        "copy_TB_s": 2 * buffers[0].nbytes / copy / 1e9,
        "bf16_matmul_TFLOP_s": 2 * side**3 / product / 1e9,
        "bf16_residual_conv_TFLOP_s": 2 * 2 * (hw - 2) ** 2 * c * c * 9 / conv / 1e9,
    }
    report.data["ceilings"] = ceilings
    report.say("Ceilings, measured on random data (the convolution is a residual block's, for two images):")
    report.table(["ceiling", "rate"], [[name, f"{value:.3g}"] for name, value in ceilings.items()])


def tests(bench: Bench, report: Report) -> None:
    files = [f"tests/test_{name}.py" for name in ("qs_kernels", "fused", "acceleration", "qs_attn")]
    which = "options or refused or schedules" if bench.cpu else "cuda or gpu"
    # the project's own settings ask for plugins that a bare machine may lack
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
        *(["-n", "8"] if find_spec("xdist") and not bench.cpu else []),  # most of their time is compiling
    ]
    done = subprocess.run(
        [*command, "-k", which, *files], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )
    report.say("```\n" + "\n".join(done.stdout.strip().splitlines()[-25:]) + "\n```")
    if done.returncode:
        raise SystemExit(
            f"pytest ended with status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
        )


# name -> options; the textbook step comes apart from these. Predictions for the H200: docs/performance.md
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
    """Each option by itself and together: time of a step, start-up, memory."""
    textbook = {
        "textbook (TF32 on)": "",
        "textbook, algorithms searched": "",
        "textbook, local": "--QS_mode local",
    }
    variants = {**textbook, **LADDER}
    if bench.cpu:
        variants = {name: variants[name] for name in ("textbook (TF32 on)", "float32", "bf16", "fast, local")}
    _time_variants(bench, report, variants, startup=20)


def compiled(bench: Bench, report: Report) -> None:
    """torch.compile in place of the fused kernels, which takes long to start."""
    variants = {
        "fast": "--fast",
        "compiled": "--fast --compile",
        "float32, compiled": "--channels_last --compile",
    }
    _time_variants(bench, report, variants, startup=100)


def _time_variants(bench: Bench, report: Report, variants: dict[str, str], startup: float) -> None:
    """Time variants, by name and options, while there is time for the `startup` seconds of the next one."""
    rows = report.data.setdefault("rows", {})
    problems = []
    for name, words in variants.items():
        if time.monotonic() > bench.deadline - startup:
            problems.append(f"{name}: no time was left")
            continue
        with freed():
            try:
                model = bench.model(words)
                optimize = model.optimize_parameters
                if name.startswith("textbook"):
                    torch.backends.cudnn.allow_tf32 = True  # as PyTorch ships
                    # as the released code sets it; the search tries algorithms with gigabytes of workspace
                    torch.backends.cudnn.benchmark = "searched" in name
                    optimize = textbook_step(model).optimize_parameters
                batches = bench.batches(8, images=model.opt.batch_size)
                rows[name] = bench.time_training(model, optimize, batches)
                rows[name]["given_up"] = [
                    word
                    for word, working in (
                        ("compile", model.accelerator.passes),
                        ("channels_last", model.accelerator.fused or model.accelerator.passes),
                        ("cuda_graph", model.accelerator.recordings),
                    )
                    if getattr(model.opt, word) and not working
                ]
            except Exception as error:  # the next variant may well work
                problems.append(f"{name}: {type(error).__name__}: {error}")
                print(problems[-1], file=sys.stderr)
            model = optimize = None
        report.save()
    base = rows.get("textbook (TF32 on)", {}).get("ms")
    cells = [
        [
            name,
            f"{r['ms']:.2f}",
            f"{r['p10']:.2f} to {r['p90']:.2f}",
            f"{base / r['ms']:.1f} x" if base else "-",
            f"{r['first_s']:.0f}",
        ]
        + [f"{r['peak_GB']:.2f}", ", ".join(r["given_up"]) or "-"]
        for name, r in rows.items()
    ]
    report.table(
        ["variant", "ms a step", "p10 to p90", "against textbook", "first step, s", "peak GB", "given up"],
        cells,
    )
    if problems:
        raise SystemExit("\n".join(problems))


def choices(bench: Bench, report: Report) -> None:
    """How many of the 256 choices change with precision, and whether the kernels choose as float64 does."""
    images = bench.images("testA", 2 if bench.cpu else 8, bench.size).to(bench.device)
    model = bench.model()
    chosen = 16 if bench.cpu else 256
    encoders = {"tf32": (True, False), "bf16": (False, True)}

    def features(tf32: bool, bf16: bool) -> list[Tensor]:
        torch.backends.cudnn.allow_tf32 = tf32
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16):
            return [f.float() for f in model.netG.encode(images, (12, 16))]

    def ranked(log_entropy: Tensor) -> list[list[int]]:
        return log_entropy.sort(dim=1, stable=True).indices[:, :chosen].tolist()

    exact, rows = features(False, False), []
    for number, layer in enumerate((12, 16)):
        f = exact[number]
        for mode in ("global", "local"):
            base = ranked(qs_attn.log_entropy(f, mode))
            others = {name: features(*how)[number] for name, how in encoders.items()}
            others["rounded to bf16"] = f.bfloat16().float()
            for name, other in others.items():
                new = ranked(qs_attn.log_entropy(other, mode))
                changed = [len(set(p) - set(q)) for p, q in zip(base, new, strict=True)]
                rows.append([layer, mode, name, f"{statistics.mean(changed):.1f}", max(changed)])
            cpu = ranked(qs_attn.log_entropy(f.cpu(), mode))  # plain blocks in float32
            changed = [len(set(p) - set(q)) for p, q in zip(base, cpu, strict=True)]
            rows.append(
                [layer, mode, "plain code on the CPU", f"{statistics.mean(changed):.1f}", max(changed)]
            )
    report.data["changed"] = rows
    source = "photographs of the data set" if bench.dataroot else "smooth noise"
    report.say(
        f"Of {chosen} choices, changed against the float32 encoder; {len(images)} images ({source}), random weights:"
    )
    report.table(["layer", "mode", "compared", "mean", "most"], rows)
    spent = {
        mode: statistics.median(
            bench.milliseconds(lambda n, mode=mode: qs_attn.log_entropy(exact[0][:2], mode), 2, 5)
        )
        for mode in ("global", "local")
    }
    report.data["ranking_ms"] = spent
    report.say(
        "Ranking two images' positions takes "
        + ", ".join(f"{t:.2f} ms ({mode})" for mode, t in spent.items())
        + "."
    )


def benchmark(bench: Bench, report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "benchmark.json"
        command = [sys.executable, "scripts/benchmark.py", "--json", str(result), "--size", "256"]
        command += ["--modes", "global,local", "--steps", "20", "--no_memory", "--fast"]
        if bench.cpu:
            command = [sys.executable, "scripts/benchmark.py", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        report.say("```\n" + done.stdout.strip()[-6000:] + "\n```")
        if result.is_file():
            report.data["benchmark"] = json.loads(result.read_text(encoding="utf-8"))
            report.save()
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command[1:])} ended with status {done.returncode}\n{done.stderr[-3000:]}"
        )


def profile(bench: Bench, report: Report) -> None:
    """Which kernels the step's time goes to, and how much of it is gaps between them."""
    batches = bench.batches(4)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not bench.cpu)
    variants = {"fast": "--fast"} | ({} if bench.cpu else {"eager bf16": "--precision bf16 --channels_last"})
    for name, words in variants.items():
        with freed():
            model = bench.model(words)

            def step(number: int, model=model) -> None:
                model.set_input(batches[number % len(batches)])
                model.optimize_parameters()

            steps = 1 if bench.cpu else 5
            bare = statistics.median(bench.milliseconds(step, 1 if bench.cpu else 8, steps))
            with profiler(activities=activities) as run:
                for number in range(steps):
                    step(number)
                bench.synchronize()
            run.export_chrome_trace(str(bench.out / f"trace_{name.replace(' ', '_')}.json.gz"))
            events = [e for e in run.key_averages() if not getattr(e, "is_user_annotation", False)]
            on_device = [e for e in events if bench.cpu or "CUDA" in str(e.device_type)]
            spent = {
                e.key: (
                    (e.self_cpu_time_total if bench.cpu else e.self_device_time_total) / steps / 1e3,
                    e.count / steps,
                )
                for e in on_device
            }
            busy, launches = sum(t for t, _ in spent.values()), sum(n for _, n in spent.values())
            ranked = sorted(spent.items(), key=lambda item: -item[1][0])
            top = ranked[: 8 if bench.cpu else 25]
            report.data[name] = {"ms": bare, "busy_ms": busy, "launches": launches, "kernels": dict(ranked)}
            report.say(
                f"**{name}**: {bare:.2f} ms a step, kernels {busy:.2f} ms in {launches:.0f} launches; "
                f"gaps about {max(0.0, 1 - busy / bare):.0%}."
            )
            report.table(
                ["kernel", "ms a step", "calls"],
                [[f"`{k[:90]}`", f"{t:.3f}", f"{n:.0f}"] for k, (t, n) in top],
            )
            model = None


def sizes(bench: Bench, report: Report) -> None:
    rows = report.data.setdefault("rows", [])
    cases = [(512, "global"), (512, "local"), (1024, "global"), (1024, "local")]
    bench.steps = min(bench.steps, 10)
    for size, mode in [(64, "global")] if bench.cpu else cases:
        with freed():
            model = bench.model(f"--fast --QS_mode {mode} --crop_size {size} --load_size {size}")
            found = bench.time_training(model, model.optimize_parameters, bench.batches(2, size))
            finite = model.guard.failure(wait=True) is None
            rows.append([size, mode, f"{found['ms']:.1f}", f"{found['peak_GB']:.2f}", finite])
            model = None
        report.save()
    report.table(["side", "mode", "ms a step", "peak GB", "finite"], rows)


def training(bench: Bench, report: Report) -> None:
    """train.py on the data set for one short epoch, and what it makes of test images."""
    if bench.dataroot is None:
        report.say("No data folder was given: bash scripts/gpu_check.sh DATAROOT")
        return
    with tempfile.TemporaryDirectory() as folder:
        words = f"--dataroot {bench.dataroot} --checkpoints_dir {folder} --name gpu_check --n_epochs 1 --n_epochs_decay 0"
        words += " --display_id 0 --no_html --save_epoch_freq 1 --fast " + bench.words
        size = f" --load_size {bench.size} --crop_size {bench.size}" if bench.cpu else ""
        command = [
            sys.executable,
            "train.py",
            *(words + size).split(),
            "--max_dataset_size",
            "4" if bench.cpu else "1000",
        ]
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        report.data["seconds"] = time.monotonic() - begun
        said = [line for line in done.stdout.splitlines() if line.startswith(("(", "End of epoch"))]
        report.say(
            f"{report.data['seconds']:.0f} s with start-up.\n\n```\n" + "\n".join(said[-12:]) + "\n```"
        )
        if done.returncode:
            raise SystemExit(
                f"train.py ended with status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            )
        model = bench.model()
        weights = Path(folder) / "gpu_check" / "latest_net_G.pth"
        model.netG.load_state_dict(torch.load(weights, map_location=bench.device, weights_only=True))
    images = bench.images("testA", 6, bench.size)
    with torch.no_grad():
        made = torch.cat([model.netG(image[None].to(bench.device)).cpu() for image in images])
    grid = torch.cat([torch.cat(list(rows), 2) for rows in (images, made)], 1)  # (3, 2 H, 6 W)
    pixels = ((grid + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(bench.out / "translations.png")
    report.say("Test images above their translations: ![translations](translations.png)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = {
        f.__name__: f
        for f in (
            environment,
            tests,
            ladder,
            compiled,
            agreement,
            choices,
            benchmark,
            profile,
            sizes,
            training,
        )
    }
    parser.add_argument("section", choices=sections)
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataroot", default="")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    if not arguments.cpu and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; --cpu rehearses without one")
    bench = Bench(arguments.dataroot, arguments.cpu, arguments.out)
    bench.deadline = time.monotonic() + arguments.seconds
    report = Report(arguments.result)
    sections[arguments.section](bench, report)
    report.save()


if __name__ == "__main__":
    main()
