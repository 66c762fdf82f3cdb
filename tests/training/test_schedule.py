import pytest

from pgt.config.schema import Cosine, Step
from pgt.training.schedule import build
from tests.conftest import compose

COMPOSED = compose("model=resnet18", "data=synthetic", "recipe.lr_scaling=none")
PAPER = COMPOSED.recipe.model_copy(
    update={"lr_start": 4e-4, "lr_peak": 0.4, "lr_end": 0.0, "warmup_epochs": 5, "epochs": 100, "cooldown_epochs": 0}
)
AUTHORS = PAPER.model_copy(
    update={"lr_rule": "authors", "lr_start": 0.01, "lr_peak": 0.1, "lr_end": 1e-4, "cooldown_epochs": 10}
)
COSINE = Cosine(name="cosine")
STEP = Step(name="step", milestones=[30, 60, 90], factor=0.1)

COSINE_TABLE = {0: 0.01, 1: 0.046, 2: 0.064, 3: 0.082, 4: 0.09924, 9: 0.09699, 29: 0.07503, 59: 0.02508,
                79: 0.00311, 88: 0.00013, 89: 0.0001, 99: 0.0001}  # fmt: skip
STEP_TABLE = {0: 0.01, 1: 0.046, 2: 0.064, 3: 0.082, 4: 0.1, 9: 0.1, 29: 0.01, 59: 0.001, 79: 0.001, 88: 0.001,
              89: 0.0001, 99: 0.0001}  # fmt: skip


@pytest.mark.parametrize(("epoch", "rate"), COSINE_TABLE.items())
def test_authors_cosine(epoch, rate):
    schedule = build(AUTHORS, COSINE, 7)
    assert [schedule(7 * epoch + step) for step in (0, 6)] == pytest.approx([rate, rate], abs=5e-6)


@pytest.mark.parametrize(("epoch", "rate"), STEP_TABLE.items())
def test_authors_step(epoch, rate):
    schedule = build(AUTHORS, STEP, 7)
    assert [schedule(7 * epoch + step) for step in (0, 6)] == pytest.approx([rate, rate], abs=5e-6)


def test_papers_cosine_by_step():
    schedule = build(PAPER, COSINE, 1000)
    assert schedule(0) == 4e-4
    assert schedule(2500) == pytest.approx((4e-4 + 0.4) / 2)
    assert schedule(5000) == 0.4
    assert schedule(52_500) == pytest.approx(0.2)
    assert schedule(99_999) == pytest.approx(0, abs=1e-9)
    rates = [schedule(step) for step in range(5000, 100_000, 500)]
    assert rates == sorted(rates, reverse=True)


def test_papers_step():
    schedule = build(PAPER, STEP, 10)
    rates = {epoch: schedule(10 * epoch) for epoch in (5, 29, 30, 59, 60, 89, 90, 99)}
    expected = {5: 0.4, 29: 0.4, 30: 0.04, 59: 0.04, 60: 0.004, 89: 0.004, 90: 0.0004, 99: 0.0004}
    assert rates == pytest.approx(expected)
    assert schedule(299) == 0.4
    assert schedule(25) == pytest.approx((4e-4 + 0.4) / 2)


def test_the_cosine_ends_where_a_cooldown_begins():
    schedule = build(PAPER.model_copy(update={"lr_end": 1e-3, "cooldown_epochs": 10}), COSINE, 10)
    assert schedule(475) == pytest.approx((0.4 + 1e-3) / 2)  # in the middle of epochs 5 to 90
    assert schedule(899) > 1.0001e-3
    assert {schedule(step) for step in range(900, 1000)} == {1e-3}


def test_linear_scaling_scales_the_whole_curve():
    paper = PAPER.model_copy(update={"lr_end": 1e-3})
    scaling = {"lr_scaling": "linear", "lr_reference_batch": 256}
    half = build(paper.model_copy(update={**scaling, "global_batch": 128}), COSINE, 10)
    whole = build(paper, COSINE, 10)
    assert half(999) == pytest.approx(5e-4, rel=0.01)
    assert [half(s) for s in range(0, 1000, 50)] == pytest.approx([whole(s) / 2 for s in range(0, 1000, 50)])


def test_no_warmup():
    assert build(PAPER.model_copy(update={"warmup_epochs": 0, "lr_peak": 0.1}), COSINE, 5)(0) == 0.1
