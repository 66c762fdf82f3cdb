"""PGT in a Lightning module: the two lines are the import and `self.loss`."""

import lightning
import torch
from torch import Tensor, nn

from pgt import PowerGradCrossEntropy


class Classifier(lightning.LightningModule):
    """Trains any network that maps images to logits.

    Args:
        model: the network.
        alpha: of PGT; 1 is plain cross-entropy.
        learning_rate: of SGD.
    """

    def __init__(self, model: nn.Module, alpha: float, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.model = model
        self.loss = PowerGradCrossEntropy(alpha)
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)
