"""PGT in Hugging Face's Trainer: `Trainer(model, args, ..., compute_loss_func=power_grad_loss(0.25))`.

    python examples/huggingface_trainer.py

It fits models with a label for each position of their logits (image, token or sequence classification), and with
`shift=True` causal language models, whose position t predicts token t + 1. Run as it is, it trains a tiny one of those.
"""

import sys
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

try:
    import accelerate  # noqa: F401  the Trainer needs it
    import torch
    import torch.nn.functional as F
    import transformers
    from torch import Tensor

    from pgt import power_grad_cross_entropy
except ImportError as missing:
    sys.exit(f"{missing}: install pgt (README.md says how) and 'transformers[torch]'")


def power_grad_loss(alpha: float, shift: bool = False) -> Callable[..., Tensor]:
    """Return a function for Trainer's `compute_loss_func`.

    Args:
        alpha: exponent of PGT; 1 is plain cross-entropy.
        shift: for causal language models: compare the logits of a position with the label of the next one. Labels are
            a copy of the tokens, as Hugging Face's collators make them; see `collate` for the first one.
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs.logits
        if shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        reduction = "mean" if num_items_in_batch is None else "sum"
        value = power_grad_cross_entropy(logits.flatten(0, -2), labels.flatten(), alpha, reduction=reduction)
        return value if num_items_in_batch is None else value / num_items_in_batch  # over accumulated batches

    return loss


def collate(texts: list[Tensor]) -> dict[str, Tensor]:
    """Pad texts on the right; labels are the tokens, and −100, which no loss counts, for padding and each first token.

    Nothing predicts the first token. The Trainer divides by the number of labels, and whether it leaves the first one
    out depends on the model: GPT-2's counts, Llama's does not. With −100 the mean is right for both.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    length = torch.tensor([len(text) for text in texts])
    mask = torch.arange(tokens.shape[1]) < length[:, None]
    labels = tokens.masked_fill(~mask, -100)
    labels[:, 0] = -100
    return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}


def language_metrics(alpha: float) -> Callable[[Any], dict[str, float]]:
    """Return a function for `compute_metrics`: accuracy of the next token, and the loss at α·z, which is calibrated."""

    def metrics(evaluated: Any) -> dict[str, float]:
        logits = torch.from_numpy(evaluated.predictions)[:, :-1].flatten(0, 1)
        labels = torch.from_numpy(evaluated.label_ids)[:, 1:].flatten()
        logits, labels = logits[labels != -100], labels[labels != -100]
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"accuracy": accuracy.item(), "loss_alpha": F.cross_entropy(alpha * logits, labels).item()}

    return metrics


def texts(count: int, seed: int) -> list[Tensor]:
    """Texts of 12 to 24 of 16 tokens, each of which counts in steps of its own."""
    generator = torch.Generator().manual_seed(seed)
    start, step, length = (torch.randint(*span, (count,), generator=generator) for span in ((0, 16), (1, 4), (12, 25)))
    return [(a + b * torch.arange(n)) % 16 for a, b, n in zip(start, step, length.tolist(), strict=True)]


def tiny_model() -> transformers.PreTrainedModel:
    """GPT-2 with one layer, without any download."""
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def main(alpha: float = 0.25) -> None:
    transformers.set_seed(0)
    with TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            tiny_model(),
            transformers.TrainingArguments(
                output_dir=folder, num_train_epochs=4, per_device_train_batch_size=32, learning_rate=1e-2, use_cpu=True,
                eval_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True,
            ),
            data_collator=collate,
            train_dataset=texts(2000, seed=1),
            eval_dataset=texts(400, seed=2),
            compute_loss_func=power_grad_loss(alpha, shift=True),
            compute_metrics=language_metrics(alpha),
        )  # fmt: skip
        trainer.train()


if __name__ == "__main__":
    main()
