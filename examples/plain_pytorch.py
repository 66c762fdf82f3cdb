"""PGT in a plain training loop: two lines differ from any other loop, the import and `criterion`.

python examples/plain_pytorch.py
"""

import sys

try:
    import torch
    from torch import Tensor, nn

    from pgt import PowerGradCrossEntropy
except ImportError as missing:
    sys.exit(f"{missing}: install pgt (README.md says how)")

ALPHA = 0.25
"""Exponent of PGT; 1 is plain cross-entropy."""


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of ten random pictures, and which of them each one is: [count, 64] and [count]."""
    pictures = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return pictures[labels] + 2 * torch.randn(count, 64, generator=generator), labels


def main() -> None:
    torch.manual_seed(0)
    (inputs, labels), (test_inputs, test_labels) = samples(2000, seed=1), samples(1000, seed=2)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    criterion = PowerGradCrossEntropy(ALPHA)  # in place of nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    for epoch in range(5):
        model.train()
        for batch in torch.randperm(len(inputs)).split(50):
            loss = criterion(model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        model.eval()
        with torch.no_grad():
            logits = model(test_inputs)
        accuracy = (logits.argmax(1) == test_labels).float().mean()
        # Logits grow by about 1/α, so the plain loss may rise. The probabilities of such a network are softmax(α·z).
        plain, calibrated = criterion(logits, test_labels), criterion(ALPHA * logits, test_labels)
        print(f"epoch {epoch + 1}: accuracy {accuracy:.1%}, loss {plain:.3f}, at α·z {calibrated:.3f}")


if __name__ == "__main__":
    main()
