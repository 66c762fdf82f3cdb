"""Each adapter trains, in its own framework, with the reference gradient: that of CE(α·z)/α."""

import os
import runpy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import ROOT

ALPHA, RATE, STEPS = 0.25, 0.1, 3


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS, 8, 3, 2, 2, generator=generator)
    return x, torch.randint(5, (STEPS, 8), generator=generator)


def reference(model, accumulate=1, epsilon=0.0):
    """SGD on CE(α·z)/α."""
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    for index, (x, y) in enumerate(zip(*data(), strict=True)):
        (F.cross_entropy(ALPHA * model(x), y, label_smoothing=epsilon) / ALPHA / accumulate).backward()
        if (index + 1) % accumulate == 0:
            sgd.step()
            sgd.zero_grad()
    return model


def assert_same_weights(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the framework's own
def test_lightning(tmp_path):
    import lightning

    module = example("lightning_module")["Classifier"](network(), ALPHA, RATE)
    x, y = data()
    loader = DataLoader(TensorDataset(x.flatten(0, 1), y.flatten()), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader)
    assert_same_weights(module.model, reference(network()))


@pytest.mark.filterwarnings("ignore")  # the framework's own
@pytest.mark.parametrize("accumulate", [1, 3])
def test_huggingface_trainer(tmp_path, accumulate):
    import transformers

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, pixel_values, labels=None):
            return transformers.modeling_outputs.ImageClassifierOutput(logits=self.net(pixel_values))

    x, y = data()
    samples = [{"pixel_values": a, "labels": b} for a, b in zip(x.flatten(0, 1), y.flatten(), strict=True)]
    model = Model()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=STEPS // accumulate, learning_rate=RATE,
        gradient_accumulation_steps=accumulate, lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=8, collate_fn=self.data_collator)

    trainer = InOrder(
        model, arguments, train_dataset=samples, optimizers=(sgd, None),
        compute_loss_func=example("huggingface_trainer")["power_grad_loss"](ALPHA),
    )  # fmt: skip
    trainer.train()
    assert_same_weights(model.net, reference(network(), accumulate))


SCRIPT = """
# what timm's train.py does with losses: imports them by name, and chooses
import sys
import torch
import torch.nn as nn
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from tests.examples.test_examples import RATE, data, network

kind, output = sys.argv[1:]
if kind == "smooth":
    train_loss_fn = LabelSmoothingCrossEntropy(smoothing=0.1)
elif kind == "soft":
    train_loss_fn = SoftTargetCrossEntropy()
else:
    train_loss_fn = nn.CrossEntropyLoss()
model = network()
sgd = torch.optim.SGD(model.parameters(), lr=RATE)
for x, y in zip(*data()):
    if kind == "soft":
        y = torch.nn.functional.one_hot(y, 5).float()
    train_loss_fn(model(x), y).backward()
    sgd.step()
    sgd.zero_grad()
torch.save(model.state_dict(), output)
"""


@pytest.mark.parametrize(("kind", "epsilon"), [("plain", 0.0), ("smooth", 0.1), ("soft", 0.0)])
def test_timm(tmp_path, kind, epsilon):
    script, output = tmp_path / "train.py", tmp_path / "weights.pt"
    script.write_text(SCRIPT)
    command = [sys.executable, str(ROOT / "examples" / "timm_train.py"), str(ALPHA), str(script), kind, str(output)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    model = network()
    model.load_state_dict(torch.load(output, weights_only=True))
    assert_same_weights(model, reference(network(), epsilon=epsilon))
    assert not torch.equal(model[1].weight, network()[1].weight)


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {
        "timm_train",
        "lightning_module",
        "huggingface_trainer",
    }
