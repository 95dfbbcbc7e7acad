"""Work in forked processes: every result, in the order of its task, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from jepa.errors import InputError
from jepa.evaluation.processes import in_processes


def squares(task: range) -> Iterator[tuple[int, int]]:
    for number in task:
        yield number**2, os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_task_is_worked_through_in_its_order(workers: int) -> None:
    tasks = [range(3), range(0), range(5, 9), range(1)]
    found: dict[int, list[int]] = {number: [] for number in range(len(tasks))}
    processes = set()
    for number, (square, process) in in_processes(squares, tasks, workers):
        found[number].append(square)
        processes.add(process)
    assert found == {number: [each**2 for each in task] for number, task in enumerate(tasks)}
    assert os.getpid() not in processes
    assert len(processes) <= min(workers, 4)
    assert not multiprocessing.active_children()


def failing(error: BaseException) -> Iterator[int]:
    yield 1
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InputError("stream 3: empty"), InputError, "^stream 3: empty$"),
        (KeyError("lost"), RuntimeError, "in failing(.|\n)*KeyError: 'lost'"),
    ],
)
def test_an_error_ends_all_processes(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        list(in_processes(failing, [error, error, error], 2))
    assert not multiprocessing.active_children()


def test_a_process_that_was_killed_is_told() -> None:
    def killed(task: int) -> Iterator[int]:
        yield task
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="ended from outside, exit code -9"):
        list(in_processes(killed, [1, 2], 2))
    assert not multiprocessing.active_children()


def test_interrupting_ends_all_processes_at_once() -> None:
    def endless(task: int) -> Iterator[int]:
        while True:  # Ctrl-C reaches the whole group, and only this process's parent answers it
            yield task
            time.sleep(0.01)

    results = in_processes(endless, [1, 2], 2)
    seen: set[int] = set()
    while len(seen) < 2:  # both have begun
        seen.add(next(results)[1])
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid or 0, signal.SIGINT)
    for _ in range(4):
        next(results)
    assert multiprocessing.active_children() == children
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert not multiprocessing.active_children()


def test_without_workers_the_work_stays_here() -> None:
    found = list(in_processes(squares, [range(2), range(2, 3)], 0))
    assert found == [(0, (0, os.getpid())), (0, (1, os.getpid())), (1, (4, os.getpid()))]
