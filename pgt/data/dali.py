"""Image files through NVIDIA DALI: decode and crop in one operation, on CPU threads or the GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.backend import ReleaseUnusedMemory  # type: ignore[attr-defined]  # its stubs lack it
from nvidia.dali.tensors import TensorListCPU
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pgt.core.errors import memory_is_full
from pgt.core.signals import uninterrupted
from pgt.core.types import Batch
from pgt.data.delivery import DEVIATION, MEAN, Delivery
from pgt.data.loader import FileLoader
from pgt.data.reader import Reader, Stream
from pgt.data.sampler import Sampler
from pgt.data.workers import Helpers

INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
THREADS_A_READER = 4
"""Decoding threads that one reader process keeps busy; with fewer threads, this process reads the files itself. There
are never fewer than two readers, since each reads a whole batch."""
LARGEST = 5980, 6430
"""Largest width and height in ImageNet: for training, the GPU's JPEG decoder allocates memory for them at the start."""
CLOSING_SECONDS = 1.0
"""Time that `DaliLoader.close` waits for the GPU."""
READ_AHEAD = 2
"""Batches prepared in advance, of files as well as of decoded images."""


class DaliLoader(FileLoader):
    """A `Loader` over image files through one DALI pipeline that runs on from epoch to epoch.

    Args:
        reader: reads the files of the split.
        sampler: decides which samples come when.
        delivery: where the batches go, and in which precision.
        interpolation: `bilinear` or `bicubic`, for the resize before evaluation.
        workers: decoding threads; at least one decodes.
        skip: leave unreadable files out; otherwise the first one stops the run.
        on_gpu: decode on the GPU, with nvJPEG.
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
        super().__init__(reader, sampler, max(1, workers), skip)
        self._delivery, self._interpolation, self._on_gpu = delivery, interpolation, on_gpu
        self._pipeline: Any = None
        self._helpers = Helpers()
        self._position = 0
        self._held: list[tuple[torch.cuda.Event, Any]] = []

    def groups(self, epoch: int, first: int) -> Iterator[Batch]:
        per_epoch = self.steps_per_epoch * self.groups_per_step
        position = (epoch if self.sampler.training else 0) * per_epoch + first
        part = self.sampler.part(epoch)
        for place in range(first, per_epoch):
            if self._pipeline is None or position != self._position:
                self._begin_at(position)
            self._position = -1  # after a break or an error in the middle, the next call builds a new pipeline
            while not isinstance(batch := self._next(), Batch):
                self._set_aside(epoch, part[place], batch)
                self._begin_at(position)
            position += 1
            if place == per_epoch - 1 and not self.sampler.training:
                position = 0  # every evaluation reads the same samples
                if self._on_gpu:
                    self._end()  # it would hold nvJPEG's memory during training
            self._position = position
            yield batch

    def close(self) -> None:
        super().close()
        deadline = time.monotonic() + CLOSING_SECONDS
        while not all(made.query() for made, _ in self._held):
            if time.monotonic() > deadline:  # the GPU waits for another rank, which may be gone: this process ends, too
                return
            time.sleep(0.01)
        self._end()

    def _end(self) -> None:
        """End the pipeline once torch has copied its outputs, and give its memory back to the GPU."""
        for made, _ in self._held:
            made.synchronize()
        self._pipeline, self._held = None, []
        if self._delivery.device.type == "cuda":
            ReleaseUnusedMemory()

    def _next(self) -> Batch | RuntimeError:
        """Return the pipeline's next batch, or the error that it raised instead."""
        with self._helpers.awaited():
            try:
                outputs = self._pipeline.run()
            except RuntimeError as error:
                if memory_is_full(error):
                    raise
                return error.with_traceback(None)  # whose frames would keep the pipeline alive
        images, labels, unreadable = (_tensor(output) for output in outputs)
        self.note(unreadable)
        images = images.permute(0, 3, 1, 2)
        if self._delivery.device.type == "cuda":
            images, labels = self._taken_over(outputs, images, labels)
        return Batch(self._delivery.images(images), labels)

    def _taken_over(self, outputs: Any, *tensors: Tensor) -> list[Tensor]:
        """Copy tensors into torch's memory. DALI's outputs are kept until the copies are made on torch's stream."""
        copies = [tensor.clone() for tensor in tensors]
        made = torch.cuda.Event()
        made.record()
        self._held = [held for held in self._held if not held[0].query()] + [(made, outputs)]
        return copies

    def _set_aside(self, epoch: int, group: np.ndarray, error: RuntimeError) -> None:
        """Handle a group that DALI could not decode: leave out its broken files, or let Pillow decode the group.

        Raises:
            InputError: a file is broken, and unreadable files stop the run.
            RuntimeError: `error`, if the files are not the cause.
        """
        used = {self.reader.sample(epoch, index).index for index in group.tolist()}
        self.note(torch.tensor(self.reader.set_aside(used, error)))

    def _begin_at(self, position: int) -> None:
        """Build the pipeline whose first batch is the group at `position`, counted over all epochs."""
        self._pipeline = None  # frees the old one's memory before there is a new one
        stream = Stream(self.reader, self.sampler, position)
        device = self._delivery.device
        readers = max(self.workers // THREADS_A_READER, 2) if self.workers >= THREADS_A_READER else 0
        build = pipeline_def(
            batch_size=self.sampler.group,
            num_threads=self.workers,
            device_id=_number(device),
            prefetch_queue_depth=READ_AHEAD,
            py_num_workers=max(readers, 1),
            py_start_method="spawn",  # a forked CUDA context is unusable
        )(self._graph)
        self._pipeline = build(stream, readers)
        with self._helpers.started(), uninterrupted():
            self._pipeline.build()

    def _graph(self, stream: Stream, readers: int) -> tuple[Any, Any, Any]:
        """Define the pipeline: images [S, S, 3] in the training precision, labels, indices of unreadable files."""
        data, start, shape, size, down, across, flip, label, unreadable = fn.external_source(
            stream,
            num_outputs=9,
            batch=True,
            parallel=readers > 0,
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
            **({"prefetch_queue_depth": max(readers, READ_AHEAD)} if readers else {}),  # a batch a reader
        )
        orientation = {"adjust_orientation": False}  # as Pillow and the authors do
        if self._on_gpu:
            # The whole image: nvJPEG before 13.2 cannot upsample the colours of a part, and DALI would use the CPU.
            width, height = LARGEST
            hints = {"preallocate_width_hint": width, "preallocate_height_hint": height}
            images = fn.decoders.image(
                data,
                device="mixed",
                jpeg_fancy_upsampling=True,
                affine=False,
                **(hints if self.sampler.training else {}),
                **orientation,
            )
            images = fn.slice(images, start, shape, axis_names="HW")
        else:
            images = fn.decoders.image_slice(data, start, shape, axis_names="HW", device="cpu", **orientation)
        if self._delivery.device.type == "cuda":
            images, label = images.gpu(), label.gpu()  # resizing there leaves the CPU to decoding
        training = self.sampler.training
        images = fn.resize(
            images,
            size=size,
            interp_type=types.INTERP_LINEAR if training else INTERPOLATION[self._interpolation],
            antialias=not training,
        )
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
    """Return the index of a GPU, or None for the CPU."""
    if device.type != "cuda":
        return None
    return device.index if device.index is not None else torch.cuda.current_device()


def _tensor(output: Any) -> Tensor:
    """Return DALI's batch as a tensor that shares its memory."""
    tensor = output.as_tensor()
    if isinstance(output, TensorListCPU):
        return torch.from_numpy(np.asarray(tensor))  # torch does not accept pinned memory through DLPack
    return from_dlpack(tensor)
