"""A DINOv2 out of an ONNX graph, as the folder that transformers reads.

The exporter kept the names of most weights, and they are those of the Hub's DINOv2 files. The
matrices of linear layers it transposed and left as anonymous inputs of a MatMul: such a matrix is
named by the bias that the next Add adds. The position embeddings lie in two anonymous parts, that
of the class token and those of the patches. What follows the last norm, a head that has no place
in the architecture, is left out.

What was written is loaded again, and both compute the same image: the graph by the interpreter of
the package onnx, the folder by transformers. If they differ, there is no folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

IMAGE, OUTPUT = "input_image", "/backbone/layernorm/Add_1_output_0"
PREFIX = "backbone."
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
SIZES = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14}
PIXELS, TOLERANCE = 224, 1e-4
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": PIXELS},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": PIXELS, "width": PIXELS},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""As in the package, but that averages over areas where this is bicubic, and pads what is no square
where this cuts the middle out."""


def weights(graph: Any) -> dict[str, Any]:
    """The backbone's weights by the names of the Hub's files, numpy float32; linear [out, in]."""
    import numpy as np
    from onnx import numpy_helper

    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    named = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
    for add in graph.node:
        bias = add.input[0] if add.op_type == "Add" else ""
        product = made_by.get(add.input[1]) if bias in named else None
        if product is not None and product.op_type == "MatMul":
            named[bias.removesuffix("bias") + "weight"] = arrays[product.input[1]].T
    positions = np.concatenate([arrays[name] for name in POSITIONS], axis=1)
    named[PREFIX + "embeddings.position_embeddings"] = positions
    return {name.removeprefix(PREFIX): np.ascontiguousarray(a) for name, a in named.items()}


def hidden_states(model: Any, image: Any) -> Any:
    """What the graph's backbone puts out for float32 (1, 3, 224, 224): (1, tokens, hidden)."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    last = next(at for at, node in enumerate(model.graph.node) if OUTPUT in node.output)
    del model.graph.node[last + 1 :]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None))
    return ReferenceEvaluator(model).run(None, {IMAGE: image})[0]


def convert(source: Path, target: Path) -> None:
    """Write the DINOv2 in a folder with one ONNX file as safetensors with its configuration.

    Raises:
        SystemExit: transformers computes something else from it than the graph.
    """
    import numpy as np
    import onnx
    import torch
    from safetensors.numpy import save_file
    from transformers import Dinov2Config, Dinov2Model

    (path,) = source.glob("*.onnx")
    model = onnx.load(path)
    found = weights(model.graph)
    # Only pre-training masks patches, and no mask token was exported.
    side = round((found["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(**SIZES, image_size=side * SIZES["patch_size"], use_mask_token=False)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(target)
    save_file(found, target / "model.safetensors", metadata={"format": "pt"})
    (target / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")

    loaded, info = Dinov2Model.from_pretrained(target, output_loading_info=True)
    if any(info.values()):
        raise SystemExit(f"{path.name} does not fill a Dinov2Model: {info}")
    image = np.random.default_rng(0).standard_normal((1, 3, PIXELS, PIXELS)).astype(np.float32)
    with torch.inference_mode():
        ours = loaded.eval()(torch.from_numpy(image)).last_hidden_state.numpy()
    difference = float(np.abs(ours - hidden_states(model, image)).max())
    if not difference < TOLERANCE:  # so that NaN is refused too
        raise SystemExit(f"{path.name}: transformers' forward differs by {difference:.2g}")
