"""SparseGPT's elimination, row by row: the weights of a row stay in the processor's cache."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def eliminate_rows(tid, threads, weight, mask, factor, errors, group, zeros):
    """This thread's rows of `apr.prune.surgeon.eliminate`; group is 0 without a pattern.

    weight, errors: fp32 (rows, columns). mask: bool (rows, columns). factor: fp32 (columns,
    columns).
    """
    rows, columns = weight.shape
    for r in range(tid * rows // threads, (tid + 1) * rows // threads):
        w, chosen = weight[r], mask[r]
        for i in range(columns):
            if group > 0 and i % group == 0:
                _choose(w[i : i + group], chosen[i : i + group], factor, i, zeros)
            if not chosen[i]:
                errors[r, i] = 0.0
                continue
            error = w[i] / factor[i, i]
            errors[r, i] = error
            w[i] = 0.0
            row = factor[i]
            for j in range(i + 1, columns):
                w[j] -= error * row[j]


@njit(nogil=True, cache=True)
def _choose(w, chosen, factor, first, zeros):
    """Mark the `zeros` weights of a group that cost least; of equal ones the first."""
    for _ in range(zeros):
        best = -1
        least = w[0] * 0
        for j in range(w.shape[0]):
            if chosen[j]:
                continue
            ratio = w[j] / factor[first + j, first + j]
            cost = ratio * ratio
            if best < 0 or cost < least:
                best, least = j, cost
        chosen[best] = True
