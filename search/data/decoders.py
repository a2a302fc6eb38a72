"""Batches of encoded pictures decoded by helper processes, the results in order.

The helpers are plain Python programs on two pipes. Unlike forks they inherit no file lock and no GPU; unlike
multiprocessing's spawn they do not import the caller's main module; and they end when their pipe closes, so also
when the caller is killed. What goes through the pipes is a JSON header and raw bytes.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from bnas.profiles.errors import InputError

from .form import Form, FormChanged, Picture

PROGRAM = f"from {__name__} import serve; serve()"
AHEAD = 2  # batches taken from the stream per helper; bounds what waits in memory


def decode_batches(form: Form, batches: Iterable[list[Picture]], workers: int) -> Iterator[np.ndarray]:
    """uint8 [len(batch), C, H, W] for each batch, in order, by `workers` helpers; 0 means here, without any.

    Raises `InputError` and `FormChanged` as `pictures.decode_batch` does.
    """
    if not workers:
        from .pictures import decode_batch

        yield from (decode_batch(form, batch) for batch in batches)
        return
    with ExitStack() as stack:
        free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for _ in range(workers):
            free.put(stack.enter_context(helper()))

        def ask(batch: list[Picture]) -> np.ndarray:
            process = free.get()
            try:
                return answer(process, form, batch)
            finally:
                free.put(process)

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        waiting: deque[Future[np.ndarray]] = deque()
        for batch in batches:
            waiting.append(pool.submit(ask, batch))
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


def answer(process: "subprocess.Popen[bytes]", form: Form, batch: list[Picture]) -> np.ndarray:
    """The batch, decoded by the helper."""
    assert process.stdin and process.stdout
    contents = [picture.content for picture in batch]
    entries = [
        [picture.where, len(content), None] if isinstance(content, bytes) else [picture.where, 0, str(content)]
        for picture, content in zip(batch, contents, strict=True)
    ]
    raw = b"".join(content for content in contents if isinstance(content, bytes))
    try:
        send(process.stdin, {"form": astuple(form), "pictures": entries}, raw)
        reply, pixels = receive(process.stdout)
    except (EOFError, BrokenPipeError) as broken:
        raise RuntimeError("a helper process ended early; is the memory full?") from broken
    if "form" in reply:
        raise FormChanged(Form(*reply["form"]))
    if "input error" in reply:
        raise InputError(reply["input error"])
    if "error" in reply:
        raise RuntimeError(reply["error"])
    return np.frombuffer(pixels, np.uint8).reshape(reply["shape"])


def serve() -> None:
    """The program of a helper: answers batches of pictures with their pixels until the pipe closes."""
    from .pictures import decode_batch

    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request, raw = receive(requests)
        except EOFError:  # closed, or the caller died within a request
            return
        batch, start = [], 0
        for where, length, path in request["pictures"]:
            batch.append(Picture(where, Path(path) if path is not None else raw[start : start + length]))
            start += length
        reply: dict = {}
        pixels = b""
        try:
            images = decode_batch(Form(*request["form"]), batch)
            reply, pixels = {"shape": images.shape}, images.tobytes()
        except FormChanged as change:
            reply = {"form": astuple(change.form)}
        except InputError as error:
            reply = {"input error": str(error)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        try:
            send(replies, reply, pixels)
        except BrokenPipeError:  # the caller died; leave without a last flush, which would fail again
            os._exit(1)


def send(stream: IO[bytes], header: dict, raw: bytes) -> None:
    """Two lengths, the header as JSON, the bytes."""
    text = json.dumps(header).encode()
    stream.write(len(text).to_bytes(8, "little") + len(raw).to_bytes(8, "little") + text)
    stream.write(raw)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict, bytes]:
    """Undo `send`. Raises EOFError if the other side is gone."""
    lengths = stream.read(16)
    text_length, raw_length = int.from_bytes(lengths[:8], "little"), int.from_bytes(lengths[8:], "little")
    text, raw = stream.read(text_length), stream.read(raw_length)
    if len(lengths) < 16 or len(text) < text_length or len(raw) < raw_length:
        raise EOFError
    return json.loads(text), raw
