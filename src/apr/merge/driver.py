"""Running a merge: tensors stream from the files through the methods into the output's shards.

Each thread takes one tensor at a time, the largest first, and merges it block by block; a block is
read, computed and written before the next, so some threads read while others compute or write.
Memory depends on the block size and the number of threads, not on the model. Nothing that looks
like a model exists until the last byte is on disk (see `apr.checkpoint.writer`).
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from typing import Any, Protocol

import torch

from apr.checkpoint.writer import CheckpointWriter, Slot
from apr.common.progress import ByteProgress
from apr.kernels.cpu.threads import default_threads
from apr.merge.inputs import KEPT_BYTES, FileReader, Memory, ModelInput
from apr.merge.merge_plan import EMBEDDING, OUTPUT_LAYER, Output, Plan, Source
from apr.merge.methods import start
from apr.merge.operands import BLOCK_ELEMENTS, Combine, Operands, Reader, check_finite, in_memory
from apr.merge.vocabulary import RowGather, VocabularyPlan


class Gathered(Protocol):
    """Embeddings and output layers of all models in one vocabulary."""

    def reader(self, output: Output, source: Source) -> Reader: ...


class _Stopped(Exception):
    """Another thread failed."""


class _Run:
    """What the threads of one merge share."""

    def __init__(self, plan: Plan, seed: int, vocabulary: Gathered | None, bar: ByteProgress):
        self.plan, self.seed, self.vocabulary = plan, seed, vocabulary
        self.stop = threading.Event()
        self._bar, self._lock = bar, threading.Lock()
        self._memory = Memory()

    def advance(self, nbytes: int) -> None:
        if self.stop.is_set():
            raise _Stopped
        with self._lock:
            self._bar.advance(nbytes)

    def reader(self, output: Output, source: Source) -> Reader:
        if self.vocabulary is not None and output.name in (EMBEDDING, OUTPUT_LAYER):
            return self.vocabulary.reader(output, source)
        return self.plan.inputs[source.model].reader(source.name, self._memory)

    def operands(self, output: Output) -> Operands:
        models = tuple(self.reader(output, source) for source in output.models)
        base = self.reader(output, output.base) if output.base else None
        return Operands(output.name, output.shape, models, base, self.seed)


def write_tensors(
    plan: Plan,
    writer: CheckpointWriter,
    *,
    seed: int = 0,
    threads: int | None = None,
    vocabulary: Gathered | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Merge all tensors of a plan into an open writer; their SHA-256 by name.

    The result does not depend on threads. Raises AprError naming the tensor that is not finite,
    the file that cannot be read or written.
    """
    slots = {
        output.name: writer.reserve(output.name, output.dtype, output.shape)
        for output in plan.outputs
    }
    order = sorted(plan.outputs, key=lambda output: -output.nbytes)
    sums: dict[str, str] = {}
    count = min(threads or default_threads(), len(order))
    with ExitStack() as stack:
        bar = stack.enter_context(ByteProgress("merging", plan.nbytes, progress))
        run = _Run(plan, seed, vocabulary, bar)
        pool = stack.enter_context(
            ThreadPoolExecutor(count, "merge", initializer=torch.set_num_threads, initargs=(1,))
        )
        # Runs before the pool waits for its threads, whatever ends the block.
        stack.callback(run.stop.set)
        jobs = {pool.submit(_merge_one, run, o, slots[o.name]): o.name for o in order}
        try:
            for job in as_completed(jobs):
                sums[jobs[job]] = job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {output.name: sums[output.name] for output in plan.outputs}


