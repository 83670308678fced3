"""One sentence on what to try next, and sentences on what is odd."""

from __future__ import annotations

from collections.abc import Sequence

from prunectl.analysis.result import PatternSummary, SourceFacts, TensorStats, Threshold


def advise(
    source: SourceFacts, thresholds: Sequence[Threshold], patterns: Sequence[PatternSummary]
) -> str:
    """What to try next, from norms alone; it says that norms are not quality."""
    if not thresholds or not source.prunable_weights:
        return (
            "No tensor is a weight matrix of a transformer block; "
            "choose tensors yourself with prune --include."
        )
    if source.quantization:
        return "Quantized weights can be looked at but not pruned; prune the original checkpoint."
    safe = [row for row in thresholds if row.norm_kept >= 0.99]
    row = safe[-1] if safe else thresholds[0]
    text = (
        f"Try --sparsity {row.sparsity:g} first: it keeps {row.norm_kept:.1%} of the squared norm"
    )
    fits = [pattern for pattern in patterns if pattern.eligible]
    if fits:
        best = max(fits, key=lambda pattern: pattern.norm_kept)
        text += f" (--pattern {best.pattern} keeps {best.norm_kept:.1%})"
    return text + ". Norms are a hint, not quality: measure the pruned model on your own data."


def warnings_for(source: SourceFacts, tensors: Sequence[TensorStats]) -> tuple[str, ...]:
    """Sentences on Inf, NaN, fp8 and roles that are only a guess."""
    found = []
    if source.roles_from == "headers":
        found.append(
            f"Roles come from tensor names and shapes only ({source.roles_detail}); "
            "check the table by role before pruning."
        )
    if source.quantization:
        found.append(f"The checkpoint is quantized ({source.quantization}): it cannot be pruned.")
    for kind in ("nans", "infs"):
        bad = [t for t in tensors if getattr(t, kind)]
        if bad:
            what = "NaN" if kind == "nans" else "Inf"
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            found.append(f"Tensor '{bad[0].name}'{more} holds {what}.")
    return tuple(found)
