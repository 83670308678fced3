"""Fine-tuning with the pruned weights held at zero: transformers' Trainer, and a mask.

Importing the Trainer takes seconds: import this module only where a model is trained.
"""

from __future__ import annotations

import itertools
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_model
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, logging

from prunectl.data.errors import first_line
from prunectl.device import is_out_of_memory
from prunectl.errors import InvalidOption
from prunectl.evaluation.batches import refusals
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.held_mask import HeldMask, masks_by_parameter
from prunectl.evaluation.inputs import Samples
from prunectl.evaluation.loaded_model import Held
from prunectl.evaluation.tasks import Recipe
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted, ignore_events
from prunectl.output.osfiles import os_errors
from prunectl.parallel.launched import launched

PHASE = "fine-tuning"


def train(
    model: Any,
    held: Sequence[Held],
    data: Samples,
    recipe: Recipe,
    seed: int,
    on_event: OnEvent = ignore_events,
    *,
    folder: Path | None = None,
) -> None:
    """Train a model in place, and leave it in evaluation mode.

    Under ``accelerate launch`` or ``torchrun``, each process computes its share of every step.

    Args:
        model: a transformers model on its device, in a dtype that can be trained.
        held: weights whose zeros stay zero.
        data: at least one sample, with labels, from which the model returns the mean loss.
        folder: receives the Trainer's checkpoint after each epoch. Training resumes from a
            checkpoint in it. The folder is not removed.

    Raises:
        EvaluationFailed: the loss is not finite, memory does not suffice for a single sample, or a
            checkpoint cannot be loaded.
        InvalidOption: the device does not support the precision, or accelerate is configured to
            split the model over processes.
        NoSpace, CannotWrite: a checkpoint cannot be saved.
    """
    if not recipe.epochs:
        return
    device = next(model.parameters()).device
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    with os_errors(folder) if folder else nullcontext(), _isolated(device):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            model.requires_grad_(True)
            with torch.enable_grad(), HeldMask(masks_by_parameter(model, held)):
                _StepTrainer(model, data, recipe, seed, on_event, folder).run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise EvaluationFailed(
                PHASE,
                f"the memory of {device} does not suffice",
                hint="a lower --sequence-length or --mixed-precision bf16 takes less memory",
            ) from None
        finally:
            model.zero_grad(set_to_none=True)
            for parameter, before in zip(model.parameters(), trainable, strict=True):
                parameter.requires_grad_(before)
            model.eval()