def _merge_one(run: _Run, output: Output, slot: Slot) -> str:
    """Merge one tensor into its slot; the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    if output.copied:
        tensor = run.plan.inputs[output.models[0].model].tensor(output.models[0].name)
        flat = tensor.contiguous().view(-1)
        slot.write(0, flat)
        digest.update(flat.view(torch.uint8).numpy().data)
        run.advance(output.nbytes)
        return digest.hexdigest()
    x = run.operands(output)
    files = [reader for reader in (*x.models, x.base) if isinstance(reader, FileReader)]
    for reader in files:
        reader.whole = True
    combine = start(run.plan.method, x, output.parameters)
    for reader in files:  # what was not looked at by now is read once only
        reader.whole = False
    _write_blocks(run, x, combine, output, slot, digest)
    for reader in files:
        reader.close()
    return digest.hexdigest()


def _write_blocks(
    run: _Run, x: Operands, combine: Combine, output: Output, slot: Slot, digest: Any
) -> None:
    longest = max((last - first for first, last in x.blocks), default=0)
    buffer = torch.empty(longest, dtype=output.dtype)
    for first, last in x.blocks:
        block = buffer[: last - first]
        combine(first, last, block)
        check_finite(block, output.name)
        slot.write(first, block)
        digest.update(block.view(torch.uint8).numpy().data)
        run.advance(block.nbytes)


def load_kernels(plan: Plan) -> None:
    """Load (the first time ever: compile) the code the merge runs, on a few numbers."""
    output = next((o for o in plan.outputs if not o.copied), None)
    if output is None:
        return
    few = torch.linspace(0, 1, 64)
    models = tuple(in_memory((few + 0.1 * i).bfloat16()) for i in range(len(output.models)))
    base = in_memory(few.bfloat16()) if output.base else None
    x = Operands("few", (1, 64), models, base)
    start(plan.method, x, output.parameters)(0, 64, torch.empty(64, dtype=output.dtype))


def peak_memory(plan: Plan, threads: int) -> int:
    """Bytes a merge takes above an idle process, at most, roughly.

    A thread holds a block of every input (of small ones all), one block of output and, for methods
    that work in fp32 blocks, a few such blocks; quantized inputs are expanded tensor by tensor.
    """
    largest = 0
    for output in plan.outputs:
        count = min(BLOCK_ELEMENTS, max(1, output.nbytes // output.dtype.itemsize))
        sources = [*output.models, *([output.base] if output.base else [])]
        held = sum(
            4 * _elements(output) if _expanded(plan, s) else min(output.nbytes, KEPT_BYTES)
            for s in sources
        )
        if plan.method_name in _IN_FP32_BLOCKS:
            held += 4 * count * (3 * len(sources) + 4)
        elif plan.method_name in _SELECTING:
            held += 4 * (count // 8) + _elements(output) // 8
        largest = max(largest, held + count * output.dtype.itemsize)
    return largest * threads


_IN_FP32_BLOCKS = {"della", "della_linear", "sce", "arcee_fusion", "nearswap"}
_SELECTING = {"ties", "breadcrumbs", "breadcrumbs_ties"}


def _expanded(plan: Plan, source: Source) -> bool:
    """Whether a tensor is not read as it is stored, but made in fp32 first."""
    return plan.inputs[source.model].dtype(source.name) is None


def _elements(output: Output) -> int:
    return output.nbytes // output.dtype.itemsize


class GatheredRows:
    """Readers of by-vocabulary tensors that give rows where the output's vocabulary wants them."""

    def __init__(self, plan: Plan, vocabulary: VocabularyPlan) -> None:
        self._inputs = plan.inputs
        self._gathers = [vocabulary.gather(m) for m in range(len(plan.inputs))]
        self._dtype = torch.float32
        kinds = {model.dtype(EMBEDDING) for model in plan.inputs}
        if len(kinds) == 1:
            self._dtype = kinds.pop() or torch.float32

    def reader(self, output: Output, source: Source) -> Reader:
        gather = self._gathers[source.model]
        model = self._inputs[source.model]
        if gather.is_identity and len(gather.index) == model.shape(source.name)[0]:
            return model.reader(source.name)
        return _GatheredReader(self._inputs, source, output.name, gather, self._dtype)


class _GatheredReader:
    """Blocks of whole rows, gathered from the models that have them."""

    def __init__(
        self,
        inputs: tuple[ModelInput, ...],
        source: Source,
        name: str,
        gather: RowGather,
        dtype: torch.dtype,
    ) -> None:
        self.label = inputs[source.model].label
        self._inputs, self._name, self._gather, self._dtype = inputs, name, gather, dtype
        self._width = inputs[source.model].shape(source.name)[1]
        self._matrices: dict[int, torch.Tensor] = {}

    def __call__(self, start: int, end: int) -> torch.Tensor:
        # Blocks are whole rows (see Operands.blocks).
        rows = self._gather.rows(start // self._width, end // self._width, self._fetch)
        return rows.contiguous().view(-1)

    def _fetch(self, model: int, rows: torch.Tensor) -> torch.Tensor:
        matrix = self._matrices.get(model)
        if matrix is None:
            owner = self._inputs[model]
            name = self._name
            if name == OUTPUT_LAYER and name not in owner.stored:
                name = EMBEDDING
            matrix = owner.tensor(name)
            if owner.adapter is not None and name in owner.adapter.targets:
                matrix = owner.adapter.apply(name, matrix.float(), 0, owner.shape(name)[0])
            self._matrices[model] = matrix
        return matrix[rows].to(self._dtype)
