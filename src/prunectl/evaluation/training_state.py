"""The state of a training: accelerate's own, random numbers, and what is saved after each epoch."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from prunectl.data.errors import first_line
from prunectl.errors import InvalidOption
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.output.osfiles import os_errors
from prunectl.to_json import to_json

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from prunectl.evaluation.recipes import Recipe

_FACTS = "training.json"
_PARTIAL = "partial"


@contextmanager
def accelerated(device: torch.device, mixed_precision: str) -> Iterator[Accelerator]:
    """An accelerator of its own; one that the caller may have is as it was afterwards.

    Under ``accelerate launch`` or ``torchrun`` it is one of several processes.

    Raises:
        InvalidOption: the device does not know the precision, or processes are set up otherwise
            than with the whole model on each device.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType

    if mixed_precision == "fp16" and device.type == "cpu":  # accelerate would do without a word
        raise InvalidOption(
            "--mixed-precision fp16: the CPU does not compute in it", hint="bf16, or no"
        )
    # accelerate keeps one state for the process, which fixes device and precision.
    shared = [one._shared_state for one in (PartialState, AcceleratorState, GradientState)]
    before = [dict(one) for one in shared]
    for one in shared:
        one.clear()
    place = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with place:
            try:
                accelerator = Accelerator(
                    cpu=device.type == "cpu",
                    mixed_precision=mixed_precision,
                    # Not every model uses all of its parameters, such as those of a pooler.
                    kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
                )
            except ValueError as error:
                raise InvalidOption(f"--mixed-precision {mixed_precision}: {error}") from None
            kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
            if accelerator.distributed_type not in kinds:
                raise InvalidOption(
                    f"training with accelerate's {accelerator.distributed_type.value} is not known",
                    hint="each process holds the whole model: accelerate launch --multi_gpu",
                )
            yield accelerator
    finally:
        for one, values in zip(shared, before, strict=True):
            one.clear()
            one.update(values)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """What is drawn inside does not change what the caller draws."""
    import torch

    drawn = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])


def fingerprint(model: torch.nn.Module, recipe: Recipe, data: str, seed: int) -> str:
    """What a training begins from and does, in 32 hexadecimal digits.

    Args:
        data: a hash of what is trained on.
    """
    import torch

    hasher = blake3(json.dumps([to_json(recipe), data, seed]).encode())
    for name, tensor in model.state_dict().items():
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(whole.view(torch.uint8).numpy())
    return hasher.hexdigest(16)


class States:
    """The states after epochs in a folder, of which the last one is kept.

    Raises:
        NoSpace, CannotWrite: the folder cannot be made, which is known before any training; and
            from :meth:`save`.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._folder, self._accelerator = folder, accelerator
        with os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, epochs: int, facts: dict[str, Any]) -> None:
        """Keep the state after so many epochs; complete, or absent."""
        partial = self._folder / _PARTIAL
        with os_errors(self._folder):
            if self._accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._accelerator.wait_for_everyone()
            self._accelerator.save_state(str(partial))
            self._accelerator.wait_for_everyone()
            if self._accelerator.is_main_process:
                (partial / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
                old = self._saved()
                partial.rename(self._path(epochs))
                for one in old.values():
                    shutil.rmtree(one, ignore_errors=True)

    def load(self) -> tuple[int, dict[str, Any]]:
        """Go on behind the last epoch that is there: how many there were, and the facts; or 0.

        Raises:
            EvaluationFailed: a state is there and cannot be loaded.
        """
        found = self._saved()
        if not found:
            return 0, {}
        epochs = max(found)
        path = found[epochs]
        try:
            facts = json.loads((path / _FACTS).read_bytes())
            self._accelerator.load_state(str(path))
        except Exception as error:  # torch and safetensors raise many kinds
            first = first_line(error)
            raise EvaluationFailed(
                "fine-tuning",
                f"its state in {path} cannot be loaded: {first}",
                hint="delete this folder to begin anew",
            ) from None
        return epochs, facts

    def _path(self, epochs: int) -> Path:
        return self._folder / f"epoch-{epochs:04}"

    def _saved(self) -> dict[int, Path]:
        return {
            int(number): path
            for path in self._folder.glob("epoch-*")
            if (number := path.name.removeprefix("epoch-")).isdecimal()
        }


def discard(folder: Path | None) -> None:
    """Drop the states of a training that has been of use."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
