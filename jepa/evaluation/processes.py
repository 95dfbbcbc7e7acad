"""Work shared out to forked processes: they see all that this one holds, and only results are sent back."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch

from jepa.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def can_fork() -> bool:
    """Whether this system has processes that begin with what their parent holds."""
    return "fork" in multiprocessing.get_all_start_methods()


def in_processes(
    work: Callable[[Task], Iterator[Result]], tasks: Sequence[Task], workers: int
) -> Generator[tuple[int, Result]]:
    """Every result of `work(task)` of every task, with the task's number, as soon as it is there.

    Tasks begin in their order, each in the first free process. The results of one task stay in order, and must pickle.
    The processes are forked, so `work` must not use a GPU; torch has one thread in each. They end with the iteration:
    with the last result, at an error, at Ctrl-C. Without `workers`, `work` runs in this process.

    Raises:
        InputError: `work` raised it.
        RuntimeError: `work` raised another error, whose traceback is the message; or a process was killed.
    """
    if not workers:
        yield from ((number, result) for number, task in enumerate(tasks) for result in work(task))
        return
    context = multiprocessing.get_context("fork")
    running: dict[Connection, BaseProcess] = {}
    numbers = iter(range(len(tasks)))
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, tasks, theirs), daemon=True)
            with warnings.catch_warnings():  # of this process's threads: what is forked has none, and waits for none
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            running[ours] = process
            ours.send(next(numbers))
        while running:
            ready = wait(list(running))
            for connection in [each for each in running if each in ready]:
                try:
                    message = connection.recv()
                except EOFError:
                    running[connection].join()
                    code = running[connection].exitcode
                    raise RuntimeError(f"a process of the sweep was ended from outside, exit code {code}") from None
                if isinstance(message, Exception):
                    raise message
                if message is not None:
                    yield message
                    continue
                number = next(numbers, None)
                connection.send(number)
                if number is None:
                    running.pop(connection).join()
                    connection.close()
    finally:
        for connection, unfinished in running.items():
            unfinished.terminate()
            unfinished.join()
            connection.close()


def _serve(work: Callable[[Task], Iterator[Result]], tasks: Sequence[Task], connection: Connection) -> None:
    """Works through the tasks that it is told the numbers of; after each it sends None, after an error that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    torch.set_num_threads(1)
    gc.disable()
    try:
        while (number := connection.recv()) is not None:
            for result in work(tasks[number]):
                connection.send((number, result))
            connection.send(None)
    except InputError as error:
        connection.send(error)
    except EOFError:  # the parent is gone
        return
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
