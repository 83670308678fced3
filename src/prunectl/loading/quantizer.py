"""The plug-in through which transformers' ``from_pretrained`` reads a compressed folder.

The folder's config.json has the member ``"quantization_config": {"quant_method": "prunectl",
"weights": FILE}``. transformers calls the quantizer registered under this name, which points it at
the compressed weights and makes it read them through :class:`prunectl.loading.safe_open.SafeOpen`.
The result is an ordinary dense model: nothing of the plug-in stays in it, and saving it writes an
ordinary checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from prunectl.errors import BadCheckpoint, BadManifest, UnsupportedCheckpoint
from prunectl.layouts.table import DENSE
from prunectl.loading import safe_open
from prunectl.output.config_json import METHOD
from prunectl.output.manifest import read_manifest


class CompressedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The member of config.json that describes the compressed weights."""

    def __init__(self, weights: str = "", **unknown: Any) -> None:
        self.quant_method = METHOD
        self.weights = weights
        # read by transformers: the loaded model is dense, and so is its config
        self.dequantize = True


class CompressedQuantizer(HfQuantizer):  # type: ignore[misc]
    """Decodes while transformers loads; changes no module."""

    requires_calibration = True  # nothing can be quantized on the fly

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        safe_open.install()

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the compressed weights in the model's config before transformers looks for files."""
        config.transformers_weights = self.quantization_config.weights
        return config

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        places = kwargs.get("device_map") or {}
        if "disk" in (places.values() if isinstance(places, dict) else [places]):
            raise UnsupportedCheckpoint(
                model.config.name_or_path,
                "compressed weights cannot be offloaded to disk",
                hint=f"export them first: prunectl export MODEL --layout {DENSE} -o DIR",
            )
        self._files = [str(path) for path in kwargs.get("checkpoint_files") or ()]
        _check_complete(self._files)
        safe_open.opened.difference_update(self._files)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # read another way, the parts fit no weight of the model, which would stay random
        if unread := set(self._files) - safe_open.opened:
            raise UnsupportedCheckpoint(
                min(unread),
                "transformers read compressed weights past prunectl, so the model has none",
                hint="leave disable_mmap out, or use prunectl.load_state_dict",
            )
        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        return model

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True


def _check_complete(files: list[str]) -> None:
    """Refuse a folder without a weights file that its manifest lists.

    Raises:
        BadCheckpoint: the manifest lists a file that is not loaded.
    """
    if not files:
        return
    folder = Path(files[0]).parent
    try:
        listed = {record.file for record in read_manifest(folder).tensors}
    except BadManifest:
        return
    if missing := sorted(listed - {Path(path).name for path in files}):
        raise BadCheckpoint(
            folder, f"the weights file {missing[0]} is missing, or not in the index"
        )
