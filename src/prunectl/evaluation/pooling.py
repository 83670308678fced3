"""How a sentence's vector is made of its tokens': as the folder of a sentence-transformers model
says, else by the mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.documents import parse_json, read_object, read_regular
from prunectl.evaluation.metric import Request

if TYPE_CHECKING:
    import torch

MEAN, CLS = "mean", "cls"
_KEYS = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS}
_PREFIX = "pooling_mode_"


@dataclass(frozen=True, slots=True)
class Pooling:
    """What sentence-transformers does with the outputs of a model.

    Attributes:
        mode: ``mean`` of the tokens, padding left out, or ``cls``, the first of them.
        longest: tokens that it cuts a sentence to; None where its folder says nothing.
        declared: whether the folder says the mode.
    """

    mode: str = MEAN
    longest: int | None = None
    declared: bool = False

    def __call__(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors of sentences, float32 [sentences, width].

        Args:
            states: of tokens, [sentences, tokens, width], in any dtype.
            mask: [sentences, tokens], 0 = padding.
        """
        if self.mode == CLS:
            return states[:, 0].float()
        weights = mask[:, :, None].float()
        return (states.float() * weights).sum(1) / weights.sum(1)


def pooling_of(request: Request) -> Pooling:
    """What the model's folder says.

    Raises:
        MetricMismatch: a way to pool that is not known.
    """
    folder = request.checkpoint.folder
    longest = read_object(folder / "sentence_bert_config.json").get("max_seq_length")
    kinds = [str(one.get("type", "")) for one in _modules(folder)]
    if any(kind.endswith(".Dense") for kind in kinds):
        request.notes.append("the Dense layer after the model's pooling is left out")
    declared = read_object(folder / "1_Pooling" / "config.json")
    mode = _mode(declared)
    if mode not in (None, MEAN, CLS):
        raise request.mismatch(
            f"its 1_Pooling/config.json asks for '{mode}', and mean and cls are known",
        )
    cut = longest if isinstance(longest, int) and longest > 0 else None
    return Pooling(mode or MEAN, cut, mode is not None)


def _mode(declared: dict[str, Any]) -> str | None:
    """The mode, as newer and older versions write it; several that are on are joined by '+'."""
    if isinstance(declared.get("pooling_mode"), str):
        return str(declared["pooling_mode"])
    on = [key for key, value in declared.items() if key.startswith(_PREFIX) and value is True]
    return "+".join(_KEYS.get(key, key.removeprefix(_PREFIX)) for key in on) or None


def _modules(folder: Path) -> list[dict[str, Any]]:
    try:
        found = parse_json(read_regular(folder / "modules.json"))
    except (OSError, ValueError):
        found = None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
