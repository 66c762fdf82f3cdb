import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from pgt.core.errors import InputError, TrainingError
from pgt.core.types import IGNORE_INDEX, Batch
from pgt.methods import PowerGradCrossEntropy
from pgt.training import checkpoint, optimizer
from pgt.training.assemble import set_up_torch
from pgt.training.batch_norm import running_statistics
from pgt.training.evaluation import calibration_error, calibration_sums, evaluate
from pgt.training.precision import Precision
from pgt.training.ranks import Ranks
from pgt.training.trainer import Trainer
from tests.conftest import TINY, compose


def trainer(model, precision="fp32", loss=None, rate=0.1):
    chosen = Precision(precision, "cpu")
    sgd = optimizer.build(model, 0.9, 5e-4, fused=False)
    loss = loss or PowerGradCrossEntropy(0.5)
    return Trainer(chosen.apply(model), loss, sgd, lambda step: rate, [], chosen, chosen.scaler(65536, 2000))


def network(normalized=True):
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(4) if normalized else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def batches(count, size=6, dtype=torch.float32):
    torch.manual_seed(4)
    return [Batch(torch.randn(size, 3, 8, 8, dtype=dtype), torch.randint(5, (size,))) for _ in range(count)]


class Loaded:
    """A loader of batches in memory."""

    def __init__(self, batches, groups_per_step=1):
        self.batches, self.num_classes, self.groups_per_step = batches, 5, groups_per_step
        self.steps_per_epoch = len(batches) // groups_per_step
        self.num_samples = sum(int((b.labels != IGNORE_INDEX).sum()) for b in batches)

    def epoch(self, index):
        yield from self.batches


class Records(list):
    def write(self, step, record):
        self.append({"step": step, **record})

    def close(self):
        pass


def test_groups_of_a_step_add_up_to_one_batch():
    """Without batch norm, four groups of 6 are one batch of 24 (float64: to rounding)."""
    groups = batches(4, dtype=torch.float64)
    whole = Batch(torch.cat([b.images for b in groups]), torch.cat([b.labels for b in groups]))
    accumulated, at_once = (trainer(network(normalized=False), "fp64") for _ in range(2))
    for step in range(5):
        accumulated.train_step(groups, step)
        at_once.train_step([whole], step)
    for p, q in zip(accumulated.model.parameters(), at_once.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_a_step_keeps_no_gradients():
    """Their memory is free for the next forward pass, and the backward pass writes instead of adding."""
    subject = trainer(network())
    subject.train_step(batches(2), 0)
    assert [name for name, p in subject.parameters if p.grad is not None] == []


def test_running_statistics_follow_group_0():
    groups = batches(3)
    accumulated, reference = trainer(network(), rate=0.0), network()
    accumulated.train_step(groups, 0)
    reference.train()(groups[0].images)
    for name, buffer in reference[1].named_buffers():
        torch.testing.assert_close(accumulated.model[1].get_buffer(name), buffer)


def test_running_statistics_context_restores():
    model = network()

    def fail():
        with running_statistics(model, "first", 1, 2, first_rank=True):
            assert not model[1].track_running_stats
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert model[1].track_running_stats


def test_weight_decay_skips_vectors():
    groups = optimizer.build(network(), 0.9, 5e-4, fused=False).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in groups)


def test_transforms_act_once_on_the_unscaled_sum_of_all_groups():
    seen = []
    subject = trainer(network(normalized=False), "fp16")
    subject.alterations = [lambda parameters, step: seen.append([p.grad.clone() for _, p in parameters])]
    groups = [Batch(b.images.half(), b.labels) for b in batches(2)]
    subject.train_step(groups, 7)
    reference = network(normalized=False)
    loss = PowerGradCrossEntropy(0.5)
    sum(loss(reference(b.images), b.labels) / 2 for b in batches(2)).backward()
    assert len(seen) == 1
    for got, p in zip(seen[0], reference.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=0.02, atol=2e-4)


