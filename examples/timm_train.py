"""timm's train.py with PGT, the script itself untouched:

    python examples/timm_train.py 0.25 /path/to/pytorch-image-models/train.py --model resnet50 ...

The first argument is α, then comes the script with its own arguments. `--bce-loss` is no cross-entropy and stays what
it is; so does `--jsd-loss` but for its cross-entropy without label smoothing. In a copy that you edit, two lines do:
import PowerGradCrossEntropy, and behind the script's choice of a loss
`train_loss_fn = PowerGradCrossEntropy(0.25, label_smoothing=args.smoothing)`.
"""

import runpy
import sys

import timm.loss
import torch.nn

from pgt import PowerGradCrossEntropy


def install(alpha: float) -> None:
    """Put PGT in the place of the cross-entropies that train.py chooses from; the values it prints stay the same."""

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
