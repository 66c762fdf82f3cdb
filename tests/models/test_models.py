import pytest
import torch
import torchvision
from torch import nn

from pgt.core.registry import PARAMETERS, STEMS
from pgt.models import MODELS, build
from tests.conftest import TINY, train


def classes(name):
    return 10 if name.startswith("resnet20") else 1000


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_the_published_size_and_a_classifier_fc(name):
    with torch.device("meta"):
        model = build(name, classes(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.fc.out_features == classes(name)


FEW = {"resnet20", "resnet18_nobn"}
"""The models that the fast tests train."""


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in sorted(MODELS)]
)
def test_every_model_trains_two_steps(name):
    summary = train(*TINY, f"model={name}", "recipe.lr_peak=0.001", "recipe.lr_start=0.001")
    assert summary.status == "finished"
    assert summary.train_loss > 0


@pytest.mark.parametrize("name", ["resnet18_nobn", "resnet20_nobn"])
def test_without_normalization_only_the_classifier_has_a_bias(name):
    model = build(name, 10)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert [n for n, p in model.named_parameters() if p.ndim == 1] == ["fc.bias"]


def test_resnet18_nobn_has_20_convolutions():
    convolutions = [m for m in build("resnet18_nobn", 10).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20
    widths = [c.out_channels for c in convolutions]
    assert (widths[0], widths[10], widths[19]) == (64, 256, 512)  # layers 1, 11 and 20 of the paper's figures
    downsampling = [i for i, c in enumerate(convolutions, 1) if c.kernel_size == (1, 1)]
    assert downsampling == [8, 13, 18]


def test_last_norms_are_not_zeroed_and_convolutions_are_kaiming_fan_out():
    model = build("resnet50", 10)
    assert all((block.bn3.weight == 1).all() for block in model.layer1)
    weight = model.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.01)


def test_squeeze_and_excitation_is_the_recipes():
    se = build("seresnet50", 10).layer1[0].se
    assert se.fc1.out_channels == 256 // 16
    assert se.fc1.bias is not None
    torch.testing.assert_close(se.gate(torch.tensor([0.3])), torch.tensor([0.3]).sigmoid())


def test_a_small_stem_keeps_the_size_of_the_image_and_nothing_else_changes():
    small, standard = build("resnet18", 10, "small"), build("resnet18", 10)
    maps = {}
    small.layer1.register_forward_pre_hook(lambda module, inputs: maps.update(stem=inputs[0]))
    small(torch.randn(2, 3, 32, 32))
    assert maps["stem"].shape == (2, 64, 32, 32)
    differ = [k for k, v in small.state_dict().items() if v.shape != standard.state_dict()[k].shape]
    assert differ == ["conv1.weight"]
    assert small.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in STEMS[1:]] + [STEMS[0]])
def test_every_resnet_has_a_small_stem(name):
    summary = train(*TINY, f"model={name}", "model.stem=small", "recipe.lr_peak=0.001", "recipe.lr_start=0.001")
    assert summary.status == "finished"


def test_vgg19_has_torchvisions_features_and_their_initialisation():
    torch.manual_seed(0)
    ours = build("vgg19_bn", 10)
    with torch.device("meta"):
        theirs = torchvision.models.vgg19_bn()
    assert {k: v.shape for k, v in ours.features.state_dict().items()} == {
        k: v.shape for k, v in theirs.features.state_dict().items()
    }
    assert [name for name, _ in ours.named_children()] == ["features", "fc"]
    convolutions = [m for m in ours.features if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 16
    for conv in convolutions:
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.05)
        assert (conv.bias == 0).all()


def test_resnet20_shortcuts_are_identities_padded_with_zeros():
    model = build("resnet20", 10).eval()
    block = model.blocks[3]  # 16 -> 32 channels, half the size
    x = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        block.conv2.weight.zero_()
        y = block(x)
    torch.testing.assert_close(y[:, :16], x[:, :, ::2, ::2])
    assert (y[:, 16:] == 0).all()
