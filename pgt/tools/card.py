"""The model card of an exported network: the facts for `model_card.md.j2`, in the Hugging Face Hub's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import OmegaConf

from pgt.config.resources import read_conf
from pgt.core.registry import DATA_SETS, STEMS, TIMM
from pgt.runs.labels import with_alpha
from pgt.tools.weights import Source

LICENSE = "apache-2.0"
TEMPLATE = Path(__file__).with_name("model_card.md.j2")


def render(source: Source, which: str, config: Mapping[str, Any], calibrated: bool) -> str:
    """Return the card of a finished run's weights.

    Args:
        source: the run.
        which: `best` or `last`, of its weights.
        config: the exported config.json.
        calibrated: whether the classifier is multiplied by α.
    """
    run, summary = source.config, source.summary
    assert summary is not None
    card = ModelCard.from_template(
        metadata(source, config),
        template_path=str(TEMPLATE),
        title=title(source),
        source=source,
        config=config,
        run=run,
        summary=summary,
        stem=_stem(source),
        data_set=_data_set(source, config),
        which=which,
        measures=_measures(source.recorded, calibrated),
        alpha=f"{source.alpha:g}",
        implementation=run["method"]["implementation"],
        calibrated=calibrated,
        changed=OmegaConf.to_yaml(OmegaConf.create(_changed(summary.identity))).strip(),
        in_timm=_in_timm(source),
    )
    return f"{str(card).rstrip()}\n"


def title(source: Source) -> str:
    """Return a network's name in a few words: `resnet18 pgt α=0.25 cifar10 seed 0`."""
    run, method = source.config, with_alpha(source.known["method"], source.known["alpha"])
    return f"{source.model} {method} {run['data']['name']} seed {run['seed']}"


def metadata(source: Source, config: Mapping[str, Any]) -> ModelCardData:
    """Return the card's metadata, with the measured accuracies."""
    run = source.config
    name = run["data"]["name"]
    hub_name = DATA_SETS[name].hub
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_name or name,
            dataset_name=_data_set(source, config),
            metric_type="accuracy",
            metric_name=label,
            metric_value=round(source.recorded[key], 4),
            metric_args={"n": 1, "seed": run["seed"], "epochs": run["recipe"]["epochs"]},
        )
        for key, label in (("test_top1", "Top-1 accuracy, %"), ("test_top5", "Top-5 accuracy, %"))
    ]
    return ModelCardData(
        license=LICENSE,
        tags=["image-classification", "powergrad-transform", *(["timm"] if _in_timm(source) else [])],
        pipeline_tag="image-classification",
        library_name="timm" if _in_timm(source) else None,
        datasets=[hub_name] if hub_name else None,
        model_name=title(source),
        eval_results=results,
    )


def _in_timm(source: Source) -> bool:
    name = str(source.model)
    return name.startswith(TIMM) or (name in STEMS and _stem(source) == "standard")


def _stem(source: Source) -> str:
    return str(source.config["model"].get("stem", "standard"))


def _data_set(source: Source, config: Mapping[str, Any]) -> str:
    """Return the data set's name for people. The name of a folder of the user's own says nothing and is left out."""
    name = source.config["data"]["name"]
    manifest = source.summary.manifest if source.summary else ""
    files = f" of {config['num_classes']:,} classes (file list {manifest})" if name == "imagefolder" else ""
    return DATA_SETS[name].title + files


def _measures(record: Mapping[str, Any], calibrated: bool) -> list[tuple[str, float]]:
    """Return label and value of each measure. A calibrated network's logits z are α·z of the one that was measured."""
    measures = {"top-1, %": "test_top1", "top-5, %": "test_top5"}
    if calibrated:
        measures |= {"loss": "test_loss_alpha", "calibration error, %": "test_ece_alpha"}
    else:
        for argument, suffix in (("z", ""), ("α·z", "_alpha")):
            measures[f"loss of softmax({argument})"] = f"test_loss{suffix}"
            measures[f"calibration error of softmax({argument}), %"] = f"test_ece{suffix}"
    return [(label, record[key]) for label, key in measures.items()]


def _changed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's identity that is not the default; data, schedule and method are complete."""
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