class _StepTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that runs each step's samples in passes that fit in memory.

    The gradient is that of the mean loss of the step's samples, for any number of passes. The
    Trainer's own gradient accumulation would give a smaller last pass the weight of a full one, and
    where memory is full it would restart the training with a smaller batch.
    """

    def __init__(
        self,
        model: Any,
        data: Samples,
        recipe: Recipe,
        seed: int,
        on_event: OnEvent,
        folder: Path | None,
    ) -> None:
        self._data, self._recipe, self._seed, self._folder = data, recipe, seed, folder
        self._on_event = on_event if launched()[0] == 0 else ignore_events
        self._pass_count, self._has_begun = recipe.gradient_accumulation, False
        self._steps_per_epoch = math.ceil(len(data) / recipe.train_batch_size)
        device = next(model.parameters()).device
        args = _arguments(recipe, self._steps_per_epoch, seed, device, folder)
        groups = [
            {
                "params": [p for p in model.parameters() if (p.ndim > 1) == is_matrix],
                "weight_decay": recipe.weight_decay if is_matrix else 0.0,
            }
            for is_matrix in (True, False)
        ]
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        super().__init__(
            model, args, callbacks=[_Progress(self._on_event)], optimizers=(optimizer, None)
        )
        self.remove_callback(PrinterCallback)
        kind = self.accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            raise InvalidOption(
                f"training with accelerate's {kind.value} is not supported",
                hint="each process must hold the whole model: accelerate launch --multi_gpu",
            )

    def run(self) -> None:
        """Train, resuming from the last checkpoint if there is one."""
        step, checkpoint = _last_checkpoint(self._folder) if self._folder else (0, None)
        if step:
            done = math.ceil(step / self._steps_per_epoch)
            self._on_event(Note(f"{PHASE} resumes after epoch {done} of {self._recipe.epochs}"))
        self._on_event(PhaseStarted(PHASE, self.args.max_steps, "steps"))
        self._on_event(Advanced(PHASE, step))
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except Exception as error:  # torch, safetensors and json raise many kinds
            if checkpoint is None or self._has_begun:
                raise
            raise EvaluationFailed(
                PHASE,
                f"the checkpoint {checkpoint} cannot be loaded: {first_line(error)}",
                hint="delete this folder to start again",
            ) from None
        finally:  # remove accelerate's wrapper of the forward method, which mixed precision adds
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model.__dict__.pop("_is_accelerate_prepared", None)
        self._on_event(PhaseDone(PHASE))

    def get_train_dataloader(self) -> Any:
        """Indices of each step's samples, the same in all processes.

        The steps of all epochs follow one another, so the Trainer sees one epoch.
        """
        count, size = len(self._data), self._recipe.train_batch_size
        steps = (
            step
            for epoch in range(self._recipe.epochs)
            for step in order(count, size, self._seed, epoch)
        )
        return DataLoader(
            range(count),  # type: ignore[arg-type]
            batch_sampler=list(itertools.islice(steps, self.args.max_steps)),
            collate_fn=list,
            generator=torch.Generator(),  # else the loader would draw from dropout's
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Compute the mean loss of a step's samples, and its gradients.

        Args:
            inputs: indices of the samples of all processes together.

        Raises:
            EvaluationFailed: the loss is not finite.
        """
        self._has_begun = True
        model.train()
        loss = self._gradients(model, inputs)
        if self.args.world_size > 1:
            loss = self.accelerator.reduce(loss, "sum")
        if not loss.isfinite():
            step, total = self.state.global_step + 1, self.state.max_steps
            raise EvaluationFailed(
                PHASE,
                f"the loss is {loss.item()} in step {step:,} of {total:,}",
                hint="try a lower --learning-rate, --warmup 0.1, or --mixed-precision no",
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights under their names in the model, by which a resume loads them.

        ``save_pretrained`` would rename some of them as on the Hub, and a resume would ignore
        these.
        """
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_model(self.model, str(folder / "model.safetensors"))

    def _gradients(self, model: Any, indices: Sequence[int]) -> torch.Tensor:
        """Run this process's samples in passes, and double their number while memory is full."""
        own = indices[self.args.process_index :: self.args.world_size]
        while True:
            try:
                return self._run_passes(model, own, indices)
            except (RuntimeError, MemoryError) as error:
                # Several processes cannot repeat a step: the others would wait for this one.
                is_alone = self.args.world_size == 1
                if not is_out_of_memory(error) or not is_alone or self._pass_count >= len(own):
                    raise
            # The exception's traceback held tensors, which are free only outside the except clause.
            model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._pass_count *= 2
            size = math.ceil(self._recipe.train_batch_size / self._pass_count)
            text = f"memory is full: {size} samples at once from here on"
            self._on_event(Note(f"{text}, {self._pass_count} passes a step", warning=True))

    def _run_passes(
        self, model: Any, own: Sequence[int], all_indices: Sequence[int]
    ) -> torch.Tensor:
        """Compute this process's part of the mean loss, and gradients reduced over processes."""
        parts = [
            (part.tolist(), len(part) / len(all_indices))
            for part in np.array_split(np.asarray(own), min(self._pass_count, len(own)) or 1)
        ]
        # A process without samples joins the reduction with a sample of weight 0.
        parts = parts if len(own) else [([all_indices[0]], 0.0)]
        losses = []
        for number, (part, weight) in enumerate(parts, 1):
            is_last = number == len(parts)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                batch = self._data.batch(part)
                inputs = {name: one.to(self.args.device) for name, one in batch.items()}
                with refusals(PHASE):
                    loss = model(**inputs).loss
                # Gradients are averaged over processes.
                self.accelerator.backward(loss * (weight * self.args.world_size))
            losses.append(loss.detach().float() * weight)
        return torch.stack(losses).sum()


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Report each step."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report progress."""
        self._on_event(Advanced(PHASE, 1))


def order(samples: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the samples of each step of an epoch (counted from 0): each sample once."""
    drawn = np.random.default_rng([seed, epoch]).permutation(samples).tolist()
    return [drawn[at : at + batch] for at in range(0, samples, batch)]


class _OneDevice(TrainingArguments):  # type: ignore[misc]
    """Arguments for training on one device only, also where the process sees several."""

    place: torch.device | None = None

    @property
    def device(self) -> torch.device:
        return self.place or super().device

    @property
    def n_gpu(self) -> int:
        return int(self.device.type == "cuda")


def _arguments(
    recipe: Recipe, steps_per_epoch: int, seed: int, device: torch.device, folder: Path | None
) -> TrainingArguments:
    """The Trainer's arguments: it prints nothing, and writes nothing but checkpoints."""
    total = steps_per_epoch * recipe.epochs
    total = min(total, recipe.max_steps or total)
    precision = recipe.mixed_precision
    if precision == "fp16" and device.type == "cpu":  # accelerate would ignore it silently
        raise InvalidOption(
            "--mixed-precision fp16 is not supported on the CPU", hint="bf16, or no"
        )
    try:
        args = _OneDevice(
            # The Trainer creates this folder. Nothing is saved in the temporary one, which exists.
            output_dir=str(folder or tempfile.gettempdir()),
            save_strategy="steps" if folder else "no",
            save_steps=steps_per_epoch,
            save_total_limit=1,
            max_steps=total,
            learning_rate=recipe.learning_rate,
            warmup_steps=round(recipe.warmup * total),
            max_grad_norm=recipe.max_grad_norm,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            seed=seed + launched()[0],  # for dropout, which differs between processes
            use_cpu=device.type == "cpu",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            log_level="critical",
            log_level_replica="critical",
        )
    except ValueError as error:
        raise InvalidOption(f"--mixed-precision {precision}: {error}") from None
    args.mixed_precision = precision  # overrides the setting of accelerate launch
    args.place = device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return args


def _last_checkpoint(folder: Path) -> tuple[int, str | None]:
    """The number of steps before the last checkpoint, and its path; (0, None) if there is none.

    The Trainer writes its state as the last file: a checkpoint without it is incomplete.
    """
    found = {
        int(number): str(state.parent)
        for state in folder.glob("checkpoint-*/trainer_state.json")
        if (number := state.parent.name.removeprefix("checkpoint-")).isdecimal()
    }
    return max(found.items(), default=(0, None))


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Restore the caller's random states, current device, accelerate state and logging level.

    Accelerate has one state for the whole process, which the Trainer resets.
    """
    states = [one._shared_state for one in (PartialState, AcceleratorState, GradientState)]
    before = [dict(one) for one in states]
    randoms, level = (random.getstate(), np.random.get_state()), logging.get_verbosity()
    devices = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices),
            torch.cuda.device(device) if devices else nullcontext(),
        ):
            yield
    finally:
        random.setstate(randoms[0])
        np.random.set_state(randoms[1])
        logging.set_verbosity(level)
        for one, values in zip(states, before, strict=True):
            one.clear()
            one.update(values)
