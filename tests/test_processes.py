"""Work in forked processes: every result, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from jepa.errors import InputError
from jepa.processes import in_processes


def squares(task: range) -> tuple[list[int], int]:
    return [number**2 for number in task], os.getpid()


@pytest.mark.parametrize("workers", [2, 9])
def test_every_task_is_worked_through_in_another_process(workers: int) -> None:
    tasks = [range(3), range(0), range(5, 9), range(1)]
    found = list(in_processes(squares, tasks, workers))
    assert sorted(each for each, _ in found) == sorted([number**2 for number in task] for task in tasks)
    processes = {process for _, process in found}
    assert os.getpid() not in processes
    assert len(processes) <= min(workers, 4)
    assert not multiprocessing.active_children()


def threads(task: int) -> list[int]:
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


def test_torch_and_numpy_have_one_thread_in_each_process() -> None:
    with threadpool_limits(2):
        before = threads(0)
        found = list(in_processes(threads, [1, 2], 2))
    assert max(before) == 2
    assert found == [[1] * len(before)] * 2


def test_with_one_worker_the_work_stays_here() -> None:
    assert list(in_processes(squares, [range(2), range(3)], 1)) == [([0, 1], os.getpid()), ([0, 1, 4], os.getpid())]


def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [InputError("stream 3: empty"), KeyError("lost")])
def test_an_error_ends_all_processes(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)) as raised:
        list(in_processes(failing, [error, error, error], 2))
    assert "in failing" in str(raised.value.__cause__)
    assert not multiprocessing.active_children()


def test_a_process_that_was_killed_is_told() -> None:
    def killed(task: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(BrokenProcessPool):
        list(in_processes(killed, [1, 2], 2))
    assert not multiprocessing.active_children()


def test_an_interrupt_ends_all_processes_at_once() -> None:
    def endless(task: int) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as where training handles it
        if task:
            time.sleep(600)  # Ctrl-C reaches the whole group, and only this process's parent answers it
        return task

    results = in_processes(endless, [0, 1, 2], 2)
    assert next(results) == 0
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert not multiprocessing.active_children()
