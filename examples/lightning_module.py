"""PGT in a Lightning module: two lines differ from any other module, the import and `self.loss`.

python examples/lightning_module.py
"""

import sys

try:
    import lightning
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from pgt import PowerGradCrossEntropy
except ImportError as missing:
    sys.exit(f"{missing}: install pgt (README.md says how) and lightning")


class Classifier(lightning.LightningModule):
    """Train any network that maps images to logits.

    Args:
        model: the network.
        alpha: exponent of PGT; 1 is plain cross-entropy.
        learning_rate: learning rate of SGD.
    """

    def __init__(self, model: nn.Module, alpha: float, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.loss = PowerGradCrossEntropy(alpha)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy and two losses: logits z grow by about 1/α, and softmax(α·z) is calibrated."""
        images, labels = batch
        logits = self.model(images)
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)
        self.log("val_loss", self.loss(logits, labels))
        self.log("val_loss_alpha", self.loss(self.hparams.alpha * logits, labels), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)


def samples(count: int, seed: int) -> TensorDataset:
    """Noisy copies of ten random pictures, [count, 1, 8, 8], and which of them each one is."""
    pictures = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return TensorDataset(pictures[labels] + 2 * torch.randn(count, 1, 8, 8, generator=generator), labels)


def main() -> None:
    lightning.seed_everything(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(
        Classifier(network, alpha=0.25),
        DataLoader(samples(2000, seed=1), batch_size=50, shuffle=True),
        DataLoader(samples(1000, seed=2), batch_size=500),
    )
    print(", ".join(f"{name} {value:.3f}" for name, value in trainer.callback_metrics.items()))


if __name__ == "__main__":
    main()
