"""Fine-tuning with the pruned weights held at zero: a loop on accelerate.

Each optimizer step is computed on the samples that the seed gives it, in as many passes as memory
makes necessary and by as many processes as there are; the step is the same but for rounding and
what dropout draws. Pruned weights have no gradient and are set to zero again after each step, so
that neither the optimizer's moments nor its decay move them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prunectl.device import is_out_of_memory
from prunectl.evaluation.batches import refusals
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.loaded_model import Held
from prunectl.evaluation.recipes import Recipe
from prunectl.evaluation.training_state import States, accelerated, own_randomness
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted, ignore_events

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


PHASE = "fine-tuning"


class Samples(Protocol):
    """What is trained on."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs and labels of some samples, on the CPU; with them the model computes the mean of
        their losses."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a training did.

    Attributes:
        steps: of the optimizer, those before an interruption included.
        losses: mean loss of a sample in each epoch.
        passes: that a step's samples were run in at the end; more than asked for where memory
            was full.
        resumed: epochs that were there already.
        skipped: steps that mixed precision skipped, since gradients were not finite.
    """

    steps: int
    losses: tuple[float, ...]
    passes: int
    resumed: int = 0
    skipped: int = 0


def train(
    model: Any,
    held: Sequence[Held],
    data: Samples,
    recipe: Recipe,
    seed: int,
    on_event: OnEvent = ignore_events,
    *,
    after_step: Callable[[int], None] | None = None,
    folder: Path | None = None,
) -> TrainingRecord:
    """Train a model in place; it is in evaluation mode afterwards.

    Args:
        model: a transformers model on its device, in a dtype that can be trained.
        held: weights of which the zeros stay.
        data: at least one sample.
        seed: of the order of samples and of what dropout draws.
        after_step: called with the number of each optimizer step, from 1 on, when it is done.
        folder: takes the state after each epoch; what is there is gone on from. It is not removed.

    Raises:
        EvaluationFailed: the loss is not finite, or memory does not suffice for a single sample.
        InvalidOption: the device does not know the precision.
        NoSpace, CannotWrite: the state cannot be saved.
    """
    import torch

    if not recipe.epochs:
        return TrainingRecord(0, (), recipe.gradient_accumulation)
    device = next(model.parameters()).device
    wanted = [p.requires_grad for p in model.parameters()]
    with own_randomness(device), accelerated(device, recipe.mixed_precision) as accelerator:
        listener = on_event if accelerator.is_main_process else ignore_events
        try:
            model.requires_grad_(True)
            with torch.enable_grad():
                loop = _Loop(model, held, data, recipe, seed, accelerator, listener)
                return loop.run(after_step or (lambda step: None), folder)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _no_memory(device) from None
        finally:
            _undress(model)
            model.zero_grad(set_to_none=True)
            for parameter, before in zip(model.parameters(), wanted, strict=True):
                parameter.requires_grad_(before)
            model.eval()


class _Loop:
    """One training."""

    def __init__(
        self,
        model: Any,
        held: Sequence[Held],
        data: Samples,
        recipe: Recipe,
        seed: int,
        accelerator: Accelerator,
        on_event: OnEvent,
    ) -> None:
        import torch
        from accelerate.utils import set_seed

        self._data, self._recipe, self._seed = data, recipe, seed
        self._accelerator, self._on_event = accelerator, on_event
        self._passes, self._skipped = recipe.gradient_accumulation, 0
        self._zeros = Zeros(model, held)
        self._optimizer: Any = torch.optim.AdamW(_groups(model, recipe), lr=recipe.learning_rate)
        set_seed(seed, device_specific=True)
        self._parameters = list(model.parameters())
        self._model, self._optimizer = accelerator.prepare(model.train(), self._optimizer)
        self._zeros.moved()
        self._per_epoch = math.ceil(len(data) / recipe.train_batch_size)
        self._total = self._per_epoch * recipe.epochs
        if recipe.max_steps is not None:
            self._total = min(self._total, recipe.max_steps)

    def run(self, after_step: Callable[[int], None], folder: Path | None) -> TrainingRecord:
        recipe = self._recipe
        states = States(folder, self._accelerator) if folder else None
        resumed, facts = states.load() if states else (0, {})
        losses = list(facts.get("losses", ()))
        self._passes = facts.get("passes", self._passes)
        self._skipped = facts.get("skipped", 0)
        step = min(resumed * self._per_epoch, self._total)
        if resumed:
            self._on_event(Note(f"{PHASE} goes on behind epoch {resumed} of {recipe.epochs}"))
        self._on_event(PhaseStarted(PHASE, self._total, "steps"))
        self._on_event(Advanced(PHASE, step))
        for epoch in range(resumed, recipe.epochs):
            loss, seen = 0.0, 0
            for indices in order(len(self._data), recipe.train_batch_size, self._seed, epoch):
                if step == self._total:
                    break
                loss += self._step(step, indices) * len(indices)
                seen += len(indices)
                step += 1
                after_step(step)
                self._on_event(Advanced(PHASE, 1))
            if seen:
                losses.append(loss / seen)
                if states:
                    facts = {"losses": losses, "passes": self._passes, "skipped": self._skipped}
                    states.save(epoch + 1, facts)
        self._on_event(PhaseDone(PHASE))
        return TrainingRecord(step, tuple(losses), self._passes, resumed, self._skipped)

    def _step(self, step: int, indices: Sequence[int]) -> float:
        """One optimizer step; returns the mean loss before it."""
        recipe = self._recipe
        factor = decay(step, self._total, round(recipe.warmup * self._total))
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        loss = self._gradients(indices)
        if not math.isfinite(loss):
            raise EvaluationFailed(
                PHASE,
                f"the loss is {loss} in step {step + 1:,} of {self._total:,}",
                hint="try a lower --learning-rate, --warmup 0.1, or --mixed-precision no",
            )
        self._zeros.clear_gradients()
        if recipe.max_grad_norm:
            self._accelerator.clip_grad_norm_(self._parameters, recipe.max_grad_norm)
        self._optimizer.step()
        self._skipped += bool(self._accelerator.optimizer_step_was_skipped)
        self._zeros.clear_weights()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients(self, indices: Sequence[int]) -> float:
        """Gradients of the mean loss of samples, and the loss; in more passes if memory is full."""
        import torch

        process, processes = self._accelerator.process_index, self._accelerator.num_processes
        own = indices[process::processes]
        while True:
            try:
                return self._passes_over(own, indices)
            except (RuntimeError, MemoryError) as error:
                # Other processes would wait for this one: they cannot go back.
                if not is_out_of_memory(error) or processes > 1 or self._passes >= len(own):
                    raise
            # What the exception held is gone by now.
            self._optimizer.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._passes *= 2
            size = math.ceil(self._recipe.train_batch_size / self._passes)
            text = f"memory is full: {size} samples at once from here on"
            self._on_event(Note(f"{text}, {self._passes} passes a step", warning=True))

    def _passes_over(self, own: Sequence[int], indices: Sequence[int]) -> float:
        accelerator = self._accelerator
        # A process without samples of its own has to take part all the same, with no weight.
        parts = [
            (part.tolist(), len(part) / len(indices))
            for part in np.array_split(np.asarray(own), min(self._passes, len(own)) or 1)
        ]
        parts = parts if len(own) else [([indices[0]], 0.0)]
        losses = []
        for number, (part, weight) in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else accelerator.no_sync(self._model):
                batch = self._data.batch(part)
                inputs = {name: one.to(accelerator.device) for name, one in batch.items()}
                with refusals(PHASE):
                    loss = self._model(**inputs).loss
                # Gradients are averaged over processes.
                accelerator.backward(loss * (weight * accelerator.num_processes))
            losses.append(loss.detach().float() * weight)
        loss = sum(losses[1:], losses[0])
        if accelerator.num_processes > 1:
            loss = accelerator.reduce(loss, "sum")
        return float(loss)


def order(samples: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The samples of each optimizer step of an epoch (counted from 0): each sample once."""
    drawn = np.random.default_rng([seed, epoch]).permutation(samples).tolist()
    return [drawn[at : at + batch] for at in range(0, samples, batch)]


