"""Loaders for the data tests, light enough for the processes that they start."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from pgt import data
from pgt.core.machine import has_dali
from pgt.data.delivery import Delivery

BACKENDS = ["dali", "torchvision"] if has_dali() else ["torchvision"]

FOLDER = {"name": "imagefolder", "root": ".", "image_size": 24, "workers": 2, "interpolation": "bilinear",
          "dali_device": "auto", "on_bad_file": "error", "manifest": None}  # fmt: skip


opened = []
"""Loaders that the test at hand has made."""


def loaders(options, **changes):
    """Training and test loader of a data set's options; the changes are the delivery's."""
    delivery = {"device": torch.device("cpu"), "dtype": torch.float32, "global_batch": 8, "local_batch": 4,
                "seed": 0, "drop_last": True, **changes}  # fmt: skip
    made = data.open_set(**options).loaders(Delivery(**delivery))
    opened.extend(made)
    return made


def digest(batches):
    """One line a batch."""
    for batch in batches:
        yield hashlib.sha256(batch.images.contiguous().numpy().tobytes() + batch.labels.numpy().tobytes()).hexdigest()


def script(code, *arguments, quiet=True):
    """Output of a Python program of its own; unless `quiet` is false, it may print nothing to standard error."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert (done.returncode, done.stderr if quiet else "") == (0, ""), done.stderr
    return done.stdout.splitlines()
