"""Run timm's train.py with PGT, without changing the script:

    python examples/timm_train.py 0.25 /path/to/pytorch-image-models/train.py --model resnet50 ...

The first argument is α; the script and its own arguments follow. Without arguments, it trains one of timm's smallest
networks on random pictures, as such a script does. `--bce-loss` is no cross-entropy and does not change. In
`--jsd-loss` only the cross-entropy without label smoothing changes. In a copy that you edit, two lines are enough:
import PowerGradCrossEntropy, and after the script has chosen its loss, set
`train_loss_fn = PowerGradCrossEntropy(0.25, label_smoothing=0.0 if mixup_active else args.smoothing)`: Mixup and CutMix
smooth the labels themselves.
"""

import runpy
import sys

try:
    import timm
    import timm.loss
    import timm.optim
    import torch.nn
    from torch import Tensor

    from pgt import PowerGradCrossEntropy
except ImportError as missing:
    sys.exit(f"{missing}: install pgt (README.md says how) and timm")


def install(alpha: float) -> None:
    """Replace the cross-entropies that train.py chooses from by PGT. The loss values that it prints stay the same."""

    class TimmCrossEntropy(PowerGradCrossEntropy):
        def __init__(self, smoothing: float = 0.0) -> None:
            super().__init__(alpha, label_smoothing=smoothing)

    class TorchCrossEntropy(PowerGradCrossEntropy):
        def __init__(self, **options: object) -> None:
            super().__init__(alpha, **options)

    timm.loss.LabelSmoothingCrossEntropy = TimmCrossEntropy
    timm.loss.SoftTargetCrossEntropy = TimmCrossEntropy  # mixup, cutmix
    torch.nn.CrossEntropyLoss = TorchCrossEntropy


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of ten random pictures, [count, 3, 32, 32], and which of them each one is."""
    pictures = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return pictures[labels] + torch.randn(count, 3, 32, 32, generator=generator), labels


def small_job(alpha: float = 0.25, epochs: int = 3) -> None:
    """Train as timm's script does once it has read its arguments, with timm's network, optimizer and loss."""
    torch.manual_seed(0)
    install(alpha)
    model = timm.create_model("test_resnet", num_classes=10)
    optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9, weight_decay=2e-5)
    train_loss_fn = timm.loss.LabelSmoothingCrossEntropy(smoothing=0.1)
    validate_loss_fn = torch.nn.CrossEntropyLoss()
    (images, labels), (test_images, test_labels) = samples(600, seed=1), samples(200, seed=2)
    for epoch in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(25):
            optimizer.zero_grad()
            train_loss_fn(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(test_images)
        accuracy = (logits.argmax(1) == test_labels).float().mean()
        plain, calibrated = (validate_loss_fn(scale * logits, test_labels) for scale in (1, alpha))
        print(f"epoch {epoch + 1}: accuracy {accuracy:.1%}, loss {plain:.3f}, at α·z {calibrated:.3f}")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        small_job()
    elif len(sys.argv) == 2:
        sys.exit("name the script, too: python examples/timm_train.py ALPHA path/to/train.py ...")
    else:
        install(float(sys.argv[1]))
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