def decay(step: int, total: int, warmup: int) -> float:
    """The learning rate of a step (counted from 0), as a share of the highest: linear from 0 over
    ``warmup`` steps, then linear to 0, which is that of a step behind the last."""
    if step < warmup:
        return step / warmup
    return (total - step) / max(1, total - warmup)


def _groups(model: torch.nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters with decay and, biases and norms, without."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _undress(model: Any) -> None:
    """Take off what accelerate put on the model, so that it can be trained again."""
    model.__dict__.pop("_is_accelerate_prepared", None)
    original = model.__dict__.pop("_original_forward", None)  # there with mixed precision
    if original is not None:
        del model.forward
        if model.forward != original:
            model.forward = original


def _no_memory(device: torch.device) -> EvaluationFailed:
    return EvaluationFailed(
        PHASE,
        f"the memory of {device} does not suffice",
        hint="a lower --sequence-length or --mixed-precision bf16 takes less of it",
    )


class Zeros:
    """What is pruned of each parameter that holds pruned weights.

    Kept by parameter and not by view: moving a model to another device or dtype gives its
    parameters new memory, which a view does not follow.

    Args:
        model: the module that the views are into.
        held: as :meth:`prunectl.evaluation.loaded_model.LoadedModel.held` finds them.
    """

    def __init__(self, model: torch.nn.Module, held: Sequence[Held]) -> None:
        import torch

        owners = list(model.parameters())
        self._gone: dict[torch.nn.Parameter, torch.Tensor] = {}
        for one in held:
            parameter = next(p for p in owners if _holds(p, one.weight))
            if parameter not in self._gone:
                self._gone[parameter] = torch.zeros_like(parameter, dtype=torch.bool)
            mask = self._gone[parameter]
            offset = one.weight.storage_offset() - parameter.storage_offset()
            mask.as_strided(one.weight.shape, one.weight.stride(), offset).copy_(one.gone)

    def moved(self) -> None:
        """Follow parameters that were moved to another device."""
        self._gone = {p: mask.to(p.device) for p, mask in self._gone.items()}

    def clear_gradients(self) -> None:
        """Pruned weights have no gradient, NaN and Inf included."""
        for parameter, mask in self._gone.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0.0)

    def clear_weights(self) -> None:
        """Pruned weights are +0.0."""
        for parameter, mask in self._gone.items():
            parameter.data.masked_fill_(mask, 0.0)


def _holds(parameter: torch.Tensor, view: torch.Tensor) -> bool:
    """Whether a view's first element is one of a (dense) parameter."""
    if parameter.untyped_storage().data_ptr() != view.untyped_storage().data_ptr():
        return False
    return 0 <= view.storage_offset() - parameter.storage_offset() < parameter.numel()
