"""timm's train.py with PGT, the script itself untouched:

    python examples/timm_train.py 0.25 /path/to/pytorch-image-models/train.py --model resnet50 ...

The first argument is α, then comes the script with its own arguments. In a copy that you edit, two lines do:
import PowerGradCrossEntropy, and behind the script's choice of a loss
`train_loss_fn = PowerGradCrossEntropy(0.25, label_smoothing=args.smoothing, smoothing="uniform")`.
"""

import runpy
import sys

import timm.loss
import torch.nn

from pgt import PowerGradCrossEntropy


def install(alpha: float) -> None:
    """Put PGT in the place of the cross-entropies that train.py chooses from; the values it prints stay the same."""
    timm.loss.LabelSmoothingCrossEntropy = lambda smoothing=0.1: PowerGradCrossEntropy(
        alpha, label_smoothing=smoothing, smoothing="uniform"
    )
    timm.loss.SoftTargetCrossEntropy = lambda: PowerGradCrossEntropy(alpha)  # mixup, cutmix
    torch.nn.CrossEntropyLoss = lambda: PowerGradCrossEntropy(alpha)


if __name__ == "__main__":
    install(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
