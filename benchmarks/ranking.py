"""How alike a model finds held-out samples, and whether another model ranks them the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def of_texts(folder: Path, texts: Sequence[str], length: int) -> np.ndarray:
    """Cosines of all pairs of texts, float32 [pairs]: the tokens' mean of the last hidden state.

    Each text is cut off after ``length`` tokens.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(text: str) -> Tensor:
        encoded = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        return model(**encoded).last_hidden_state[0].mean(0)

    with torch.inference_mode():
        return cosines([embed(text) for text in texts])


def of_images(folder: Path, images: Sequence[Path]) -> np.ndarray:
    """Cosines of all pairs of images, float32 [pairs]: the first token of the last hidden state.

    That is the class token of a ViT. Images are processed as the folder's own processor does it.
    """
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(path: Path) -> Tensor:
        with Image.open(path) as image:
            pixels = processor(images=image.convert("RGB"), return_tensors="pt")
        return model(**pixels).last_hidden_state[0, 0]

    with torch.inference_mode():
        return cosines([embed(path) for path in images])


def cosines(vectors: list[Tensor]) -> np.ndarray:
    """Those of all pairs, [pairs], in the order (0, 1), (0, 2), ..., (1, 2), ..."""
    import numpy as np
    import torch

    units = torch.nn.functional.normalize(torch.stack(vectors))
    return (units @ units.T).numpy()[np.triu_indices(len(vectors), 1)]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of the ranks of two samples without ties."""
    import numpy as np

    ranks = [values.argsort().argsort() for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])
