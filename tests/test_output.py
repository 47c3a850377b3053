"""Output that cannot be written does not stop a training: closed pipes, streams, terminals, full disks."""

import fcntl
import io
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from training_process import PATIENCE, losses, make_images, steps_saved, words

from util.console import lasting_output, say
from util.errors import UserError, entry_point

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and pseudo-terminals")
PROJECT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def command(dataroot, checkpoints, *more) -> list[str]:
    return [sys.executable, str(PROJECT / "train.py"), *words(dataroot, checkpoints, *more)]


@pytest.mark.parametrize("where", ["| head -n 1", "> /dev/full 2>&1", "2>&-"])
def test_train_py_ends_well_whatever_becomes_of_its_output(dataroot, tmp_path, where):
    """Two workers, since a closed stderr gives its number to the next file or pipe that is opened."""
    more = "--n_epochs 1 --n_epochs_decay 0 --num_threads 2 --cache_gb 0"
    line = f"{shlex.join(command(dataroot, tmp_path, more))} {where}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    assert steps_saved(tmp_path) == len(losses(tmp_path)) == 5


def test_a_closed_terminal_lets_it_save(dataroot, tmp_path):
    """Its bar is shown, then the terminal goes away: SIGHUP comes, and every write fails."""
    pid, terminal = pty.fork()
    if pid == 0:
        argv = command(dataroot, tmp_path, "--n_epochs 1000 --n_epochs_decay 0 --num_threads 2 --cache_gb 0")
        os.execve(argv[0], argv, ENVIRONMENT)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # else the bar is empty
    shown, end = b"", time.monotonic() + PATIENCE
    while (b"epoch 1/1000" not in shown or len(losses(tmp_path)) < 3) and time.monotonic() < end:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129, shown.decode()
    assert steps_saved(tmp_path) == len(losses(tmp_path)) >= 3


def test_lines_come_at_once(capfd, tmp_path, monkeypatch):
    """A log file or a pipe is buffered otherwise: lines would be seen a few thousand characters late."""
    with open(tmp_path / "log", "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with lasting_output():
            say("first")
            assert (tmp_path / "log").read_text() == "first\n"


# How every command ends on an error


def ending(error: BaseException) -> int:
    @entry_point
    def main():
        raise error

    return main()


@pytest.mark.parametrize(
    "error, status, said",
    [
        (UserError("give --name"), 2, "error: give --name\n"),
        (FileNotFoundError(2, "No such file or directory", "/out/a.json"), 2, "'/out/a.json'"),
        (MemoryError(), 2, "error: not enough memory (Python found none): use smaller images or batches"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "(CUDA out of memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nat"), 2, "can't allocate"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_the_user_or_the_machine_can_mend_is_one_line(error, status, said, capsys):
    assert ending(error) == status
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_the_programs_own_faults_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shape"):
        ending(RuntimeError("a shape of another memory format"))


def test_what_a_code_page_lacks_is_printed_as_an_escape(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    assert entry_point(lambda: print("馬 café", flush=True))() == 0
    assert written.getvalue().split() == [b"\\u99ac", "café".encode("cp1252")]


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_ctrl_c_while_torch_is_imported_ends_without_a_traceback(script, tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    env = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, str(PROJECT / script)], env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
