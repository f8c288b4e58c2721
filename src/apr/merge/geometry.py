"""Interpolation on spheres. Every result lies in the span of its inputs, so one pass for their
Gram matrix gives the coefficients, and a second pass sums.

A vector is written by its coefficients over the inputs; `gram` (M, M) holds the inputs' inner
products. All in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Beyond this cosine two vectors count as parallel and are interpolated linearly, as in MergeKit.
PARALLEL = 0.9995
TINY = 1e-8


def _inner(a: np.ndarray, b: np.ndarray, gram: np.ndarray) -> float:
    return float(a @ gram @ b)


def _norm(a: np.ndarray, gram: np.ndarray) -> float:
    return max(0.0, _inner(a, a, gram)) ** 0.5


def slerp_coefficients(gram: np.ndarray, t: float, parallel: float = PARALLEL) -> np.ndarray:
    """Spherical linear interpolation from input 0 (t = 0) to input 1 (t = 1) (Shoemake 1985).

    s_0 = sin((1 - t) * theta) / sin(theta), s_1 = sin(t * theta) / sin(theta), theta the angle
    between the inputs; linear where |cos(theta)| exceeds `parallel`.
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    scale = [norm if norm > TINY else 1.0 for norm in norms]
    cosine = gram[0, 1] / (scale[0] * scale[1])
    if abs(cosine) > parallel:
        return np.array([1 - t, t])
    theta = np.arccos(cosine)
    return np.array([np.sin((1 - t) * theta), np.sin(t * theta)]) / np.sin(theta)


def nuslerp_coefficients(gram: np.ndarray, weight: Sequence[float]) -> np.ndarray:
    """slerp with t = w_1 / (w_0 + w_1), linear only where sin(theta) vanishes.

    gram: (..., 2, 2), of one pair of vectors or of many; (..., 2).
    """
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    norms = np.maximum(np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0.0)), 1e-7)
    theta = np.arccos(np.clip(gram[..., 0, 1] / norms.prod(-1), -1, 1))
    parallel = np.sin(theta) < TINY
    sine = np.where(parallel, 1.0, np.sin(theta))
    first = np.where(parallel, 1 - t, np.sin((1 - t) * theta) / sine)
    return np.stack([first, np.where(parallel, t, np.sin(t * theta) / sine)], axis=-1)


def multislerp_coefficients(
    gram: np.ndarray, weight: Sequence[float], normalize_weights: bool, eps: float
) -> np.ndarray | None:
    """Barycentric interpolation on a sphere (Goddard, Multi-SLERP): the inputs' directions are
    mapped to the tangent space at their weighted mean, averaged there and mapped back; the length
    is the weighted mean of the lengths. None when the mean direction is zero.
    """
    w = np.asarray(weight, np.float64)
    if normalize_weights:
        w = w / w.sum()
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if (norms < eps).all():
        return np.zeros(len(w))  # nothing to interpolate: zeros, or deltas of zero
    units = np.diag(1 / (norms + eps))  # row i: input i at length 1
    mean = w @ units
    length = _norm(mean, gram)
    if length < eps:
        if len(w) == 2:
            return w
        return None
    mean = mean / length
    dots = units @ gram @ mean
    tangent = w @ (units - np.outer(dots, mean))
    step = _norm(tangent, gram) + eps
    result = mean * np.cos(step) + tangent * (np.sin(step) / step)
    return result * float(norms @ w)


def karcher_coefficients(gram: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    """The Riemannian centre of mass of the inputs' directions (Karcher 1977; fixed-point iteration
    in the tangent space), at the mean of their lengths.
    """
    count = len(gram)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    valid = [i for i in range(count) if norms[i] > tol]
    if not valid:
        return np.zeros(count)
    units = [np.eye(count)[i] / norms[i] for i in valid]
    mean = sum(units) / len(units)
    length = _norm(mean, gram)
    mean = units[0] if length < tol else mean / length
    for _ in range(max_iter):
        tangent = np.zeros(count)
        for unit in units:
            cosine = min(1.0, max(-1.0, _inner(mean, unit, gram)))
            theta = np.arccos(cosine)
            # No way leads to the opposite point more than any other.
            if theta >= tol and np.sin(theta) > TINY:
                tangent += theta / np.sin(theta) * (unit - cosine * mean) / len(units)
        step = _norm(tangent, gram)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean = mean / _norm(mean, gram)
    return mean * float(norms.mean())


def model_stock_ratio(gram: np.ndarray) -> float:
    """t of Model Stock (Jang et al. 2024, eq. 7): N cos / (1 + (N - 1) cos), for cos the mean
    cosine between the deltas of N fine-tuned models. gram: of their deltas.
    """
    count = len(gram)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    cosines = [
        np.clip(gram[i, j] / max(norms[i] * norms[j], 1e-30), -1, 1)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = float(np.mean(cosines))
    if abs(1 + (count - 1) * cosine) < 1e-6:
        return 0.0  # deltas that cancel out point nowhere: the base stays
    return count * cosine / (1 + (count - 1) * cosine)
