"""Ask the module trees of common architectures what each tensor is, and write the table of it.

    python scripts/make_known_trees.py            # writes src/prunectl/checkpoint/known_trees.json
    python scripts/make_known_trees.py --check    # exit code 1 where it would be another
    python scripts/make_known_trees.py --types llama bert --check

Every class is built on the meta device with its default config, two blocks, and then once for each
flag of the config that is turned. A name that is not the same thing in all of these is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto

from prunectl.checkpoint.known_trees import TABLE, pattern_of, role_of
from prunectl.checkpoint.module_tree import build_on_meta, quiet_transformers
from prunectl.checkpoint.modules import roles_from_modules
from prunectl.checkpoint.roles import TensorRole
from prunectl.errors import UnknownArchitecture
from prunectl.tensorspec import DTYPES, TensorSpec

TYPES = (
    "bert", "bloom", "camembert", "deit", "dinov2", "distilbert", "electra", "falcon",
    "gemma", "gemma2", "gpt2", "gpt_neox", "gptj", "granite", "llama", "mistral",
    "mpnet", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "roberta", "smollm3",
    "stablelm", "starcoder2", "vit", "xlm-roberta",
)  # fmt: skip
MAPPINGS = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
)
BUFFERS: dict[str, dict[str, tuple[int, ...]]] = {
    "self_attn.q_proj.weight": {"self_attn.rotary_emb.inv_freq": (8,)},
    "attn.c_attn.weight": {"attn.bias": (1, 1, 4, 4), "attn.masked_bias": ()},
    "attention.query_key_value.weight": {
        "attention.rotary_emb.inv_freq": (8,),
        "attention.bias": (1, 1, 4, 4),
        "attention.masked_bias": (),
    },
}
EXTRAS: dict[str, tuple[dict[str, Any], ...]] = {
    "opt": ({"word_embed_proj_dim": 64},),
    "qwen3": ({"head_dim": 96},),
}
"""What else of a config adds tensors."""
PARTS = ("tensors", "tied", "untied")
BLOCKS = 2
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
OUTPUT = Path(__file__).parent.parent / "src/prunectl/checkpoint" / TABLE


def classes_of(model_type: str) -> Iterator[str]:
    """Names of transformers' classes for a type of model."""
    for mapping in MAPPINGS:
        found = getattr(modeling_auto, mapping).get(model_type)
        yield from [found] if isinstance(found, str) else found or ()


def known_of(model_type: str, name: str) -> dict[str, Any] | None:
    """What the table says of a class; None where that would not always be right."""
    default = AutoConfig.for_model(model_type)
    # An attribute may be another's second name: the first is what config.json has.
    counts = {key: getattr(default, key) for key in COUNTS if key in default.to_dict()}
    if len(counts) != 1:
        return None
    (key,) = counts
    found: dict[str, dict[bool, list[Any]]] = {}
    wrong: set[str] = set()
    for config in variants(default, key):
        tie = bool(getattr(config, "tie_word_embeddings", False))
        try:
            tree = list(trees_of(name, config))
        except Exception:
            continue  # flags that contradict one another
        for tensor, role, ndim in tree:
            entry = entry_of(tensor, role, ndim, key)
            held = found.setdefault(pattern_of(tensor), {}).setdefault(tie, entry)
            if held != entry or role_of(entry, tensor) != role:
                wrong.add(pattern_of(tensor))
    sure = {pattern: both for pattern, both in found.items() if pattern not in wrong}
    same = {p: both[True] for p, both in sure.items() if both.get(True) == both.get(False)}
    by_tie = {
        tie: {p: both[tie] for p, both in sorted(sure.items()) if p not in same and tie in both}
        for tie in (True, False)
    }
    return {
        "model_type": model_type,
        "tie": bool(getattr(default, "tie_word_embeddings", False)),
        "counts": counts,
        "tensors": dict(sorted(same.items())),
        "tied": by_tie[True],
        "untied": by_tie[False],
    }


def variants(default: Any, key: str) -> Iterator[Any]:
    """The default config with two blocks; and with each of its flags turned, tied and untied."""
    fields = default.to_dict()
    flags = [name for name, value in fields.items() if type(value) is bool]
    turned = [{flag: not fields[flag]} for flag in flags]
    for tie in (False, True):
        for changes in ({}, *EXTRAS.get(default.model_type, ()), *turned):
            changed = {**changes, key: BLOCKS, "tie_word_embeddings": tie}
            try:
                yield type(default)(**changed)
            except Exception:
                continue


