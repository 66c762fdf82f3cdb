"""Image files through NVIDIA DALI: decode and crop in one operation, on CPU threads or the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor

from pgt.data.delivery import DEVIATION, MEAN, Delivery
from pgt.data.loader import FileLoader
from pgt.data.reader import Reader, Stream
from pgt.data.sampler import Sampler
from pgt.environment import cpus
from pgt.errors import InputError
from pgt.types import Batch

INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
THREADS_A_READER = 4
"""Decoding threads that one process reading files ahead keeps busy; with fewer, this process reads."""
READ_AHEAD = 2
"""Batches, of files as well as of decoded images."""
LARGEST = {"preallocate_width_hint": 5980, "preallocate_height_hint": 6430, "device_memory_padding": 211_025_920,
           "host_memory_padding": 140_544_512}  # fmt: skip
"""What nvJPEG needs for the largest images of ImageNet; memory it has from the start need not grow in between."""


class DaliLoader(FileLoader):
    """A `Loader` over image files through one DALI pipeline that runs on from epoch to epoch.

    Args:
        reader: of the split.
        sampler: which samples come when.
        delivery: where to, and in which precision.
        interpolation: of the evaluation's resize: `bilinear` or `bicubic`.
        workers: decoding threads, at most one a CPU.
        skip: leave unreadable files out; else they stop the run.
        on_gpu: decode and resize there, with nvJPEG.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: Sampler,
        delivery: Delivery,
        interpolation: str,
        workers: int,
        skip: bool,
        on_gpu: bool,
    ) -> None:
        super().__init__(reader, sampler, skip)
        self._delivery, self._interpolation, self._on_gpu = delivery, interpolation, on_gpu
        self._threads = max(1, min(workers, cpus()))
        self._pipeline: Any = None
        self._position = 0

    def groups(self, epoch: int, first: int) -> Iterator[Batch]:
        per_epoch = self.steps_per_epoch * self.groups_per_step
        position = (epoch if self.sampler.training else 0) * per_epoch + first
        if self._pipeline is None or position != self._position:
            self._pipeline = self._built(position)
        for place in range(first, per_epoch):
            self._position = -1  # whoever leaves in the middle, by an error too, finds a new pipeline
            batch = self._next()
            last = place == per_epoch - 1 and not self.sampler.training  # each evaluation reads the same samples
            self._position = 0 if last else position + place - first + 1
            yield batch

    def _next(self) -> Batch:
        device = self._delivery.device
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        try:
            images, labels, unreadable = (_tensor(output) for output in self._pipeline.run(stream))
        except RuntimeError as error:
            raise InputError(_plain(error)) from None
        self.note(unreadable)
        return Batch(self._delivery.images(images.permute(0, 3, 1, 2)), labels)

    def _built(self, position: int) -> Any:
        """A pipeline whose first batch is the group at `position`, counted over all epochs."""
        stream = Stream(self.reader, self.sampler, position * self.sampler.group)
        device = self._delivery.device
        readers = self._threads // THREADS_A_READER
        build = pipeline_def(
            batch_size=self.sampler.group,
            num_threads=self._threads,
            device_id=_number(device),
            prefetch_queue_depth=READ_AHEAD,
            py_num_workers=max(readers, 1),
            py_start_method="spawn",  # a forked CUDA context is unusable
        )(self._graph)
        pipeline = build(stream, parallel=readers > 0)
        pipeline.build()
        return pipeline

    def _graph(self, stream: Stream, parallel: bool) -> tuple[Any, Any, Any]:
        """Images [S, S, 3] in the training precision, labels, indices of unreadable files."""
        data, start, shape, size, down, across, flip, label, unreadable = fn.external_source(
            stream,
            num_outputs=9,
            batch=False,
            parallel=parallel,
            dtype=[
                types.UINT8,
                types.INT32,
                types.INT32,
                types.FLOAT,
                types.FLOAT,
                types.FLOAT,
                types.INT32,
                types.INT64,
                types.INT64,
            ],
            **({"prefetch_queue_depth": READ_AHEAD} if parallel else {}),
        )
        images = fn.decoders.image_slice(
            data,
            start,
            shape,
            axis_names="HW",
            device="mixed" if self._on_gpu else "cpu",
            adjust_orientation=False,  # Pillow and the authors leave EXIF rotation alone
            **({"jpeg_fancy_upsampling": True, **LARGEST} if self._on_gpu else {}),
        )
        training = self.sampler.training
        images = fn.resize(
            images,
            size=size,
            interp_type=types.INTERP_LINEAR if training else INTERPOLATION[self._interpolation],
            antialias=not training,
        )
        if self._delivery.device.type == "cuda":
            images, label = images.gpu(), label.gpu()
        images = fn.crop_mirror_normalize(
            images,
            crop=(self.reader.size, self.reader.size),
            crop_pos_y=down,
            crop_pos_x=across,
            mirror=flip,
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in DEVIATION],
            dtype=types.FLOAT16 if self._delivery.dtype == torch.float16 else types.FLOAT,
            output_layout="HWC",
        )
        return images, label, unreadable


def _number(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return device.index if device.index is not None else torch.cuda.current_device()


def _tensor(output: Any) -> Tensor:
    """DALI's batch as a tensor in the same memory."""
    return torch.from_dlpack(output.as_tensor())


def _plain(error: RuntimeError) -> str:
    """The line of DALI's error that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Error in", "which was used in", "Stacktrace"))]
    return f"DALI cannot go on: {' '.join(told[:3])} (data.backend=torchvision does without it)"
