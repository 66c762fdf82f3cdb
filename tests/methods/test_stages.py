import pytest
from torch import nn

from pgt.methods.stages import find_stages, stage_between
from pgt.models import MODELS, build

EXPECTED = {
    "resnet18": ["layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"],
    "resnet34": ["layer1.2.conv2", "layer2.3.conv2", "layer3.5.conv2", "layer4.2.conv2"],
    "resnet50": ["layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"],
    "resnet101": ["layer1.2.conv3", "layer2.3.conv3", "layer3.22.conv3", "layer4.2.conv3"],
    "seresnet18": ["layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"],
    "seresnet50": ["layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"],
    "resnet18_nobn": ["layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"],
    "resnet20": ["blocks.2.conv2", "blocks.5.conv2", "blocks.8.conv2"],
    "resnet20_nobn": ["blocks.2.conv2", "blocks.5.conv2", "blocks.8.conv2"],
}
"""As many as the source names: four for ResNet-18, three for ResNet-20."""


def test_every_network_has_a_row():
    assert {*EXPECTED, "vgg19_bn"} == set(MODELS)
    with pytest.raises(ValueError, match="no residual blocks"):
        find_stages(build("vgg19_bn", 10))


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "resnet101"])
def test_the_last_convolution_of_each_stage_is_found(name):
    assert [stage.convolution for stage in find_stages(build(name, 10))] == EXPECTED[name]


def test_stages_know_the_widths_of_the_hidden_states():
    found = find_stages(build("resnet50", 10))
    assert [(stage.inputs, stage.outputs) for stage in found] == [(64, 256), (256, 512), (512, 1024), (1024, 2048)]
    assert [(stage.first, stage.last) for stage in found][:2] == [("layer1.0", "layer1.2"), ("layer2.0", "layer2.3")]


def test_what_has_no_stages_says_so():
    with pytest.raises(ValueError, match="no stages in Sequential"):
        find_stages(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="blocks"):
        stage_between(build("resnet20", 10), "blocks.0", "blocks.9")
    with pytest.raises(ValueError, match="fc, which is no residual block"):
        stage_between(build("resnet20", 10), "blocks.0", "fc")
