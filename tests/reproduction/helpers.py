"""Run folders of known numbers, without training."""

import json
from pathlib import Path

from pgt.config.identity import group_id, identity, run_id
from pgt.runs.folder import Summary, write_summary
from tests.conftest import compose


def plant_summary(config, **measured):
    """A run folder with this config's identity and these measurements."""
    values = identity(config)
    summary = Summary(
        run_id=run_id(values),
        group_id=group_id(values),
        experiment=config.experiment,
        identity=values,
        seed=config.seed,
        manifest="m",
        commit="0123456789ab",
        started="",
        **measured,
    )
    folder = Path("runs") / config.experiment / summary.run_id
    folder.mkdir(parents=True)
    write_summary(folder, summary)
    return folder, summary


def plant(experiment, method, seed, train_top1, test_top1, status="finished", curve=(), overrides=()):
    """A run folder of known numbers."""
    config = compose(f"experiment={experiment}", f"method={method}", f"seed={seed}", *overrides)
    folder, summary = plant_summary(
        config, status=status, epochs=len(curve), train_top1=train_top1, test_top1_final=test_top1,
        test_top1_best=test_top1,
    )  # fmt: skip
    records = [{"event": "epoch", "epoch": e, "train_top1": t, "test_top1": t - 1} for e, t in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return summary
