"""Threads that work on chunks of a tensor side by side, each running torch operations alone.

torch would spread every single operation over all threads and wait for the slowest. With a dozen
short operations a chunk, any other program on the machine makes each of those waits as long as a
scheduler slice: dequantization was seen to take fifty times longer that way. Here threads meet
only once, when all chunks are done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

# Beyond this, starting operations (which needs the interpreter lock) is the limit.
MAX_WORKERS = 8

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def run_chunks(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call work(start) for every start, in any order, on at most torch's number of threads.

    Exceptions of `work` are raised here. Other uses of torch keep their number of threads.
    """
    threads = min(torch.get_num_threads(), MAX_WORKERS)
    if threads == 1:
        for start in starts:
            work(start)
        return
    pool = _workers(threads)
    remaining = iter(starts)
    claim = threading.Lock()

    # A thread has its own inference mode, and may not write to the tensors of another's.
    inference = torch.is_inference_mode_enabled()

    def drain() -> None:
        with torch.inference_mode(inference):
            while True:
                with claim:
                    start = next(remaining, None)
                if start is None:
                    return
                work(start)

    for done in [pool.submit(drain) for _ in range(threads)]:
        done.result()


def _workers(threads: int) -> ThreadPoolExecutor:
    """The pool, with at least so many threads, all started and set to one torch thread each."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < threads:
            _pool = ThreadPoolExecutor(
                threads, "apr-chunks", initializer=torch.set_num_threads, initargs=(1,)
            )
            _pool_size = threads
            all_started = threading.Barrier(threads + 1)
            for _ in range(threads):
                _pool.submit(all_started.wait)
            all_started.wait()
            # torch.set_num_threads holds for the calling thread, and for threads that start later.
            # The initializers above set the latter to one; this sets it back.
            torch.set_num_threads(torch.get_num_threads())
        return _pool


def _forget_pool() -> None:
    """A forked child has the pool object but none of its threads."""
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)
