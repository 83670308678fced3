"""What a manifest says of a calibration: whether it can be so, and whether it is good."""

from __future__ import annotations

from prunectl.events import Note, OnEvent
from prunectl.methods.table import UPDATING
from prunectl.output.manifest import Manifest
from prunectl.output.target import MANIFEST_NAME
from prunectl.verification.findings import Findings


def check_calibrated(manifest: Manifest, findings: Findings, on_event: OnEvent) -> None:
    """Look for contradictions, where weights that stay were changed.

    Nothing but the samples can tell how far outputs are from the dense ones. That they are further
    away than those of a matrix of zeros is said where the manifest states it; it is no difference.
    """
    updated = [record for record in manifest.tensors if record.is_updated]
    if not updated:
        del findings.sentences["calibrated"]
        return
    findings.sentences["survivors"] = (
        "where calibration changed no weights, survivors are bit-identical to the source"
    )
    asked = manifest.arguments
    if not asked.get("calibration"):
        findings.add("calibrated", MANIFEST_NAME, "weights were changed without a calibration")
    elif not asked.get("refine") and asked.get("method") not in UPDATING:
        detail = f"weights were changed, which method {asked.get('method')} does not"
        findings.add("calibrated", MANIFEST_NAME, detail)
    for record in updated:
        if record.by_magnitude >= max(record.matrices, 1):
            detail = "its weights were changed, and no sample reached it"
            findings.add("calibrated", record.name, detail)
    errors = {
        record.name: float(record.calibrated["error"])
        for record in updated
        if record.calibrated is not None and record.calibrated["error"] is not None
    }
    worse = [name for name, error in errors.items() if error > 1]
    if worse:
        worst = max(worse, key=errors.__getitem__)
        more = f", and {len(worse) - 1:,} more" if len(worse) > 1 else ""
        text = (
            f"{worst}{more}: by the manifest, outputs are further from the dense ones than zeros "
            f"would be (output error {errors[worst]:.0%})"
        )
        on_event(Note(text, warning=True))
