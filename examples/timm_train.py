"""timm's train.py with PGT, the script itself untouched:

    python examples/timm_train.py 0.25 /path/to/pytorch-image-models/train.py --model resnet50 ...

The first argument is α, the second is the script, and the others are its own. `--bce-loss` is not a cross-entropy and
does not change; in `--jsd-loss` only the cross-entropy without label smoothing changes. In a copy of the script, edit
two lines instead: import PowerGradCrossEntropy, and after the choice of a loss add
`train_loss_fn = PowerGradCrossEntropy(0.25, label_smoothing=args.smoothing)`.
"""

import runpy
import sys

import timm.loss
import torch.nn

from pgt import PowerGradCrossEntropy


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


if __name__ == "__main__":
    install(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
