"""What a training is said to take: counted from a trial that leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from required import required_or_skipped

from edgedistill.students import BACKENDS
from edgedistill.students.lessons import Lesson, text_lesson

WIDTH = 24
LESSON = text_lesson("one", list(range(12)), 3)


@pytest.fixture(autouse=True)
def torch_here() -> None:
    required_or_skipped("torch", BACKENDS["torch"][0])


def test_what_is_kept_is_counted_to_the_byte() -> None:
    """Of a frozen embedding and a linear layer that learns, the layer's input is kept, and nothing else."""
    import torch

    from edgedistill.students.torch_memory import HEAP, step_cost

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(50, WIDTH).requires_grad_(False), torch.nn.Linear(WIDTH, 2, False))

    def summed(lessons: Sequence[Lesson]) -> torch.Tensor:
        return sum(model(torch.from_numpy(lesson.tokens.astype(np.int64))).sum() for lesson in lessons)  # type: ignore[return-value]

    before, state = [weight.clone() for weight in model.parameters()], torch.get_rng_state()
    cost = step_cost(model, summed, LESSON)
    assert cost.per_token == pytest.approx(HEAP * 4 * WIDTH)
    assert cost.per_pair == pytest.approx(0.0, abs=1e-6)
    assert (cost.resting, cost.gradient) == (2 * 4 * 2 * WIDTH, 4 * 2 * WIDTH)
    assert cost.seconds_per_token > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))


def test_what_is_let_go_before_the_way_back_is_not_counted() -> None:
    """As in DoRA, whose rows' lengths are computed of its weights, and are no part of the gradient."""
    import torch

    from edgedistill.students.torch_memory import step_cost

    class Scaled(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            size = torch.nn.functional.linear(torch.eye(WIDTH), self.weight).norm().detach()
            return super().forward(hidden) / size

    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, WIDTH).requires_grad_(False)

    def cost(layer: torch.nn.Module) -> int:
        def summed(lessons: Sequence[Lesson]) -> torch.Tensor:
            return sum(  # type: ignore[return-value]
                layer(embedding(torch.from_numpy(lesson.tokens.astype(np.int64)))).sum() for lesson in lessons
            )

        return step_cost(torch.nn.ModuleList([embedding, layer]), summed, LESSON).beside

    plain, scaled = cost(torch.nn.Linear(WIDTH, 2, False)), cost(Scaled(WIDTH, 2, False))
    assert plain <= scaled < plain + 4 * WIDTH, "the eye alone takes that times the width"


@given(st.integers(1, 64), st.integers(1, 512), st.integers(0, 10**9))
def test_a_step_takes_its_moments_and_the_larger_of_what_it_keeps_and_its_gradient(
    rows: int, length: int, learned: int
) -> None:
    from edgedistill.students.torch_memory import StepCost

    cost = StepCost(resting=2 * learned, gradient=learned, beside=7, per_token=3.0, per_pair=0.5, seconds_per_token=1.0)
    kept = int(rows * (3.0 * length + 0.5 * length**2))
    assert cost.bytes(rows, length) == 2 * learned + 7 + max(kept, learned)
    assert cost.bytes(rows, length, adds_up=True) == 2 * learned + 7 + max(kept + learned, learned)
    assert cost.bytes(rows + 1, length) >= cost.bytes(rows, length)
