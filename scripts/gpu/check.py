"""Verify and measure training on this machine's GPU.

    python scripts/gpu/check.py [DATAROOT] [OUT_FOLDER] [--cpu]

Each section (`scripts/gpu/sections.py`) runs in a process of its own: a failing section leaves its error in
the report, and the others their numbers. Exit status 1 if a section failed; lack of time is
reported and is no failure. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.measuring import markdown_table

# Section -> seconds kept for it, the most important first. They add up to the default of --seconds.
SECTIONS = {
    "environment": 20, "tests": 90, "ladder": 135, "agreement": 120, "choices": 20,
    "benchmark": 50, "profile": 40, "sizes": 40, "training": 40,
}  # fmt: skip
LIMITS = SECTIONS


def seconds_for(names: list[str], left: float) -> float:
    """What the first of the sections `names` may take of `left` seconds: all but what later ones need.

    If less is left than is kept for all of them, each gets its share.
    """
    first, after = LIMITS[names[0]], sum(LIMITS[name] for name in names[1:])
    return max(left - after, left * first / (first + after))


def run_section(name: str, options: argparse.Namespace, folder: Path, limit: float) -> dict:
    """Run one section: {"markdown", "data", "seconds", "status"}.

    The status is "done", "failed", "incomplete" (some of it had no time) or "left out".
    """
    if limit < 10:
        return {"status": "left out", "markdown": "No time was left for it.", "data": {}, "seconds": 0}
    result = folder / f"{name}.json"
    command = [sys.executable, str(ROOT / "scripts/gpu/sections.py"), name, str(result), str(options.out)]
    command += ["--seconds", f"{limit:.0f}"] + ["--cpu"] * options.cpu
    command += ["--dataroot", options.dataroot] * bool(options.dataroot)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun, problem = time.monotonic(), None
    with (options.out / "log.txt").open("a+b") as log:
        log.write(f"===== {name} =====\n".encode())
        log.flush()
        start = log.tell()
        status = run_for(limit, command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        if status is None:
            problem = f"stopped after {limit:.0f} s"
        elif status:
            problem = f"exit status {status}"
        log.seek(start)
        output = log.read().decode(errors="replace")
    # A section that failed keeps what it found before.
    text = result.read_text(encoding="utf-8") if result.is_file() else '{"markdown": "", "data": {}}'
    report = json.loads(text)
    not_run = report["data"].get("not run", [])
    status = "failed" if problem else "incomplete" if not_run else "done"
    report |= {"seconds": round(time.monotonic() - begun, 1), "status": status}
    if not_run:
        report["markdown"] += f"\n**Not run for lack of time (raise --seconds): {', '.join(not_run)}.**\n"
    if problem:
        tail = "\n".join(output.strip().splitlines()[-25:])
        report["markdown"] += f"\n**Failed: {problem}.**\n\n```\n{tail}\n```\n"
    return report


def run_for(limit: float, command: Sequence[str], **settings) -> int | None:
    """The exit status of `command`; None if it took more than `limit` seconds and was ended.

    All processes that it started are ended: they would disturb the measurements that follow. SIGTERM comes
    first, since torchrun passes it on to its workers, which have sessions of their own.
    """
    process = subprocess.Popen(command, start_new_session=True, **settings)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(5)


def write_report(out: Path, reports: dict[str, dict], total: float) -> None:
    """Write report.md and report.json."""
    rows = [[name, report["status"], report["seconds"]] for name, report in reports.items()]
    parts = [f"# GPU check\n\n{total:.0f} s in total. docs/performance.md explains this report."]
    parts += [markdown_table(["section", "outcome", "seconds"], rows)]
    parts += [f"## {name.capitalize()}\n\n{report['markdown'].strip()}" for name, report in reports.items()]
    (out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (out / "report.json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataroot", nargs="?", default="", help="folder with trainA, trainB, testA, testB")
    parser.add_argument("out", nargs="?", type=Path, default=Path("gpu_check"), help="folder of the report")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU with tiny sizes")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of " + ",".join(LIMITS))
    parser.add_argument(
        "--seconds", type=float, help="time for all sections (default: what is kept for them)"
    )
    options = parser.parse_args()
    names = options.sections.split(",")
    if unknown := set(names) - set(LIMITS):
        parser.error(f"there is no section {sorted(unknown)[0]}; there are {', '.join(LIMITS)}")
    options.seconds = options.seconds or sum(LIMITS[name] for name in names)
    if options.dataroot:
        options.dataroot = str(Path(options.dataroot).resolve())
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "log.txt").write_text("", encoding="utf-8")
    begun, reports = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            left = options.seconds - (time.monotonic() - begun)
            limit = left if options.cpu else seconds_for(names[number:], left)
            reports[name] = run_section(name, options, Path(folder), limit)
            print(f"{name}: {reports[name]['status']} ({reports[name]['seconds']} s)", flush=True)
            write_report(options.out, reports, time.monotonic() - begun)
    print((options.out / "report.md").read_text(encoding="utf-8")[-9000:])
    unfinished = [name for name, report in reports.items() if report["status"] in ("incomplete", "left out")]
    if unfinished:
        print(f"not run, or not completely, for lack of time: {', '.join(unfinished)}")
    return int(any(report["status"] == "failed" for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
