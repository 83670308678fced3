"""The plug-in through which transformers' ``from_pretrained`` loads what prunectl wrote.

A compressed folder's config.json has the member ``"quantization_config": {"quant_method":
"prunectl", "weights": FILE}``. transformers calls the quantizer registered under this name, which
points it at the compressed weights and makes it read them through
:class:`prunectl.loading.safe_open.SafeOpen`.

The result is an ordinary dense model: nothing of the plug-in stays in it. With another execution
than ``dense``, also for dense folders, each weight is compressed again as soon as it is loaded, and
stays so (:mod:`prunectl.runtime`). Saving either model writes an ordinary dense checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.quantizers.base import HfQuantizer

from prunectl.errors import BadCheckpoint, BadManifest, UnsupportedCheckpoint
from prunectl.layouts.table import DENSE as DENSE_LAYOUT
from prunectl.loading import safe_open
from prunectl.loading.execution import Compressed
from prunectl.output.manifest import read_manifest
from prunectl.runtime.executions import DENSE as DENSE_EXECUTION


class CompressedQuantizer(HfQuantizer):  # type: ignore[misc]
    """Decodes while transformers loads, and compresses each weight again if it stays compressed."""

    def __init__(self, quantization_config: Compressed, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.execution = quantization_config.execution
        if self.execution != DENSE_EXECUTION:
            self.pre_quantized = False  # transformers hands over each weight, and loads one by one

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        safe_open.install()
        if self.execution != DENSE_EXECUTION:
            from prunectl.runtime.selection import instructions

            instructions()  # refused here, before transformers would report each weight

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the compressed weights in the model's config before transformers looks for files."""
        if self.quantization_config.weights:
            config.transformers_weights = self.quantization_config.weights
        return config

    update_tp_plan = update_attn_implementation  # what transformers before 5.18 calls at this place

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        from prunectl.runtime.models import is_compressible

        owner, _, name = param_name.rpartition(".")
        return self.execution != DENSE_EXECUTION and is_compressible(
            model.get_submodule(owner), name
        )

    def get_quantize_ops(self) -> Any:
        return _compress_operation(self.execution)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Dense weights, for ``save_pretrained``."""
        from prunectl.runtime.weight import CompressedWeight

        found = model.state_dict()
        held = {n: one for n, one in found.items() if isinstance(one, CompressedWeight)}
        # tied weights are one dense tensor again
        numbers = {name: one.__tensor_flatten__()[1] for name, one in held.items()}
        dense = {numbers[name]: one.decoded() for name, one in held.items()}
        return found | {name: dense[numbers[name]] for name in held}, {}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        places = kwargs.get("device_map") or {}
        self._check_places(places)
        if "disk" in (places.values() if isinstance(places, dict) else [places]):
            raise UnsupportedCheckpoint(
                model.config.name_or_path,
                "compressed weights cannot be offloaded to disk",
                hint=f"export them first: prunectl export MODEL --layout {DENSE_LAYOUT} -o DIR",
            )
        self._shapes = {name: one.shape for name, one in model.named_parameters()}
        self._files = [str(path) for path in kwargs.get("checkpoint_files") or ()]
        if self.quantization_config.weights:
            _check_complete(self._files)
            safe_open.loading.opened.difference_update(self._files)
            for path in self._files:  # also after a loading that failed
                safe_open.loading.mapped.pop(path, None)
                if self.execution == "compressed":
                    safe_open.loading.mapped[path] = model.dtype
        return model

    def _check_places(self, places: Any) -> None:
        """Refuse devices on which no kernel runs."""
        named = places.values() if isinstance(places, dict) else [places] if places else []
        others = sorted({str(place) for place in named} - {"cpu"})
        if self.execution == "compressed" and others:
            raise UnsupportedCheckpoint(
                "execution='compressed'",
                f"runs on the CPU, not on {others[0]}",
                hint="leave device_map out, or use execution='dense'",
            )

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # read another way, the parts fit no weight of the model, which would stay random
        unread = set(self._files) - safe_open.loading.opened
        if unread and self.quantization_config.weights:
            raise UnsupportedCheckpoint(
                min(unread),
                "transformers read compressed weights past prunectl, so the model has none",
                hint="leave disable_mmap out, or use prunectl.load_state_dict",
            )
        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        for path in self._files:
            safe_open.loading.mapped.pop(path, None)
        if self.execution != DENSE_EXECUTION:
            from prunectl.runtime.models import decode_others, leave_files, run_experts_one_by_one

            self._check_shapes(model)
            decode_others(model)
            run_experts_one_by_one(model)
            leave_files(model)
        if hasattr(model.config, "quantization_config"):  # what is saved is dense
            del model.config.quantization_config
        return model

    def _check_shapes(self, model: Any) -> None:
        """Refuse weights of other shapes than the model's: transformers leaves this to quantizers.

        Raises:
            BadCheckpoint: a weight has another shape.
        """
        for name, one in model.named_parameters():
            if one.shape != self._shapes.get(name, one.shape):
                raise BadCheckpoint(
                    model.config.name_or_path,
                    f"tensor '{name}' is {list(one.shape)}, and the model needs "
                    f"{list(self._shapes[name])}",
                )

    @property
    def is_trainable(self) -> bool:
        return self.execution == DENSE_EXECUTION

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True


def _compress_operation(execution: str) -> Any:
    """The operation by which transformers replaces a loaded weight."""
    from transformers.core_model_loading import ConversionOps

    from prunectl.runtime.models import compressed

    class Compress(ConversionOps):  # type: ignore[misc]
        def convert(
            self, input_dict: dict[str, Any], *, model: Any, full_layer_name: str, **kwargs: Any
        ) -> dict[str, Any]:
            (given,) = input_dict.values()
            weight = given[0] if isinstance(given, list) else given
            module = model.get_submodule(full_layer_name.rpartition(".")[0])
            kept = compressed(weight, module, execution)
            return {full_layer_name: weight if kept is None else kept}

    return Compress()


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
