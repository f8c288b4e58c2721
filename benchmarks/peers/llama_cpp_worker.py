"""Times llama.cpp through llama-cpp-python's low-level API. Runs in the peer's own environment.

Reads one command a line on stdin (`prefill N`, `single N`, `streams S P N`) and answers with one
JSON line: {"seconds": s, "tokens": n}.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

import llama_cpp as lc


class Model:
    def __init__(self, path: str, threads: int, flash: bool) -> None:
        lc.llama_backend_init()
        quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._quiet = quiet(lambda level, text, data: None)
        lc.llama_log_set(self._quiet, None)
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.threads, self.flash = threads, flash
        self.context = None

    def open(self, streams: int, length: int) -> None:
        if self.context is not None:
            lc.llama_free(self.context)
        params = lc.llama_context_default_params()
        params.n_ctx = streams * length
        params.n_seq_max = streams
        params.n_batch = params.n_ubatch = 2048
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = 1 if self.flash else 0
        self.context = lc.llama_init_from_model(self.model, params)
        assert self.context

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: (token, position, sequence, wants logits)."""
        batch = lc.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        status = lc.llama_decode(self.context, batch)
        lc.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def greedy(self, row: int) -> int:
        logits = lc.llama_get_logits_ith(self.context, row)
        import numpy as np

        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())


def prompt(length: int, salt: int = 0) -> list[int]:
    return [100 + (i * 37 + salt * 101) % 20000 for i in range(length)]


def prefill(model: Model, length: int) -> tuple[float, int]:
    model.open(1, length + 8)
    rows = [(t, i, 0, i == length - 1) for i, t in enumerate(prompt(length))]
    start = time.perf_counter()
    model.decode(rows)
    model.greedy(length - 1)
    return time.perf_counter() - start, length


def single(model: Model, tokens: int) -> tuple[float, int]:
    model.open(1, tokens + 8)
    token = 1
    start = time.perf_counter()
    for i in range(tokens):
        model.decode([(token, i, 0, True)])
        token = model.greedy(0)
    return time.perf_counter() - start, tokens


def streams(model: Model, count: int, length: int, tokens: int) -> tuple[float, int]:
    model.open(count, length + tokens + 8)
    for s in range(count):
        model.decode([(t, i, s, i == length - 1) for i, t in enumerate(prompt(length, s))])
    current = [100 + s for s in range(count)]
    start = time.perf_counter()
    for i in range(tokens):
        model.decode([(current[s], length + i, s, True) for s in range(count)])
        current = [model.greedy(s) for s in range(count)]
    return time.perf_counter() - start, count * tokens


def main() -> None:
    model = Model(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "flash")
    print(json.dumps({"ready": True}), flush=True)
    tests = {"prefill": prefill, "single": single, "streams": streams}
    for line in sys.stdin:
        name, *numbers = line.split()
        seconds, tokens = tests[name](model, *map(int, numbers))
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