def test_an_epoch_reports_the_mean_over_its_samples():
    subject, records = trainer(network(), rate=0.0), Records()
    loader = Loaded(batches(4))
    report = subject.train_epoch(loader, 2, records, log_every=3)
    assert [record["step"] for record in records] == [8, 11]
    with torch.no_grad():
        outputs = [network().train()(b.images) for b in loader.batches]
    loss = sum(F.cross_entropy(z, b.labels).item() for z, b in zip(outputs, loader.batches, strict=True)) / 4
    correct = sum((z.argmax(1) == b.labels).sum().item() for z, b in zip(outputs, loader.batches, strict=True))
    assert report["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert report["train_top1"] == pytest.approx(100 * correct / 24)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    subject = trainer(network())
    good, bad = batches(1)[0], Batch(torch.full((6, 3, 8, 8), torch.nan), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(TrainingError, match=r"not finite since step 8 \(learning rate 0.1\)"):
        subject.train_epoch(Loaded([good] * 3 + [bad] * 2), 1, Records(), log_every=5)


def test_the_scaler_has_its_say_first():
    """An overflow that a smaller loss scale cures does not stop the run; one that nothing cures does."""
    subject = trainer(network(normalized=False), "fp16", rate=1e-3)
    subject.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    half = [Batch(b.images.half(), b.labels) for b in batches(30)]
    report = subject.train_epoch(Loaded(half), 0, Records(), log_every=30)
    assert math.isfinite(report["train_loss"])
    assert report["loss_scale"] < 2.0**40
    bad = Batch(torch.full((6, 3, 8, 8), torch.inf, dtype=torch.float16), half[0].labels)
    with pytest.raises(TrainingError, match=r"not finite since step 30 with the loss scale at \d"):
        subject.train_epoch(Loaded([bad] * 30), 1, Records(), log_every=30)


def test_gradients_that_are_finite_at_no_loss_scale_stop_the_run():
    """The scaler would skip every step, and the finite loss would hide it."""

    def loss(logits, target):
        return F.cross_entropy(logits.float(), target) + (0 * logits.float().sum()).sqrt()

    subject = trainer(network(normalized=False), "fp16", loss=loss)
    half = [Batch(b.images.half(), b.labels) for b in batches(20)]
    subject.train_epoch(Loaded(half), 0, Records(), log_every=20)
    subject.train_epoch(Loaded(half), 1, Records(), log_every=20)
    with pytest.raises(TrainingError, match=r"the gradients are not finite, even with the loss scale at .*e-1"):
        subject.train_epoch(Loaded(half), 2, Records(), log_every=20)


def test_a_loss_that_is_not_finite_does_not_count_in_the_mean():
    subject = trainer(network(normalized=False), "fp16", loss=first_then_infinite())
    half = [Batch(b.images.half(), b.labels) for b in batches(2)]
    report = subject.train_epoch(Loaded(half), 0, Records(), log_every=2)
    assert report["train_loss"] == pytest.approx(2.0)


def test_the_steps_of_an_epoch_that_the_scaler_skips_are_counted():
    subject = trainer(network(normalized=False), "fp16", rate=1e-3)
    subject.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    good = [Batch(b.images.half(), b.labels) for b in batches(3)]
    bad = Batch(torch.full((6, 3, 8, 8), torch.inf, dtype=torch.float16), good[0].labels)
    first = subject.train_epoch(Loaded([good[0], bad, good[1], bad, good[2]]), 0, Records(), log_every=5)
    assert (first["skipped_steps"], first["loss_scale"]) == (2, 16.0)
    second = subject.train_epoch(Loaded([bad, *good, good[0]]), 1, Records(), log_every=5)
    assert (second["skipped_steps"], second["loss_scale"]) == (1, 8.0)


def first_then_infinite():
    """2 for the first batch, infinite for the others."""
    calls = []

    def loss(logits, target):
        calls.append(target)
        return 0 * logits.float().sum() + (2.0 if len(calls) == 1 else math.inf)

    return loss


def test_a_streak_outlasts_the_epoch_and_counts_steps_not_groups():
    """fp16 in epochs of two steps of four groups: the 25th bad step ends it, not the 25th group."""
    subject = trainer(network(normalized=False), "fp16")
    bad = Batch(torch.full((6, 3, 8, 8), torch.inf, dtype=torch.float16), torch.zeros(6, dtype=torch.int64))
    good = Batch(batches(1)[0].images.half(), torch.zeros(6, dtype=torch.int64))
    loader = Loaded([good, bad, bad, bad, bad, bad, bad, bad], groups_per_step=4)  # one finite group an epoch
    for epoch in range(12):
        subject.train_epoch(loader, epoch, Records(), log_every=2)
    with pytest.raises(TrainingError, match="not finite since step 0 with"):
        subject.train_epoch(loader, 12, Records(), log_every=2)


def test_an_epoch_without_a_finite_loss_is_no_epoch():
    subject = trainer(network(normalized=False), "fp16")
    bad = Batch(torch.full((6, 3, 8, 8), torch.inf, dtype=torch.float16), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(TrainingError, match="no loss of epoch 1 was finite"):
        subject.train_epoch(Loaded([bad, bad]), 0, Records(), log_every=1)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_first_step_leaves_a_clean_momentum(fused):
    """torch's fused SGD leaves its buffer uninitialised where the gradient scaler skips the first step."""
    p = torch.nn.Linear(4, 4, bias=False)
    start = p.weight.detach().clone()
    sgd = optimizer.build(p, 0.9, 0.0, fused)
    optimizer.set_rate(sgd, 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value in (math.inf, 1.0):
        p.weight.grad = torch.full((4, 4), value * scaler.get_scale())
        scaler.scale(torch.ones(()))
        scaler.unscale_(sgd)
        scaler.step(sgd)
        scaler.update()
    torch.testing.assert_close(p.weight.detach(), start - 0.1 * 1.9)  # Nesterov: g + 0.9·g


def test_evaluation_counts_each_sample_once():
    model = network().eval()
    images, labels = torch.randn(10, 3, 8, 8), torch.randint(5, (10,))
    padded = torch.cat([labels, torch.tensor([IGNORE_INDEX] * 2)])
    loader = Loaded([Batch(images[:6], labels[:6]), Batch(torch.cat([images[6:], images[:2]]), padded[6:])])
    got = evaluate(model, loader, 0.25, Precision("fp32", "cpu"))
    with torch.no_grad():
        z = model(images)
    expected = {
        "test_top1": 100 * (z.argmax(1) == labels).float().mean().item(),
        "test_top5": 100.0,
        "test_loss": F.cross_entropy(z, labels).item(),
        "test_loss_alpha": F.cross_entropy(0.25 * z, labels).item(),
        "test_logit_norm": z.norm(dim=1).mean().item(),
        "test_logit_mean": z.mean().item(),
        "test_logit_max": z.max(dim=1).values.mean().item(),
        "test_logit_variance": z.numpy().var(axis=1).mean(),
        "test_ece": calibration_by_definition(z, labels),
        "test_ece_alpha": calibration_by_definition(0.25 * z, labels),
    }
    assert got == pytest.approx(expected, rel=1e-4)


def test_top_5_counts_a_label_among_the_five_largest_of_ten_logits():
    """Each rank among the logits is that of ten labels."""
    logits, ranks = torch.rand(100, 10).argsort(1).float(), torch.arange(100) % 10
    labels = (logits == 9 - ranks[:, None]).int().argmax(1)
    model = nn.Linear(10, 10, bias=False)
    nn.init.eye_(model.weight)
    got = evaluate(model, Loaded([Batch(logits, labels)]), 1.0, Precision("fp32", "cpu"))
    assert (got["test_top1"], got["test_top5"]) == (10, 50)


def calibration_by_definition(z, labels):
    """The expected calibration error in percent, one of 15 bins of confidence after the other."""
    confidence, predicted = z.softmax(1).max(1)
    total = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & ((confidence < (low + 1) / 15) | (low == 14))
        if inside.any():
            gap = confidence[inside].mean() - (predicted[inside] == labels[inside]).double().mean()
            total += gap.abs().item() * inside.sum().item() / len(labels)
    return 100 * total


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 1000.0])
def test_the_calibration_error_is_that_of_its_definition(scale):
    """However the samples are split; at the largest scale confidences are exactly 1."""
    z, labels = scale * torch.randn(500, 10, dtype=torch.float64), torch.randint(10, (500,))
    labels[::2] = z.argmax(1)[::2]
    parts = sum(calibration_sums(a, b) for a, b in zip(z.split(170), labels.split(170), strict=True))
    assert parts[0].sum() == 500
    assert 100 * calibration_error(parts).item() == pytest.approx(calibration_by_definition(z, labels), rel=1e-12)
    assert (parts[0, -1] > 0) == (scale > 1)


def test_the_calibration_error_of_a_network_that_diverged_is_no_number():
    z = torch.full((4, 3), math.nan, dtype=torch.float64)
    assert math.isnan(calibration_error(calibration_sums(z, torch.zeros(4, dtype=torch.int64))))


def test_a_deterministic_run_leaves_the_next_one_free():
    for deterministic in (False, True, True, False):
        set_up_torch(compose(*TINY, f"trainer.deterministic={deterministic}"))
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.benchmark != deterministic


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_every_precision_trains(precision):
    subject = trainer(network(), precision)
    dtype = subject.precision.dtype
    data = [Batch(b.images.to(dtype), b.labels) for b in batches(1)] * 12
    losses = [subject.train_epoch(Loaded(data), e, Records(), 20)["train_loss"] for e in range(2)]
    assert losses[1] < losses[0]


def test_tf32_is_on_where_it_is_asked_for_and_off_elsewhere():
    for name in ("tf32", "fp32", "tf32", "bf16"):
        Precision(name, "cpu").apply(network())
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        assert flags == (name == "tf32", name == "tf32")


def test_a_checkpoint_executes_nothing_and_says_what_is_wrong(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": network().state_dict(), "epoch": 3})
    assert checkpoint.load(path, torch.device("cpu"))["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    torch.save({"model": network()}, path)
    with pytest.raises(InputError, match=r"cannot load the checkpoint .*last.pt"):
        checkpoint.load(path, torch.device("cpu"))
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="start over"):
        checkpoint.load(path, torch.device("cpu"))


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    """For example numpy's numbers in the state of an alteration of the user's own."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"epoch": 3})
    with pytest.raises(InputError, match=r"would hold numpy\S*scalar"):
        checkpoint.save(path, {"alterations": [{"mean": np.float64(1.5)}]})
    assert checkpoint.load(path, torch.device("cpu")) == {"epoch": 3}


class Counting(nn.Flatten):
    """A layer whose state is no tensor."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_a_state_keeps_what_a_layer_adds_to_it(tmp_path):
    one, other = (trainer(nn.Sequential(Counting(), nn.Linear(192, 5))) for _ in range(2))
    one.train_step(batches(2), 0)
    checkpoint.save(tmp_path / "last.pt", one.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "last.pt", "cpu"))
    assert other.model[0].calls == 2


class Doubling(Ranks):
    """Ranks whose exchange changes a tensor."""

    def broadcast_(self, tensors):
        for tensor in tensors:
            tensor *= 2


def test_a_state_has_the_statistics_of_all_ranks_and_each_rank_keeps_its_own():
    subject = trainer(network())
    subject.train_step(batches(1), 0)
    subject.ranks, own = Doubling(), subject.model[1].running_mean.clone()
    state = subject.state_dict()["model"]
    assert torch.equal(state["1.running_mean"], 2 * own)
    assert torch.equal(subject.model[1].running_mean, own)
    assert list(state) == list(subject.model.state_dict())


def test_a_state_finds_statistics_under_other_names_and_holds_no_more_than_its_tensors():
    net = network()
    net[1] = checkpoint_wrapper(net[1])  # it is left out of the names of the state, and stands in those of modules
    net.register_buffer("part", torch.zeros(1000)[:2])
    subject = trainer(net)
    subject.ranks = Doubling()
    state = subject.state_dict()["model"]
    assert list(state) == list(net.state_dict())
    assert torch.equal(state["1.running_var"], 2 * net.state_dict()["1.running_var"])
    assert state["part"].untyped_storage().nbytes() == 8
    assert not any(value.requires_grad for value in state.values())


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"epoch": 3})
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        checkpoint.save(path, {"epoch": 4, "bad": lambda: None})
    assert checkpoint.load(path, torch.device("cpu")) == {"epoch": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_state_keeps_the_loss_scale_the_skipped_steps_and_the_streak():
    """Behind a good step, which the scaler counts, and within a streak of bad ones."""
    one, other = (trainer(network(normalized=False), "fp16", rate=1e-3) for _ in range(2))
    one.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    good = Batch(batches(1)[0].images.half(), torch.zeros(6, dtype=torch.int64))
    bad = Batch(torch.full_like(good.images, torch.inf), good.labels)
    for groups, skipped, streak in (([good, bad, good], 1, [0, math.inf]), ([good, bad, bad], 2, [2, 4])):
        one.train_epoch(Loaded(groups), one.progress.epoch + 1, Records(), log_every=3)
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        assert other.tally.read()[3:] == [skipped, *streak]
        assert other.scaler.state_dict() == one.scaler.state_dict()
        assert other.tally.read() == one.tally.read()


def test_a_state_goes_on_where_the_optimizer_is_of_another_kind():
    """A run begun on a CPU, on a GPU: its fused kernel is that device's, not the checkpoint's."""
    one, other = trainer(network()), trainer(network())
    other.optimizer = optimizer.build(other.model, 0.9, 5e-4, fused=True)
    one.train_step(batches(1), 0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert all(group["fused"] for group in other.optimizer.param_groups)
    for subject in (one, other):
        subject.train_step(batches(1), 1)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
