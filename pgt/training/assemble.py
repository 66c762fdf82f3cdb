"""Builds loaders and trainer on a rank's device from a checked config."""

from __future__ import annotations

import os
import re

import torch
from torch import nn

from pgt import models
from pgt.config.schema import Config, Model, OurTransform, Own
from pgt.core.errors import InputError
from pgt.core.types import Alteration, Loader, Loss
from pgt.data import DataSet
from pgt.data.delivery import Delivery
from pgt.methods import AuthorsHookCrossEntropy, Transform, build_alteration, build_loss, uniform_epsilon
from pgt.training import device_memory, optimizer, own, schedule
from pgt.training.precision import Precision
from pgt.training.ranks import Ranks
from pgt.training.recorder import record_format
from pgt.training.trainer import Trainer
from pgt.training.trial import try_loss, try_network

CLASSIFIER = r"^fc\."
"""The regular expression of a config that stands for the classifier, whatever the network calls it."""


def set_up_torch(config: Config) -> None:
    """Choose deterministic or fast kernels, as the config says, for the whole process."""
    deterministic = config.trainer.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # each call imports inductor, which takes seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def assemble(config: Config, dataset: DataSet, ranks: Ranks) -> tuple[Loader, Loader, Trainer]:
    """Make the training loader, the test loader and the trainer of a config, on the rank's device.

    Raises:
        InputError: the data cannot be delivered as the config says, the label smoothing does not fit the classes, or
            an alteration does not fit the network.
    """
    recipe, method, device = config.recipe, config.method, ranks.device
    precision = Precision(config.trainer.precision, device.type)
    delivery = Delivery(
        device,
        precision.dtype,
        recipe.global_batch,
        recipe.local_batch,
        config.seed,
        config.data.drop_last,
        ranks.rank,
        ranks.world_size,
        ranks.cpus,
    )
    train, test = dataset.loaders(delivery)
    model = precision.apply(_model(config, train.num_classes))
    model = model.to(device).to(memory_format=torch.channels_last)
    unused = try_network(config, model, train.num_classes, precision)
    if config.record.norms_every:
        record_format(model)  # refuses a network whose norms cannot be recorded, before anything is written
    try:
        uniform_epsilon(method.label_smoothing, train.num_classes, method.smoothing)
    except ValueError as error:
        raise InputError(f"method.{error}") from None
    loss = _loss(config, device)
    try_loss(config, loss, train.num_classes, device)
    if config.trainer.checkpoint_activations:
        device_memory.checkpoint_activations(model)
    rates = schedule.build(recipe, config.schedule, train.steps_per_epoch)
    alterations = []
    for index, transform in enumerate(method.transforms):
        key = f"method.transforms.{index}"
        alterations.append(_alteration(key, transform, model))
        try:
            alterations[-1].attach(model, rates)
        except ValueError as error:
            raise InputError(f"{key} ({transform.name}) {error}") from None
    trainer = Trainer(
        model=model,
        loss=loss,
        optimizer=optimizer.build(model, recipe.momentum, recipe.weight_decay, fused=device.type == "cuda"),
        schedule=rates,
        alterations=alterations,
        precision=precision,
        scaler=precision.scaler(config.trainer.loss_scale, config.trainer.loss_scale_growth_interval),
        ranks=ranks,
        bn_statistics=recipe.bn_statistics,
        accumulating=train.groups_per_step > 1,
        compiled=config.trainer.compile,
        diagnostics=loss.diagnostics if isinstance(loss, AuthorsHookCrossEntropy) else dict,
        seed=config.seed,
        unused=unused,
    )
    return train, test, trainer


def _model(config: Config, classes: int) -> nn.Module:
    if isinstance(config.model, Model):
        return models.build(config.model.name, classes, config.model.stem)
    model = own.make("model", config.model, num_classes=classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"model ({config.model.name}) must make a torch.nn.Module, not {type(model).__name__}")
    return model


def _loss(config: Config, device: torch.device) -> Loss:
    method = config.method
    if method.loss is None:
        return build_loss(method.implementation, method.alpha, method.label_smoothing, method.smoothing)
    loss: Loss = own.make("method.loss", method.loss)
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _alteration(key: str, transform: OurTransform | Own, model: nn.Module) -> Alteration:
    if isinstance(transform, Own):
        made = own.make(key, transform)
        return made if isinstance(made, Alteration) else Transform(made)
    options = transform.model_dump()
    if options.get("exclude") == CLASSIFIER:
        options["exclude"] = rf"^({'|'.join(map(re.escape, models.classifiers(model)))})\."
    return build_alteration(**options)
