"""VGG-19 with batch norm for small images: torchvision's features and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

FEATURES = 512


class VGG19(nn.Module):
    """VGG-19 with batch norm for [N, 3, 32, 32], 20.0 M parameters with 10 classes.

    The features are torchvision's, and so is their initialisation: Kaiming normal, fan-out. Its three linear layers,
    made for 7×7 maps, give way to the mean over the map and one linear layer. Images may have any size from 32 pixels a
    side.

    Args:
        num_classes: outputs of the classifier `fc`.

    Reference: Simonyan and Zisserman, arXiv 1409.1556.
    """

    def __init__(self, num_classes: int) -> None:
        from torchvision.models.vgg import cfgs, make_layers  # takes seconds, and other networks do not need it

        super().__init__()
        self.features: nn.Sequential = make_layers(cfgs["E"], batch_norm=True)
        self.fc = nn.Linear(FEATURES, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits
