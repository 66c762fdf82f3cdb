"""From a checked config to what trains it: loaders and trainer on a rank's device."""

from __future__ import annotations

import os

import torch

from pgt import models
from pgt.config.schema import Config
from pgt.core.errors import InputError
from pgt.core.types import Loader
from pgt.data import DataSet
from pgt.data.delivery import Delivery
from pgt.methods import AuthorsHookCrossEntropy, build_alteration, build_loss, uniform_epsilon
from pgt.training import device_memory, optimizer, schedule
from pgt.training.precision import Precision
from pgt.training.ranks import Ranks
from pgt.training.trainer import Trainer


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
    model = precision.apply(models.build(config.model.name, train.num_classes, config.model.stem))
    model = model.to(device).to(memory_format=torch.channels_last)
    try:
        uniform_epsilon(method.label_smoothing, train.num_classes, method.smoothing)
    except ValueError as error:
        raise InputError(f"method.{error}") from None
    loss = build_loss(method.implementation, method.alpha, method.label_smoothing, method.smoothing)
    if config.trainer.checkpoint_activations:
        device_memory.checkpoint_activations(model)
    rates = schedule.build(recipe, config.schedule, train.steps_per_epoch)
    alterations = [build_alteration(**transform.model_dump()) for transform in method.transforms]
    for index, (alteration, transform) in enumerate(zip(alterations, method.transforms, strict=True)):
        try:
            alteration.attach(model, rates)
        except ValueError as error:
            raise InputError(f"method.transforms.{index} ({transform.name}) {error}") from None
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
    )
    return train, test, trainer
