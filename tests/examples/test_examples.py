"""Each adapter trains, in its own framework, with the reference gradient: that of CE(α·z)/α."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm.loss
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


@pytest.mark.slow
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


def in_order():
    """Hugging Face's Trainer, which takes the samples in their order."""
    import transformers

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=8, collate_fn=self.data_collator)

    return InOrder


@pytest.mark.slow
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

    trainer = in_order()(
        model, arguments, train_dataset=samples, optimizers=(sgd, None),
        compute_loss_func=example("huggingface_trainer")["power_grad_loss"](ALPHA),
    )  # fmt: skip
    trainer.train()
    assert_same_weights(model.net, reference(network(), accumulate))


SCRIPT = """
# timm's train.py imports losses by name and chooses one of them
import sys
import torch
import torch.nn as nn
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from tests.examples.test_examples import RATE, data, network

kind, accumulate, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if kind == "smooth":
    train_loss_fn = LabelSmoothingCrossEntropy(smoothing=0.1)
elif kind == "soft":
    train_loss_fn = SoftTargetCrossEntropy()
else:
    train_loss_fn = nn.CrossEntropyLoss()
model = network()
sgd = torch.optim.SGD(model.parameters(), lr=RATE)
for index, (x, y) in enumerate(zip(*data())):
    if kind == "soft":
        y = torch.nn.functional.one_hot(y, 5).float()
    loss = train_loss_fn(model(x), y)
    if accumulate > 1:
        loss /= accumulate
    loss.backward()
    if (index + 1) % accumulate == 0:
        sgd.step()
        sgd.zero_grad()
torch.save(model.state_dict(), output)
"""


@pytest.mark.parametrize(
    ("kind", "epsilon", "accumulate"), [("plain", 0.0, 1), ("smooth", 0.1, 3), ("soft", 0.0, 1), ("plain", 0.0, 3)]
)
def test_timm(tmp_path, monkeypatch, kind, epsilon, accumulate):
    for module, name in (
        (timm.loss, "LabelSmoothingCrossEntropy"), (timm.loss, "SoftTargetCrossEntropy"), (nn, "CrossEntropyLoss"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))  # the example replaces them for its whole process
    adapter, script, output = str(ROOT / "examples" / "timm_train.py"), tmp_path / "train.py", tmp_path / "weights.pt"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [adapter, str(ALPHA), str(script), kind, str(accumulate), str(output)])
    runpy.run_path(adapter, run_name="__main__")
    model = network()
    model.load_state_dict(torch.load(output, weights_only=True))
    assert_same_weights(model, reference(network(), accumulate, epsilon))
    assert not torch.equal(model[1].weight, network()[1].weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the framework's own
@pytest.mark.parametrize("accumulate", [1, 3])
def test_huggingface_language_model(tmp_path, accumulate):
    """The mean is over the tokens that are predicted, whatever the lengths of the texts in a micro-batch."""
    import transformers

    found, texts = example("huggingface_trainer"), example("huggingface_trainer")["texts"](STEPS * 8, seed=5)
    torch.manual_seed(2)
    model = found["tiny_model"]()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=STEPS // accumulate, max_grad_norm=0.0,
        gradient_accumulation_steps=accumulate, lr_scheduler_type="constant", use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    loss = found["power_grad_loss"](ALPHA, shift=True)
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    trainer = in_order()(
        model, arguments, data_collator=found["collate"], train_dataset=texts, optimizers=(sgd, None),
        compute_loss_func=loss,
    )  # fmt: skip
    torch.manual_seed(2)
    expected = found["tiny_model"]()
    sgd = torch.optim.SGD(expected.parameters(), lr=RATE)
    for first in range(0, len(texts), 8 * accumulate):
        total = count = 0
        for text in texts[first : first + 8 * accumulate]:
            logits = expected(text[None]).logits[0, :-1]
            total += F.cross_entropy(ALPHA * logits, text[1:], reduction="sum") / ALPHA
            count += len(text) - 1
        (total / count).backward()
        sgd.step()
        sgd.zero_grad()
    trainer.train()
    assert_same_weights(model, expected)


def run_example(name, *before):
    """Run an example as a user does, or after a line of Python."""
    script = str(ROOT / "examples" / f"{name}.py")
    run = (
        ["-c", f"import runpy, sys; {before[0]}; runpy.run_path({script!r}, None, '__main__')"] if before else [script]
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *run], capture_output=True, text=True, env=environment, timeout=280)


NEEDS = {
    "plain_pytorch": "torch",
    "lightning_module": "lightning",
    "huggingface_trainer": "accelerate",
    "timm_train": "timm",
}
"""Each example, and a package that it needs."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("plain_pytorch", r"epoch 5: accuracy (\d+).*at α·z"),
        ("timm_train", r"epoch 3: accuracy (\d+).*at α·z"),
        ("lightning_module", r"val_accuracy 0.(\d\d).*val_loss_alpha"),
        ("huggingface_trainer", r"'eval_accuracy': '?0.(\d\d).*eval_loss_alpha.*'epoch': '?4"),
    ],
)
def test_each_example_does_its_small_job(name, accuracy):
    done = run_example(name)
    assert done.returncode == 0, done.stderr
    assert int(re.search(accuracy, done.stdout)[1]) > 50, done.stdout
    assert not list(Path.cwd().iterdir()), "it leaves files"


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_names_the_package_that_is_missing(name):
    done = run_example(name, f"sys.modules[{NEEDS[name]!r}] = None")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert NEEDS[name] in done.stderr
    assert "install pgt (README.md says how)" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the framework's own
def test_the_lightning_module_keeps_its_hyperparameters():
    pytest.importorskip("lightning")
    module = example("lightning_module")["Classifier"](network(), ALPHA, RATE)
    assert dict(module.hparams) == {"alpha": ALPHA, "learning_rate": RATE}


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(NEEDS)