def trees_of(name: str, config: Any) -> Iterator[tuple[str, TensorRole, int]]:
    """Name, role and dimensions of every tensor that a model of a class can have in its files.

    As it is saved, and under the names that files have too: as they are in the model; without the
    path of the base model; with a norm's former names; and with buffers that were saved formerly.
    """
    with quiet_transformers():
        model = build_on_meta(getattr(transformers, name), config)
    inside = model.state_dict()
    if any(not value.is_floating_point() for value in inside.values()):
        raise UnknownArchitecture("it has tensors that are no weights")
    saved = revert_weight_conversion(model, dict(inside))
    prefix = f"{model.base_model_prefix}."
    spellings = [saved, inside]
    spellings += [{n.removeprefix(prefix): v for n, v in one.items()} for one in (saved, inside)]
    spellings += [{formerly(n): v for n, v in one.items()} for one in spellings[::2]]
    config.architectures = [name]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        for spelling in spellings:
            specs = [
                TensorSpec(tensor, DTYPES["F32"], tuple(value.shape))
                for tensor, value in (spelling | buffers_of(spelling)).items()
            ]
            roles = roles_from_modules(Path(folder), specs).roles
            for spec in specs:
                yield spec.name, roles[spec.name], len(spec.shape)


def formerly(name: str) -> str:
    """A name as TensorFlow's norms had it."""
    norm = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
    return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", norm)


def buffers_of(names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Buffers that older versions saved beside these tensors, and that no model has any more."""
    found = {}
    for name in names:
        for own, buffers in BUFFERS.items():
            if name.endswith(own):
                path = name.removesuffix(own)
                found |= {
                    path + b: torch.empty(shape, device="meta") for b, shape in buffers.items()
                }
    return found


def entry_of(tensor: str, role: TensorRole, ndim: int, key: str) -> list[Any]:
    """An entry of the table, as :func:`role_of` reads it."""
    if role.layer is None:
        return [str(role.role), ndim, None, None, None, role.tied]
    return [str(role.role), ndim, len(role.stack.split(".")), key, role.input_axis, role.tied]


def main() -> int:
    options = argparse.ArgumentParser(description="Write the table of known module trees.")
    options.add_argument("--types", nargs="+", default=TYPES, metavar="TYPE")
    options.add_argument("--check", action="store_true", help="write nothing")
    args = options.parse_args()
    torch.set_num_threads(1)
    classes = {}
    for model_type in args.types:
        for name in dict.fromkeys(classes_of(model_type)):
            known = known_of(model_type, name)
            if known is not None:
                classes[name] = known
        print(model_type, len(classes), file=sys.stderr)
    if args.check:
        held = json.loads(OUTPUT.read_bytes())
        wrong = [name for name in classes if spelled_out(held, name) != classes[name]]
        print("\n".join(wrong) or "the table is what the module trees say")
        return bool(wrong)
    OUTPUT.write_text(as_text(dict(sorted(classes.items()))), encoding="utf-8")
    return 0


def as_text(classes: dict[str, dict[str, Any]]) -> str:
    """The table, a line a class; each of its few entries stands there once."""
    entries = {
        json.dumps(e): e for c in classes.values() for part in PARTS for e in c[part].values()
    }
    numbers = {text: number for number, text in enumerate(sorted(entries))}
    lines = []
    for name, known in classes.items():
        parts = {
            part: {pattern: numbers[json.dumps(entry)] for pattern, entry in known[part].items()}
            for part in PARTS
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(known | parts)}")
    return (
        f'{{"transformers": {json.dumps(transformers.__version__)},\n"entries": [\n'
        + ",\n".join(sorted(entries))
        + '\n],\n"classes": {\n'
        + ",\n".join(lines)
        + "\n}}\n"
    )


def spelled_out(table: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What a table says of a class, with its entries in place of their numbers."""
    known = table["classes"].get(name)
    if known is None:
        return None
    entries = table["entries"]
    parts = {part: {p: entries[number] for p, number in known[part].items()} for part in PARTS}
    return known | parts


if __name__ == "__main__":
    sys.exit(main())
