"""The functions that the ranks of test_distributed.py and test_recorder.py run."""

import torch
import torch.nn.functional as F

from pgt.data import open_set
from pgt.training.assemble import assemble
from pgt.training.evaluation import evaluate
from pgt.training.ranks import process_group
from pgt.training.recorder import Recorder

STEPS = 12


DROPOUT = "dropout"
"""The name of the config that is trained with dropout before the classifier."""


def drop(layer, inputs):
    return F.dropout(*inputs, 0.5, layer.training)


def trained(configs, ranks):
    """Weights and buffers after `STEPS` steps of each config, an evaluation, and each rank's records of its
    alterations by epoch."""
    found = {}
    for name, config in configs.items():
        options = {key: getattr(config.data, key) for key in ("name", "num_samples", "num_classes", "image_size")}
        torch.manual_seed(config.seed)
        train, test, trainer = assemble(config, open_set(**options), ranks)
        trainer.model.train()
        if name == DROPOUT:
            trainer.model.fc.register_forward_pre_hook(drop)
        step, records = 0, []
        for epoch in range(-(-STEPS // train.steps_per_epoch)):
            batches = train.epoch(epoch)
            for _ in range(min(train.steps_per_epoch, STEPS - step)):
                trainer.train_step([next(batches) for _ in range(train.groups_per_step)], step)
                step += 1
            records += [alteration.end_epoch(epoch) for alteration in trainer.alterations]
        trainer.share_buffers()
        weights = {key: value.numpy() for key, value in trainer.model.state_dict().items()}
        tested = evaluate(trainer.model, test, config.method.alpha, trainer.precision, ranks)
        of_ranks = ranks.all_gather_object(records)
        found[name] = {"weights": weights, "tested": tested, "read": trainer.tally.read(), "of_ranks": of_ranks}
    return found


def trained_as_rank(configs):
    with process_group(2) as ranks:
        return trained(configs, ranks)


class Kept(dict):
    """A file of norms that keeps its records in memory."""

    def write(self, step, values):
        self[step] = values.copy()

    def sync(self):
        pass


def recorded(config, ranks):
    """The norms that rank 0 records in an epoch."""
    options = {key: getattr(config.data, key) for key in ("name", "num_samples", "num_classes", "image_size")}
    torch.manual_seed(config.seed)
    train, _, trainer = assemble(config, open_set(**options), ranks)
    kept = Kept()
    if ranks.first:
        trainer.recorder = Recorder(trainer.model, 2, train.steps_per_epoch - 1, kept)
    batches = train.epoch(0)
    for step in range(train.steps_per_epoch):
        trainer.train_step([next(batches) for _ in range(train.groups_per_step)], step)
    if ranks.first:
        trainer.recorder.sync()
    return dict(kept)


def recorded_as_rank(config):
    with process_group(2) as ranks:
        return recorded(config, ranks)
