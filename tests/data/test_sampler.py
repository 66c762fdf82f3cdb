import numpy as np
import pytest

from pgt.data.sampler import Sampler

N = 997
WORLDS = [1, 2, 3, 4]


def ranks(world_size, **options):
    return [Sampler(N, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("batch", [1, 7, 96])
def test_evaluation_counts_each_sample_exactly_once_in_equal_steps(world_size, batch):
    parts = [list(s.part(0)) for s in ranks(world_size, global_batch=batch * world_size, group=batch, training=False)]
    assert len({len(part) for part in parts}) == 1
    seen = np.concatenate([group for part in parts for group in part])
    assert sorted(seen[seen >= 0]) == list(range(N))


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("drop_last", [True, False])
def test_training_order_is_one_permutation_the_same_for_any_world_size(world_size, drop_last):
    options = {"global_batch": 96, "group": 8, "seed": 5, "drop_last": drop_last}
    parts = [list(s.part(3)) for s in ranks(world_size, **options)]
    per_rank = 96 // 8 // world_size
    steps = zip(*[[part[i : i + per_rank] for i in range(0, len(part), per_rank)] for part in parts], strict=True)
    order = np.concatenate([group for step in steps for rank in step for group in rank])
    [whole] = ranks(1, **options)
    assert np.array_equal(order, whole.order(3))
    unique = np.unique(order[:N])
    assert len(unique) == min(len(order), N)
    assert len(order) == (10 if drop_last else 11) * 96


def test_epochs_and_seeds_differ_and_repeat():
    sampler = Sampler(N, 96, 96, seed=1)
    assert np.array_equal(sampler.order(0), Sampler(N, 96, 96, seed=1).order(0))
    assert not np.array_equal(sampler.order(0), sampler.order(1))
    assert not np.array_equal(sampler.order(0), Sampler(N, 96, 96, seed=2).order(0))


def test_groups_are_the_same_in_every_layout():
    """Four groups of 24 on one rank, two or four: the same samples meet."""
    for world_size in (1, 2, 4):
        parts = [list(s.part(0)) for s in ranks(world_size, global_batch=96, group=24)]
        per_rank = 4 // world_size
        first_step = [tuple(group) for part in parts for group in part[:per_rank]]
        reference = list(Sampler(N, 96, 24).part(0))[:4]
        assert first_step == [tuple(group) for group in reference]


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="does not divide"):
        Sampler(N, 100, 24)
    with pytest.raises(ValueError, match="fewer than one batch"):
        Sampler(10, 100, 100)
