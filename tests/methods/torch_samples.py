"""Checks the loss on the sample inputs that PyTorch tests its own cross-entropy with; prints how many there were."""

import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

from pgt import power_grad_cross_entropy


def check(alpha: float, dtype: torch.dtype) -> int:
    """Compare values and gradients with the tempered cross-entropy in float64; returns the number of samples."""
    [cross_entropy] = [op for op in op_db if op.name == "nn.functional.cross_entropy"]
    count = 0
    for sample in cross_entropy.sample_inputs("cpu", dtype, requires_grad=True):
        z, (y,), options = sample.input, sample.args, sample.kwargs
        inputs = [x for x in (z, y) if x.requires_grad]
        ours = power_grad_cross_entropy(z, y, alpha, **options)
        exact = [x.detach().double() if x.is_floating_point() else x for x in (z, y)]
        leaves = [x.requires_grad_(x.is_floating_point()) for x in exact]
        options = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in options.items()}
        theirs = F.cross_entropy(*leaves, **options)
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(ours.double(), theirs, equal_nan=True, **tolerance)
        back = torch.rand_like(theirs)
        tempered_loss = F.cross_entropy(alpha * leaves[0], leaves[1].detach(), **options) / alpha
        expected = list(torch.autograd.grad(tempered_loss, leaves[0], back))
        if y.requires_grad:
            expected += torch.autograd.grad(theirs, leaves[1], back)
        for got, want in zip(torch.autograd.grad(ours, inputs, back.to(ours.dtype)), expected, strict=True):
            torch.testing.assert_close(got.double(), want, equal_nan=True, **tolerance)
        count += 1
    return count


if __name__ == "__main__":
    print(sum(check(a, d) for a in (1.0, 0.3, 0.05) for d in (torch.float64, torch.float32, torch.bfloat16)))
