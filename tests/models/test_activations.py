"""The registry's memory of each network, counted again."""

import pytest
import torch

from pgt import models
from pgt.core.registry import ACTIVATIONS, PARAMETERS


def saved_bytes(model, images):
    """Bytes that a forward pass keeps for the backward pass, without parameters and buffers."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def test_every_network_is_counted():
    assert set(ACTIVATIONS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_activations_and_parameters(name):
    classes = 10 if name.startswith("resnet20") else 1000
    with torch.device("meta"):
        model = models.build(name, classes).to(torch.bfloat16).train()
        images = torch.empty(4, 3, 224, 224, dtype=torch.bfloat16)
    assert saved_bytes(model, images) / 4 == pytest.approx(ACTIVATIONS[name], rel=0.01)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
