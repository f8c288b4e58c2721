"""SparseGPT's updates against least squares in closed form; damping; the compiled form."""

from __future__ import annotations

import pytest
import torch

from apr.calibrate.statistics import Hessian
from apr.common.errors import AprError, UsageError
from apr.prune.prune_settings import Pattern
from apr.prune.surgeon import Factor, eliminate, inverse_factor, sparsegpt

SIZE = 12


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight (5, SIZE), Hessian (SIZE, SIZE)) in double precision."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    x = torch.randn(60, SIZE, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(5, SIZE, generator=generator, dtype=torch.float64), x.T @ x


def eliminated(weight: torch.Tensor, hessian: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    factor = inverse_factor(hessian, damping=0.0)
    out = weight.clone()
    eliminate(out, mask.clone(), factor.upper, None)
    return out


def refitted(weight: torch.Tensor, hessian: torch.Tensor, kept: slice) -> torch.Tensor:
    """The weights of the columns `kept` that come nearest to all columns' output (normal
    equations): W H[:, kept] H[kept, kept]^-1.
    """
    return torch.linalg.solve(hessian[kept, kept], (weight @ hessian)[:, kept].T).T


def test_columns_taken_first_are_made_up_for_by_least_squares() -> None:
    weight, hessian = problem()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, :5] = True
    found = eliminated(weight, hessian, mask)
    assert bool((found[:, :5] == 0).all())
    torch.testing.assert_close(found[:, 5:], refitted(weight, hessian, slice(5, None)))


@pytest.mark.parametrize("column", [0, 4, SIZE - 1])
def test_one_weight_taken_changes_only_those_behind_it(column: int) -> None:
    """With the columns before it fixed, what is left is least squares on those behind it."""
    weight, hessian = problem(1)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[2, column] = True
    found = eliminated(weight, hessian, mask)
    expected = weight.clone()
    expected[2, column] = 0
    behind = slice(column + 1, None)
    ours, theirs = hessian[column:, column:], weight[2:3, column:]
    if column + 1 < SIZE:
        expected[2, behind] = refitted(theirs, ours, slice(1, None))[0]
    torch.testing.assert_close(found, expected)


def test_the_cost_of_a_weight_is_the_error_it_leaves() -> None:
    """w^2 / [H^-1]_ii, by which weights are chosen, with [H^-1]_ii = U_ii^2 of the columns left."""
    weight, hessian = problem(2)
    upper = inverse_factor(hessian, damping=0.0).upper
    for column in range(SIZE - 1):
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask[:, column] = True
        lost = weight - eliminated(weight, hessian, mask)
        error = ((lost @ hessian) * lost).sum(dim=1)
        torch.testing.assert_close(error, (weight[:, column] / upper[column, column]).square())


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
@pytest.mark.parametrize("block", [4, 8, 128])
def test_the_compiled_form_gives_the_same(pattern: Pattern | None, block: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 40, generator=generator)
    weight = torch.randn(30, 40, generator=generator)
    statistic = Hessian(40, torch.device("cpu"))
    statistic.add(x)
    factor = inverse_factor(statistic.take())
    compiled = sparsegpt(weight, factor, 0.5, pattern)
    plain = sparsegpt(weight, factor, 0.5, pattern, eliminate=eliminate)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    # Lazy updates only put products off: in one block of all columns the same columns are chosen
    # with a pattern, whose choice does not depend on blocks.
    if pattern is not None:
        torch.testing.assert_close(
            sparsegpt(weight, factor, 0.5, pattern, block=block), plain, rtol=1e-4, atol=1e-5
        )


def test_damping_is_raised_where_needed_and_recorded() -> None:
    direction = torch.ones(6, 1)
    singular = 1e6 * direction @ direction.T - 0.05e6 * torch.eye(6)  # eigenvalues below zero
    factor = inverse_factor(singular, 0.01)
    assert factor.damping == pytest.approx(0.1)
    damped = singular + factor.damping * singular.diagonal().mean() * torch.eye(6)
    product = factor.upper.T @ factor.upper
    torch.testing.assert_close(product @ damped, torch.eye(6), rtol=0, atol=1e-4)


def test_no_damping_helps() -> None:
    with pytest.raises(AprError, match="no damping up to 1 makes this Hessian positive definite"):
        inverse_factor(torch.eye(4) - 3 * torch.ones(4, 4).fill_diagonal_(0))


def test_an_input_that_is_always_zero_loses_its_weights() -> None:
    weight, hessian = problem(4)
    hessian[3], hessian[:, 3] = 0, 0
    factor = inverse_factor(hessian.float())
    assert factor.dead.nonzero().flatten().tolist() == [3]
    assert bool((sparsegpt(weight.float(), factor, 0.1)[:, 3] == 0).all())


def test_a_pattern_must_divide_a_row() -> None:
    factor = Factor(torch.eye(10), 0.01, torch.zeros(10, dtype=torch.bool))
    with pytest.raises(UsageError, match="2:4 does not divide the rows"):
        sparsegpt(torch.ones(3, 10), factor, 0.5, Pattern(2, 4))


def test_a_pattern_keeps_at_most_n_and_fewer_only_of_zeros() -> None:
    """Of a group with three zeros two are taken; the third stays what it was where nothing to its
    left changes it. Every group has two zeros at least.
    """
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(32, 64, generator=generator)
    weight[5, 0:3] = weight[9, 1:4] = weight[7, 24:27] = 0
    x = torch.randn(64, 200, generator=generator)
    pruned = sparsegpt(weight, inverse_factor(x @ x.t()), 0.5, Pattern(2, 4))
    zeros = (pruned.view(32, 16, 4) == 0).sum(-1)
    assert zeros.min() == 2
    assert (zeros > 2).nonzero().tolist() == [[5, 0], [9, 0]]
