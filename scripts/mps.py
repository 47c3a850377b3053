"""NVIDIA's Multi-Process Service (MPS), which runs kernels of several processes on one GPU at the same time.

Without it, processes that share a GPU take turns, and each turn leaves idle what its kernels do not fill.
The numbers that a process computes are the same either way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

# Starts the daemon, prints "started" or why not, and waits for the end of its input, which comes at latest
# with the end of the Python process, even by SIGKILL. Then it quits the daemon and removes the folder $1.
KEEPER = f"""
trap 'rm -rf "$1"' EXIT
mkdir "${PIPES}" "${LOGS}"
timeout 30 {CONTROL} -d </dev/null >"$1/said" 2>&1 || {{ tail -n 1 "$1/said"; exit; }}
echo started
cat >/dev/null
echo quit | timeout 30 {CONTROL}
"""

# A process that MPS does not serve runs without it, or not at all. So one that holds memory of the GPU asks
# whether there is a server.
TRIAL = f"""
import subprocess, sys, torch
held = torch.zeros(1, device=sys.argv[1])
servers = subprocess.run(["{CONTROL}"], input="get_server_list\\n", capture_output=True, text=True).stdout
served = any(word.isdigit() for word in servers.split())  # by their process ids
sys.exit(None if served else "a process on the GPU is not served")
"""


class Service(NamedTuple):
    """Whether processes that get the variables `environment` run side by side, and the reason in words."""

    running: bool
    environment: Mapping[str, str]
    reason: str


@contextmanager
def multi_process_service(device: str) -> Iterator[Service]:
    """Inside the block, MPS where it works: the one that runs already, or a daemon started for the block.

    Args:
        device: the GPU that its clients will use, as "cuda:0", on which a daemon of our own is tried.
    """
    if shutil.which(CONTROL) is None:
        yield Service(False, {}, f"{CONTROL} is not on the PATH")
        return
    if _daemon_answers() and _problem_of_trial(device, {}) is None:
        yield Service(True, {}, "MPS was already running")
        return
    if PIPES in os.environ:
        yield Service(False, {}, f"{PIPES} is set, but no MPS serves there")
        return
    folder = tempfile.mkdtemp(prefix="mps-", dir="/tmp")  # a socket's path has at most 108 bytes
    environment = {PIPES: f"{folder}/pipe", LOGS: f"{folder}/log"}
    # The daemon numbers the GPUs it sees; CUDA_VISIBLE_DEVICES would count there and again in each client.
    variables = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    keeper = subprocess.Popen(
        ["sh", "-c", KEEPER, "keeper", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=variables | environment,
        start_new_session=True,  # Ctrl-C in the terminal must not reach it: trainings then still save
    )
    with keeper:  # leaving it ends the keeper's input, and waits for it
        said = keeper.stdout.readline().strip()
        problem = _problem_of_trial(device, environment) if said == "started" else said
        if problem is None:
            yield Service(True, environment, "MPS was started for this")
            return
    yield Service(False, {}, f"MPS does not work here: {problem or 'its daemon did not start'}")


def _daemon_answers() -> bool:
    """Whether an MPS daemon runs where this process's environment says, or at the default place."""
    question = {"input": "get_server_list\n", "text": True, "capture_output": True}
    return subprocess.run(["timeout", "30", CONTROL], **question).returncode == 0


def _problem_of_trial(device: str, environment: Mapping[str, str]) -> str | None:
    """Why a process on the GPU is not served by MPS; None if it is."""
    try:
        trial = subprocess.run(
            [sys.executable, "-c", TRIAL, device],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return "a process on the GPU hangs"
    return (trial.stderr.strip().splitlines() or ["no reason given"])[-1] if trial.returncode else None
