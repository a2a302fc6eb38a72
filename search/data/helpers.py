"""A function applied to a stream of items by helper processes, the results in order.

The helpers are plain Python programs on two pipes. Unlike forks they inherit no file lock and no GPU; unlike
multiprocessing's spawn they do not import the caller's main module; and they end when their pipe closes, so also
when the caller is killed.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PROGRAM = f"from {__name__} import serve; serve()"
AHEAD = 2  # items taken from the stream per helper; bounds what waits in memory


def apply(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """function(item) for each item, in order, by `workers` helpers; 0 means here, without any.

    Function, items and results must be picklable. An exception of the function is raised here.
    """
    if not workers:
        yield from map(function, items)
        return
    with ExitStack() as stack:
        free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for _ in range(workers):
            free.put(stack.enter_context(helper()))

        def ask(item: Item) -> Result:
            process = free.get()
            try:
                return answer(process, function, item)
            finally:
                free.put(process)

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(ask, item))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def helper() -> "Iterator[subprocess.Popen[bytes]]":
    """A process that runs `serve`, in a session of its own so that Ctrl-C reaches only the caller."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as process:
        yield process


def answer(process: "subprocess.Popen[bytes]", function: Callable[[Item], Result], item: Item) -> Result:
    """function(item), computed by the helper."""
    assert process.stdin and process.stdout
    try:
        pickle.dump((function, item), process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        result, error = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError) as broken:
        raise RuntimeError("a helper process ended early; is the memory full?") from broken
    if error is not None:
        raise error
    return result


def serve() -> None:
    """The program of a helper: answers (function, item) with (result, error) until the pipe closes."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            function, item = pickle.load(requests)
        except (EOFError, pickle.UnpicklingError):  # closed, or the caller died within a request
            return
        result, failure = None, None
        try:
            result = function(item)
        except Exception as error:
            failure = error
        try:
            pickle.dump((result, failure), replies, pickle.HIGHEST_PROTOCOL)
            replies.flush()
        except BrokenPipeError:  # the caller died; leave without a last flush, which would fail again
            os._exit(1)
