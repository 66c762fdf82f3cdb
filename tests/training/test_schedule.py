import pytest

from pgt.training.schedule import Rates, build

PAPER = Rates(start=4e-4, peak=0.4, end=0.0, warmup_epochs=5, epochs=100)
AUTHORS = Rates(start=0.01, peak=0.1, end=1e-4, warmup_epochs=5, epochs=100, cooldown_epochs=10)
STEP = {"milestones": [30, 60, 90], "factor": 0.1}

COSINE_TABLE = {0: 0.01, 1: 0.046, 2: 0.064, 3: 0.082, 4: 0.09924, 9: 0.09699, 29: 0.07503, 59: 0.02508,
                79: 0.00311, 88: 0.00013, 89: 0.0001, 99: 0.0001}  # fmt: skip
STEP_TABLE = {0: 0.01, 1: 0.046, 2: 0.064, 3: 0.082, 4: 0.1, 9: 0.1, 29: 0.01, 59: 0.001, 79: 0.001, 88: 0.001,
              89: 0.0001, 99: 0.0001}  # fmt: skip


@pytest.mark.parametrize(("epoch", "rate"), COSINE_TABLE.items())
def test_authors_cosine(epoch, rate):
    schedule = build("cosine", "authors", AUTHORS, 7)
    assert [schedule(7 * epoch + step) for step in (0, 6)] == pytest.approx([rate, rate], abs=5e-6)


@pytest.mark.parametrize(("epoch", "rate"), STEP_TABLE.items())
def test_authors_step(epoch, rate):
    schedule = build("step", "authors", AUTHORS, 7, **STEP)
    assert [schedule(7 * epoch + step) for step in (0, 6)] == pytest.approx([rate, rate], abs=5e-6)


def test_papers_cosine_by_step():
    schedule = build("cosine", "paper", PAPER, 1000)
    assert schedule(0) == 4e-4
    assert schedule(2500) == pytest.approx((4e-4 + 0.4) / 2)
    assert schedule(5000) == 0.4
    assert schedule(52_500) == pytest.approx(0.2)
    assert schedule(99_999) == pytest.approx(0, abs=1e-9)
    rates = [schedule(step) for step in range(5000, 100_000, 500)]
    assert rates == sorted(rates, reverse=True)


def test_papers_step():
    schedule = build("step", "paper", PAPER, 10, **STEP)
    rates = {epoch: schedule(10 * epoch) for epoch in (5, 29, 30, 59, 60, 89, 90, 99)}
    expected = {5: 0.4, 29: 0.4, 30: 0.04, 59: 0.04, 60: 0.004, 89: 0.004, 90: 0.0004, 99: 0.0004}
    assert rates == pytest.approx(expected)
    assert schedule(299) == 0.4
    assert schedule(25) == pytest.approx((4e-4 + 0.4) / 2)


def test_scaled_rates_scale_the_whole_curve():
    half = build("cosine", "paper", PAPER.scaled(0.5), 10)
    whole = build("cosine", "paper", PAPER, 10)
    assert [half(s) for s in range(0, 1000, 50)] == pytest.approx([whole(s) / 2 for s in range(0, 1000, 50)])


def test_no_warmup():
    assert build("cosine", "paper", Rates(0, 0.1, 0, 0, 10), 5)(0) == 0.1
