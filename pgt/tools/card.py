"""The model card of an exported network, in the Hugging Face Hub's format: what was measured, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from tabulate import tabulate

from pgt.config.resources import read_conf
from pgt.core.registry import DATA_SETS
from pgt.tools.weights import BEST, Source

LICENSE = "apache-2.0"

CARD = """\
---
{front}---

# {title}

{model} for {classes:,} classes and {size}-pixel images, trained on {data_set} with {method}.{nowhere_else}

## Measured

One run (n = 1, seed {seed}), {chosen}; evaluated in {precision}{skipped}.

{table}

## Probabilities

{probabilities}

## Training

{experiment}The paper's recipe (`recipe=paper` of `pgt`; commit {commit}, run {run_id}) with this:

```yaml
{changed}```

## Loading

{loading}
## Source of the method

B. Das et al., *Altering Backward Pass Gradients improves Convergence*, [arXiv 2111.12495](https://arxiv.org/abs/2111.12495).
The code is under Apache-2.0; the terms of the data set may bind the weights, too.
"""
TIMM = """\
```python
import timm
import torch

model = timm.create_model("local-dir:PATH", pretrained=True{arguments}).eval()  # PATH: this folder
options = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**options, is_training=False)
```
"""
WITHOUT_NORM = """
The network has no normalization layers. `config.json` cannot say so in timm's words, hence `norm_layer`; without it,
timm complains of missing keys and loads nothing.
"""
OURS = """\
timm has no such network; `pgt` builds it:

```python
from pgt.models import build
from safetensors.torch import load_file

model = build("{model}", num_classes={classes}).eval()
model.load_state_dict(load_file("PATH/model.safetensors"))  # PATH: this folder
```

It takes images [N, 3, {size}, {size}]: pixels in [0, 1] less the mean {mean}, over the deviation {deviation}.
"""
AS_TRAINED = """\
The probabilities that training fitted are **softmax(α·z) with α = {alpha:g}**, not softmax(z): under the transform the
logits z grow by about 1/α. Compute `({alpha:g} * model(images)).softmax(1)`."""
CALIBRATED = """\
The classifier's weight and bias are multiplied by α = {alpha:g}: **softmax of this network's logits** is softmax(α·z)
of the trained network's logits z, the probabilities that training fitted. The order of the classes is as it was."""
PLAIN = "softmax(z) of the logits z: this network was trained at α = 1."
TRUNCATED = """\
Neither softmax(z) nor softmax(α·z): this network was trained by the authors' hook at α = {alpha:g}, which computes
another gradient than Eq. 9 wherever small probabilities round to zero. Calibrate it on data that it has not seen."""
UNIFORM = "None: softmax(α·z) is uniform at α = 0. This network orders the classes."


def render(source: Source, which: str, config: Mapping[str, Any], calibrated: bool) -> str:
    """The card of a finished run's weights.

    Args:
        source: the run.
        which: `best` or `last` of its weights.
        config: the exported config.json.
        calibrated: whether α is in the classifier.
    """
    run, summary, alpha = source.config, source.summary, source.alpha
    assert summary is not None
    on_imagenet = run["data"]["name"] == "imagenet"
    return CARD.format(
        front=OmegaConf.to_yaml(OmegaConf.create(front_matter(source, config))),
        title=title(source),
        model=source.model,
        classes=config["num_classes"],
        size=config["pretrained_cfg"]["input_size"][1],
        data_set=_data_set(source, config),
        method=_method(alpha, run["method"]["implementation"]),
        nowhere_else="" if on_imagenet else "\nIt has never been measured on ImageNet-1K.",
        seed=run["seed"],
        chosen=_chosen(source, which),
        precision=run["trainer"]["precision"],
        skipped=f"; {summary.skipped_files} unreadable images were left out" if summary.skipped_files else "",
        table=_table(source.recorded, calibrated),
        probabilities=_probabilities(calibrated, summary.identity["method"]),
        experiment=f"Experiment `{run['experiment']}`. " if run["experiment"] else "",
        commit=summary.commit,
        run_id=summary.run_id,
        changed=OmegaConf.to_yaml(OmegaConf.create(_changed(summary.identity))),
        loading=_loading(source, config),
    )


def title(source: Source) -> str:
    """A network in a few words: `resnet18 pgt α=0.25 cifar10 seed 0`."""
    alpha = f" α={source.alpha:g}" if source.alpha != 1 else ""
    run = source.config
    return f"{source.model} {source.known['method']}{alpha} {run['data']['name']} seed {run['seed']}"


def front_matter(source: Source, config: Mapping[str, Any]) -> dict[str, Any]:
    """The card's metadata, with the measured accuracies as its model index."""
    run = source.config
    hub_name = DATA_SETS[run["data"]["name"]].hub
    conditions = {"n": 1, "seed": run["seed"], "epochs": run["recipe"]["epochs"]}
    metrics = [
        {"type": "accuracy", "name": label, "value": round(source.recorded[key], 4), "args": conditions}
        for key, label in (("test_top1", "Top-1 accuracy, %"), ("test_top5", "Top-5 accuracy, %"))
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": _data_set(source, config), "type": hub_name or run["data"]["name"]},
        "metrics": metrics,
    }
    return {
        "license": LICENSE,
        "tags": ["image-classification", "powergrad-transform", *(["timm"] if _in_timm(source) else [])],
        "pipeline_tag": "image-classification",
        **({"library_name": "timm"} if _in_timm(source) else {}),
        **({"datasets": [hub_name]} if hub_name else {}),
        "model-index": [{"name": title(source), "results": [result]}],
    }


def _in_timm(source: Source) -> bool:
    return not str(source.model).startswith("resnet20")


def _data_set(source: Source, config: Mapping[str, Any]) -> str:
    """Its name. A folder's own is left out: it may lie under any."""
    name = source.config["data"]["name"]
    manifest = source.summary.manifest if source.summary else ""
    files = f" of {config['num_classes']:,} classes (file list {manifest})" if name == "imagefolder" else ""
    return DATA_SETS[name].title + files


def _method(alpha: float | None, implementation: str) -> str:
    if alpha == 1:
        return "plain cross-entropy"
    as_published = (
        " as published (`authors_hook`, in the precision of the logits)" if implementation == "authors_hook" else ""
    )
    return f"the PowerGrad Transform{as_published} at α = {alpha:g}"


def _chosen(source: Source, which: str) -> str:
    epochs = source.config["recipe"]["epochs"]
    if which == BEST:
        epoch = source.recorded["epoch"] + 1
        return f"epoch {epoch} of {epochs}, the best by top-1 on the test set, so chosen on it"
    return f"the last of {epochs} epochs"


def _table(record: Mapping[str, Any], calibrated: bool) -> str:
    rows = [("top-1, %", "test_top1"), ("top-5, %", "test_top5")]
    if calibrated:
        rows += [("loss", "test_loss_alpha"), ("calibration error, %", "test_ece_alpha")]
    else:
        for argument, suffix in (("z", ""), ("α·z", "_alpha")):
            rows += [(f"loss of softmax({argument})", f"test_loss{suffix}")]
            rows += [(f"calibration error of softmax({argument}), %", f"test_ece{suffix}")]
    cells = [[label, f"{record[key]:.4f}"] for label, key in rows]
    return tabulate(cells, ("test set", "n = 1"), tablefmt="github", disable_numparse=True)


def _probabilities(calibrated: bool, method: Mapping[str, Any]) -> str:
    """Which probabilities are the network's own."""
    alpha = method["alpha"]
    if alpha == 1:
        return PLAIN
    if method["implementation"] == "authors_hook":
        return TRUNCATED.format(alpha=alpha)
    if alpha == 0:
        return UNIFORM
    return (CALIBRATED if calibrated else AS_TRAINED).format(alpha=alpha)


def _changed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's identity is not the default; data, schedule and method as they are."""
    changed = {
        "seed": identity["seed"],
        **{key: identity[key] for key in ("data", "schedule", "method")},
        "recipe": _difference(identity["recipe"], "recipe/paper"),
        "trainer": _difference(identity["trainer"], "trainer/default"),
    }
    return {key: value for key, value in changed.items() if value != {}}


def _difference(values: Mapping[str, Any], default: str) -> dict[str, Any]:
    defaults = read_conf(default)
    return {key: value for key, value in values.items() if defaults.get(key) != value}


def _loading(source: Source, config: Mapping[str, Any]) -> str:
    if not _in_timm(source):
        seen = config["pretrained_cfg"]
        mean, deviation = (", ".join(f"{value:.4g}" for value in seen[key]) for key in ("mean", "std"))
        size, classes = seen["input_size"][1], config["num_classes"]
        return OURS.format(model=source.model, classes=classes, size=size, mean=mean, deviation=deviation)
    if str(source.model).endswith("_nobn"):
        return TIMM.format(arguments=", norm_layer=torch.nn.Identity") + WITHOUT_NORM
    return TIMM.format(arguments="").replace("import torch\n", "")
