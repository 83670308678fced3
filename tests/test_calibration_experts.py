"""What experts are fed: moments against the routing of the whole model, expert by expert."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_calibration_engine import run, samples_of

from prunectl.calibration.engine import Captured
from prunectl.methods.statistics import Gram

Inputs = dict[str, torch.Tensor]


def mixtral(experts: Any, x: torch.Tensor, routed: torch.Tensor) -> list[Inputs]:
    """Gate and up are one stack, [experts, 2 * width, hidden], of two tensors in the file."""
    found = []
    for number in range(experts.num_experts):
        own = x[(routed == number).any(-1)].double()
        gate, up = (own @ experts.gate_up_proj[number].double().T).chunk(2, -1)
        down = torch.nn.functional.silu(gate) * up
        found.append({"w1": own, "w3": own, "w2": down})
    return found


def gpt_oss(experts: Any, x: torch.Tensor, routed: torch.Tensor) -> list[Inputs]:
    """Stacks [experts, in, out], gate and up in turns, with biases."""
    found = []
    for number in range(experts.num_experts):
        own = x[(routed == number).any(-1)].double()
        both = own @ experts.gate_up_proj[number].double()
        both = both + experts.gate_up_proj_bias[number].double()
        gate, up = both[:, ::2].clamp(max=experts.limit), both[:, 1::2]
        up = up.clamp(-experts.limit, experts.limit)
        down = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        found.append({"gate_up_proj": own, "down_proj": down})
    return found


def llama4(experts: Any, x: torch.Tensor, routed: torch.Tensor | None = None) -> list[Inputs]:
    """All experts in one product of stacks; zeros in the place of others' tokens are no tokens."""
    found = []
    stack = x.double().view(experts.num_experts, -1, x.shape[-1])
    for own, both in zip(stack, experts.gate_up_proj.double(), strict=True):
        fed = own[own.abs().sum(1) > 0]
        gate, up = (fed @ both).chunk(2, -1)
        found.append({"gate_up_proj": fed, "down_proj": up * torch.nn.functional.silu(gate)})
    return found


@pytest.mark.parametrize("by_hand", [mixtral, gpt_oss, llama4], ids=lambda f: f.__name__)
def test_moments_of_experts_are_those_of_the_tokens_routed_to_them(
    by_hand: Callable[..., list[Inputs]], tmp_path: Path
) -> None:
    name = by_hand.__name__
    model = tiny_models.build(name, tmp_path)
    samples = samples_of(name, 4)
    fed: dict[tuple[int, int, str], list[torch.Tensor]] = {}

    def hook(layer: int) -> Any:
        def keep(module: Any, args: Any) -> None:
            for number, inputs in enumerate(by_hand(module, *args[:2])):
                for which, x in inputs.items():
                    fed.setdefault((layer, number, which), []).append(x)

        return keep

    for path, module in model.named_modules():
        if path.endswith(".experts"):
            module.register_forward_pre_hook(hook(int(path.split(".")[2])))
    with torch.no_grad():
        for sample in samples:
            model(**sample)

    seen: dict[tuple[int, int, str], Gram | None] = {}

    def prune(tensor: str, parts: Sequence[Captured]) -> None:
        for one in parts:
            place = re.search(r"layers\.(\d+)\..*experts\.(?:(\d+)\.)?(\w+?)(?:\.weight)?$", tensor)
            if place is not None:
                number = one.matrix.index if one.matrix.index is not None else int(place[2])
                seen[int(place[1]), number, place[3]] = one.gram

    run(tmp_path, samples, prune)
    assert seen.keys() == fed.keys()
    assert len(seen) >= 6
    for place, parts in fed.items():
        x, gram = torch.cat(parts), seen[place]
        if not len(x):
            assert gram is None or not gram.tokens
            continue
        assert gram is not None
        assert gram.tokens == len(x)
        expected = 2 / len(x) * x.T @ x
        torch.testing.assert_close(gram.hessian().double(), expected, rtol=1e-4, atol=1e-7)
