"""Verify and measure training on this machine's GPU: python scripts/gpu/check.py [DATAROOT] [OUT_FOLDER] [--cpu]

Each section runs in a process of its own, so that a failing one leaves its error in the report and the rest its numbers;
what they do is in `scripts/gpu/sections.py`. Exit status 1 where a section failed. docs/performance.md explains the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# section -> seconds it may take; in the order of what matters, since the last are left out when time is up
SECTIONS = {
    "environment": 60,
    "tests": 150,
    "ladder": 120,
    "agreement": 130,
    "choices": 60,
    "benchmark": 90,
    "profile": 70,
    "sizes": 90,
    "training": 90,
}
LIMITS = {**SECTIONS, "compiled": 200}  # the last only where --sections names it


def run_section(name: str, arguments: argparse.Namespace, folder: Path, seconds: float) -> dict:
    """Run one section; {"markdown", "data", "seconds", "status": "done", "failed" or "left out"}."""
    if seconds < 10:
        return {"status": "left out", "markdown": "No time was left for it.", "data": {}, "seconds": 0}
    result = folder / f"{name}.json"
    command = [
        sys.executable,
        str(ROOT / "scripts" / "gpu" / "sections.py"),
        name,
        str(result),
        str(arguments.out),
    ]
    command += ["--seconds", f"{seconds:.0f}"]
    command += ["--dataroot", arguments.dataroot] * bool(arguments.dataroot) + ["--cpu"] * arguments.cpu
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), **os.environ, "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
        said, problem = (
            done.stdout + done.stderr,
            f"exit status {done.returncode}" if done.returncode else None,
        )
    except subprocess.TimeoutExpired as expired:
        said = "".join((part or b"").decode(errors="replace") for part in (expired.stdout, expired.stderr))
        problem = f"stopped after {seconds:.0f} s"
    with (arguments.out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"===== {name} =====\n{said}\n")
    # what a section found before it broke off is kept
    report = (
        json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {"markdown": "", "data": {}}
    )
    report |= {"seconds": round(time.monotonic() - begun, 1), "status": "failed" if problem else "done"}
    if problem:
        tail = "\n".join(said.strip().splitlines()[-25:])
        report["markdown"] += f"\n**Failed: {problem}.**\n\n```\n{tail}\n```\n"
    return report


def write_report(out: Path, reports: dict[str, dict], total: float) -> None:
    lines = ["# GPU check", "", f"{total:.0f} s in all. How to read this: docs/performance.md.", ""]
    lines += ["| section | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {report['status']} | {report['seconds']} |" for name, report in reports.items()]
    for name, report in reports.items():
        lines += ["", f"## {name.capitalize()}", "", report["markdown"].strip()]
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "report.json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataroot", nargs="?", default="", help="folder with trainA, trainB, testA, testB")
    parser.add_argument("out", nargs="?", type=Path, default=Path("gpu_check"), help="folder of the report")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU with tiny sizes")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of " + ",".join(LIMITS))
    parser.add_argument("--seconds", type=float, default=465, help="time for all of it")
    arguments = parser.parse_args()
    names = arguments.sections.split(",")
    if unknown := set(names) - set(LIMITS):
        parser.error(f"no section {sorted(unknown)[0]}: there are {', '.join(LIMITS)}")
    if arguments.dataroot:
        arguments.dataroot = str(Path(arguments.dataroot).resolve())
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "log.txt").write_text("", encoding="utf-8")
    begun, reports = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left = arguments.seconds - (time.monotonic() - begun)
            reports[name] = run_section(
                name, arguments, Path(folder), left if arguments.cpu else min(LIMITS[name], left)
            )
            print(f"{name}: {reports[name]['status']} ({reports[name]['seconds']} s)", flush=True)
            write_report(arguments.out, reports, time.monotonic() - begun)
    print((arguments.out / "report.md").read_text(encoding="utf-8")[-9000:])
    return int(any(report["status"] != "done" for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
