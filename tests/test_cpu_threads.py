"""The CPU threads of a process: how many, and no spinning while other programs need the cores."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from util import cpu_threads
from util.cpu_threads import IdleTeam, avoid_spinning, choose_threads, cpu_quota, find_libgomp, shared_cpu

CPU = torch.device("cpu")
needs_libgomp = pytest.mark.skipif(find_libgomp() is None, reason="torch uses another OpenMP library here")


@pytest.fixture
def no_settings(monkeypatch):
    """The environment of a user who sets nothing of OpenMP; torch's number of threads is put back."""
    for name in (*cpu_threads.COUNT_SETTINGS, *cpu_threads.WAIT_SETTINGS, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(before)


def threads_of_process() -> int:
    return len(os.listdir("/proc/self/task"))


# --- how many


def test_quota_of_a_container_in_version_2(tmp_path):
    groups = tmp_path / "cgroup"
    groups.write_text("0::/pod/container\n")
    folder = tmp_path / "fs" / "pod" / "container"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path / "fs", groups) is None
    (folder.parent / "cpu.max").write_text("250000 100000\n")  # the group around it counts too
    assert cpu_quota(tmp_path / "fs", groups) == 2.5
    (folder / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path / "fs", groups) == 1.5


def test_quota_of_a_container_in_version_1(tmp_path):
    groups = tmp_path / "cgroup"
    groups.write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n")
    folder = tmp_path / "fs" / "cpu"  # as a container sees it: its own group is the root
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota(tmp_path / "fs", groups) is None
    (folder / "cpu.cfs_quota_us").write_text("300000\n")
    assert cpu_quota(tmp_path / "fs", groups) == 3.0


def test_no_more_threads_than_the_quota_or_a_process_s_part_of_the_cores(no_settings, capsys):
    no_settings.setattr(cpu_threads, "cpu_quota", lambda: 4.5)
    torch.set_num_threads(8)
    choose_threads()
    assert torch.get_num_threads() == 4
    assert "Using 4 CPU threads instead of 8: 4.5 cores for 1 process." in capsys.readouterr().out
    no_settings.setenv("LOCAL_WORLD_SIZE", "2")
    for _ in range(2):  # deciding again does not divide again
        choose_threads()
        assert torch.get_num_threads() == 2
    assert capsys.readouterr().out.count("4.5 cores for 2 processes") == 1


def test_what_the_user_set_stands(no_settings):
    no_settings.setattr(cpu_threads, "cpu_quota", lambda: 1.0)
    no_settings.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    no_settings.setenv("GOMP_SPINCOUNT", "1000")
    before = threading.active_count()
    with shared_cpu(CPU):
        assert torch.get_num_threads() == 3
        assert threading.active_count() == before  # how threads wait is the user's choice too


# --- how they wait


@needs_libgomp
def test_an_idle_team_stays_until_it_is_disbanded():
    team, before = IdleTeam(find_libgomp()), threads_of_process()
    team.form()
    team.form()
    # its owner, and enough others that the library counts more threads than cores
    assert threads_of_process() - before >= 2
    assert threads_of_process() - before + torch.get_num_threads() > team.library.omp_get_num_procs()
    team.disband()
    deadline = time.monotonic() + 10
    while threads_of_process() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads_of_process() == before


@needs_libgomp
def test_results_beside_an_idle_team_are_the_same_bit_for_bit(no_settings):
    torch.set_num_threads(2)
    x = torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    layer = torch.nn.Conv2d(16, 16, 3)
    found, team = [], IdleTeam(find_libgomp())
    for _ in range(2):
        layer.zero_grad()
        layer(x).square().sum().backward()  # sums over threads
        found.append(layer.weight.grad.clone())
        team.form()
    team.disband()
    assert torch.equal(*found)


class Team:
    """Writes down when it is formed and disbanded."""

    def __init__(self):
        self.there, self.changes = False, []

    def form(self):
        self.change(True)

    def disband(self):
        self.change(False)

    def change(self, there):
        if there != self.there:
            self.there = there
            self.changes.append(there)


class Stop:
    """An event that is set after some intervals, without waiting for them."""

    def __init__(self, intervals):
        self.left = intervals

    def wait(self, seconds):
        self.left -= 1
        return self.left < 0


def watch(monkeypatch, shares):
    """Whether the team was there after each interval in which threads waited `shares` of the time."""
    times = iter([float(n) for n in range(len(shares) + 1)])
    monkeypatch.setattr(cpu_threads.time, "perf_counter", lambda: next(times))
    totals = [sum(shares[:n]) for n in range(len(shares) + 1)]
    there, team = [], Team()
    calls = iter(totals)

    def waited():
        there.append(team.there)
        return next(calls)

    avoid_spinning(team, Stop(len(shares)), waited)
    assert not team.there  # it never outlives the watch
    return there[2:], team.changes


def test_spinning_is_avoided_while_threads_wait_for_cores_and_taken_up_again_after(monkeypatch, capsys):
    calm = [0.02] * cpu_threads.CALM_INTERVALS
    there, changes = watch(monkeypatch, [0.02, 1.1, 0.6, 0.2, 0.02, 0.5, *calm, 0.0, 0.9])
    assert there == [False, True, True, True, True, *[True] * len(calm), False, False]
    assert changes == [True, False, True, False]
    assert capsys.readouterr().err == ""  # too short to be worth a note


def test_cores_that_stay_busy_are_noted_once(monkeypatch, capsys):
    busy = [0.9] * cpu_threads.TOLD_AFTER
    watch(monkeypatch, [*busy[:-1], 0.02, *busy[:-1]])
    assert capsys.readouterr().err == ""
    watch(monkeypatch, [*busy, 0.02, *busy])
    assert capsys.readouterr().err.count("this machine's cores are busy") == 1


def test_the_kernel_s_waiting_times_grow_where_threads_outnumber_cores():
    if not cpu_threads.seconds_waited():
        pytest.skip("the kernel keeps no scheduler statistics")
    before, end = cpu_threads.seconds_waited(), time.monotonic() + 0.3

    def spin():
        while time.monotonic() < end:
            torch.ones(20_000).sin_()  # releases the interpreter

    threads = [threading.Thread(target=spin) for _ in range(2 * (os.cpu_count() or 1) + 1)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert cpu_threads.seconds_waited() - before > 0.01
    for thread in threads:
        thread.join()


@needs_libgomp
def test_a_block_inside_another_starts_no_second_watch(no_settings):
    torch.set_num_threads(2)
    no_settings.setattr(cpu_threads, "cpu_quota", lambda: None)
    no_settings.setattr(cpu_threads.os, "cpu_count", lambda: 2)
    before = threading.active_count()
    with shared_cpu(CPU):
        within = threading.active_count()
        assert within > before
        with shared_cpu(CPU):
            assert threading.active_count() == within
    with shared_cpu(torch.device("meta")):  # not the CPU
        assert threading.active_count() == before
