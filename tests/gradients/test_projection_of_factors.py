from __future__ import annotations

import torch

from leaveout.gradients.factors import Factor, factored_dots, form
from leaveout.gradients.projection_of_factors import project

SEEDS = 400


def factors(bias: bool) -> tuple[Factor, Factor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        Factor(
            "head",
            torch.randn(n, 9, generator=draw).double(),
            torch.randn(n, 6, generator=draw).double(),
            bias,
        )
        for n in (5, 4)
    )


def test_inner_products_have_the_right_expectation() -> None:
    for bias in (True, False):
        left, right = factors(bias)
        exact = factored_dots([left], [right])
        drawn = [[project(f, 9, seed, "t") for f in (left, right)] for seed in range(SEEDS)]
        found = torch.stack([a @ b.T for a, b in drawn])
        assert drawn[0][0].shape == (5, 9)
        error = found.std(0) / SEEDS**0.5
        # 20 entries: all of as many standard normals are below 4.5 but for one in 7,000 draws
        assert ((found.mean(0) - exact) / error).abs().max() < 4.5
        assert found.std() > 0


def test_a_side_that_is_small_enough_is_kept() -> None:
    left, _ = factors(bias=False)
    torch.testing.assert_close(project(left, 100, 0, "t"), form([left]), rtol=0, atol=0)
    # six outputs are kept, nine inputs become six
    assert project(left, 36, 0, "t").shape == (5, 36)
    assert project(left, 1, 0, "t").shape == (5, 1)


def test_a_sample_s_projection_is_its_own() -> None:
    left, _ = factors(bias=True)
    alone = Factor("head", left.inputs[3:4], left.deltas[3:4], True)
    found = project(left, 4, 0, "t", 1)
    torch.testing.assert_close(project(alone, 4, 0, "t", 1), found[3:4])
    for other in (project(left, 4, 1, "t", 1), project(left, 4, 0, "t", 2)):
        assert (other - found).abs().max() > 0.1
