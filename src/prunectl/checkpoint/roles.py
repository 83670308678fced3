"""The role of each tensor of a checkpoint, its layer, and the axis along which its inputs run.

The rules here use names and shapes only (no torch). Where the model's module tree can be built,
:mod:`prunectl.checkpoint.modules` uses it, and these rules for the remaining tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prunectl.tensorspec import TensorSpec


class Role(StrEnum):
    """The purpose of a tensor. Only ``LINEAR`` is pruned by default."""

    LINEAR = "block linear"
    EMBEDDING = "embedding"
    POSITION = "position"
    NORM = "norm"
    BIAS = "bias"
    CONVOLUTION = "convolution"
    ROUTER = "router"
    POOLER = "pooler"
    HEAD = "head"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class TensorRole:
    """The place of a tensor in the model.

    Attributes:
        role: see :class:`Role`.
        stack: path of its list of blocks, such as ``encoder.layer``; '' outside blocks.
        layer: number of its block in that stack; None outside blocks.
        component: path inside the block without the final ``.weight``, such as ``mlp.up_proj``.
        input_axis: the axis of the stored tensor along which the layer's inputs run (N:M groups lie
            along it): last for nn.Linear, 0 for GPT-2's Conv1D, 1 or 2 for stacked 3-D experts;
            None where the tensor is not a matrix of a linear layer.
        tied: the file also holds, or the model also uses, this weight under another name.
    """

    role: Role
    stack: str = ""
    layer: int | None = None
    component: str = ""
    input_axis: int | None = None
    tied: bool = False


@dataclass(frozen=True, slots=True)
class RoleMap:
    """Roles of all tensors of a checkpoint, and their origin.

    Attributes:
        roles: by tensor name, as in the file.
        origin: ``modules`` (the model's own module tree) or ``headers`` (names and shapes only).
        detail: the model class, or why the module tree could not be used.
    """

    roles: dict[str, TensorRole]
    origin: str
    detail: str


# --- words in names ---------------------------------------------------------------------------

_NORM = re.compile(r"norm|^ln(_|\d|$)|_ln$", re.IGNORECASE)
_POSITION = re.compile(
    r"position|^wpe$|^pos_emb|^rel_pos(_[hw]|_emb\w*)?$|relative_attention_bias|rel_attn_bias"
    r"|distance_embedding|inv_freq"
)
_EMBEDDING = re.compile(
    r"embed(ding)?s?$|^embed_(tokens|in)|^wte$|^shared$|(cls|mask|dist\w{0,20}|register)_tokens?$"
)
_ROUTER = re.compile(r"router|^shared_expert_gate$", re.IGNORECASE)
_POOLER = re.compile(r"pooler|pooling")
_HEAD = re.compile(
    r"head|^cls$|classifier|^score$|predictions|^qa_outputs$|^proj_out$|^embed_out$"
    r"|^seq_relationship$|^vocab_(transform|projector)$|^bbox_|^logits"
)
_BRIDGE = re.compile(r"merger|projector|connector")
_EXPERT = re.compile(r"expert|moe", re.IGNORECASE)
_IN_A_BLOCK = re.compile(r"norm|^ln(_|\d|$)|att(n|ention)|mlp|ffn?s?$|feed_?forward", re.IGNORECASE)
_WIDENS = re.compile(r"gate|up|input|^w1$|^w3$|^wi|^fc1$", re.IGNORECASE)
_NARROWS = re.compile(r"down|output|^w2$|^wo$|^fc2$", re.IGNORECASE)

_WIDTH_NORM = re.compile(r"norm|ln_?\d", re.IGNORECASE)
"""For norms right below a block; those in attention have a head's width."""

_CONV1D_PARTS = ("c_attn", "c_proj", "c_fc", "q_attn")


def named_role(name: str, ndim: int) -> Role:
    """The role of a tensor that is not a linear layer of a block, by the words in its name.

    Args:
        ndim: its number of dimensions. A vector is never a pooler or head.
    """
    path = name.split(".")
    owner = path[-2] if len(path) > 1 else ""
    if _NORM.search(owner):
        return Role.NORM
    if ndim >= 4 or ("conv" in owner and ndim != 2):
        return Role.CONVOLUTION if path[-1] != "bias" else _bias_or_mask(ndim)
    if path[-1].endswith("bias") and "relative" not in path[-1]:
        return _bias_or_mask(ndim)
    if any(_ROUTER.search(part) for part in path):
        return Role.ROUTER
    if _POSITION.search(owner) or _POSITION.search(path[-1]):
        return Role.POSITION
    if (_EMBEDDING.search(owner) or _EMBEDDING.search(path[-1])) and not _HEAD.search(owner):
        return Role.EMBEDDING
    if ndim >= 2 and any(_POOLER.search(part) for part in path):
        return Role.POOLER
    if ndim >= 2 and any(_HEAD.search(part) for part in path):
        return Role.HEAD
    return Role.OTHER


def _bias_or_mask(ndim: int) -> Role:
    # old GPT-2 files keep the causal mask as `attn.bias`, (1, 1, n, n)
    return Role.BIAS if ndim <= 2 else Role.OTHER


def is_router_gate(path: str, siblings: Collection[str]) -> bool:
    """Whether a module (its ``path``) is the router of a mixture of experts.

    Many mixtures name their router ``gate``, which elsewhere is a projection of a gated MLP. It is
    a router if experts are next to it (``siblings``), or by its parent's name.
    """
    parent, _, own = path.rpartition(".")
    return own == "gate" and (parent.endswith("moe") or any("expert" in s for s in siblings))


def experts_input_axis(shapes: Mapping[str, tuple[int, ...]], hidden: int | None) -> int | None:
    """The input axis of stacked experts, shapes ``(experts, a, b)``, from the shapes themselves.

    Files hold either ``(experts, out, in)`` (axis 2: Mixtral, Qwen, Granite) or ``(experts, in,
    out)`` (axis 1: Llama 4, GPT-OSS). Every expert widens ``hidden -> inner`` and narrows ``inner
    -> hidden``. If gate and up are fused, the widening side is twice the narrowing one, so only one
    orientation fits; otherwise the model's width decides.

    Args:
        shapes: of the 3-D tensors of one expert module, by their short names.
        hidden: width of the model, if known.

    Returns:
        1 or 2, or None where the shapes fit both orientations or neither.
    """
    stacked = {name: shape for name, shape in shapes.items() if len(shape) == 3}
    wide = [s for n, s in stacked.items() if _WIDENS.search(n) and not _NARROWS.search(n)]
    narrow = [s for n, s in stacked.items() if _NARROWS.search(n)]
    narrow_sides = {(2 * c, d) for _, c, d in narrow}
    doubled_sides = {(c, 2 * d) for _, c, d in narrow}
    fits: set[int] = set()
    for _, a, b in wide:
        fits |= {2} if (b, a) in doubled_sides else set()
        fits |= {1} if (b, a) in narrow_sides else set()
    if not fits and hidden is not None:
        for _, a, b in wide:
            fits |= ({1} if a == hidden else set()) | ({2} if b == hidden else set())
        for _, a, b in narrow:
            fits |= ({2} if a == hidden else set()) | ({1} if b == hidden else set())
    return fits.pop() if len(fits) == 1 else None


# --- places -----------------------------------------------------------------------------------


def place(name: str) -> tuple[str, int | None, str]:
    """Split a name at its first number: the list of blocks, the block, the path inside it.

    >>> place("encoder.layer.3.attention.self.query.weight")
    ('encoder.layer', 3, 'attention.self.query')
    """
    path = name.split(".")
    for i, part in enumerate(path):
        if i > 0 and part.isdecimal() and i + 1 < len(path):
            inner = ".".join(path[i + 1 :]).removesuffix(".weight")
            return ".".join(path[:i]), int(part), inner
    return "", None, name.removesuffix(".weight")


def can_hold_blocks(stack: str) -> bool:
    """Whether a list at this path is not part of a head, nor of a bridge from vision to text."""
    return not any(_HEAD.search(part) or _BRIDGE.search(part) for part in stack.split("."))


def _block_lists(specs: Sequence[TensorSpec]) -> set[str]:
    """The paths of numbered lists whose elements are blocks.

    A block has a matrix, and a part named as a norm, attention or MLP below its number; or its list
    is named so (XLM). ``classifier.0.weight`` or a detection head's
    ``bbox_embed.0.layers.1.weight`` have neither.
    """
    matrices: set[str] = set()
    named: set[str] = set()
    for spec in specs:
        stack, layer, inner = place(spec.name)
        if layer is None or not can_hold_blocks(stack):
            continue
        if len(spec.shape) >= 2:
            matrices.add(stack)
        parts = inner.split(".")
        if len(parts) > 1:
            parts.append(stack.rpartition(".")[2])
        if any(_IN_A_BLOCK.search(part) for part in parts):
            named.add(stack)
    return matrices & named


# --- header rules -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Headers:
    """Facts about the other tensors of the file that the rules use."""

    blocks: set[str]
    conv1d: set[str]
    """Block lists whose linear layers are GPT-2's Conv1D."""
    children: dict[str, set[str]]
    """Names of the children of a module that has a ``gate``, by its path."""
    shapes: dict[str, dict[str, tuple[int, ...]]]
    """Shapes of the tensors right below a module, and of its children's weights, by its path."""
    hidden: dict[tuple[str, int | None], int]
    """Length of a block's first norm, which is the width of the model, by block."""
    experts: dict[str, int | None]
    """Input axis of a module's experts, by its path, filled on request; None: it has none."""


def _survey(specs: Sequence[TensorSpec]) -> _Headers:
    children = _children_of_gates(specs)
    found = _Headers(_block_lists(specs), set(), children, defaultdict(dict), {}, {})
    for spec in specs:
        stack, layer, inner = place(spec.name)
        path = spec.name.split(".")
        short = spec.name.removesuffix(".weight")
        found.shapes[short.rpartition(".")[0]][short.rpartition(".")[2]] = spec.shape
        is_width = len(spec.shape) == 1 and path[-1] != "bias" and "." not in inner
        if is_width and _WIDTH_NORM.search(inner):
            found.hidden.setdefault((stack, layer), spec.shape[0])
        # GPT-2's Conv1D keeps (in, out); GPT-BigCode and Qwen-1 use nn.Linear under that name.
        if path[-2:] == ["c_attn", "weight"] and spec.shape[1:] == (3 * spec.shape[0],):
            found.conv1d.add(stack)
    return found


def _children_of_gates(specs: Sequence[TensorSpec]) -> dict[str, set[str]]:
    """The children of modules that have a ``gate``; those of all modules would fill the memory."""
    gates = (spec.name.removesuffix(".weight").rpartition(".") for spec in specs)
    children: dict[str, set[str]] = {parent: set() for parent, _, own in gates if own == "gate"}
    for spec in specs if children else ():
        for dot in re.finditer(r"\.", spec.name):
            if spec.name[: dot.start()] in children:
                children[spec.name[: dot.start()]].add(spec.name[dot.end() :].partition(".")[0])
    return children


def roles_from_headers(specs: Sequence[TensorSpec]) -> RoleMap:
    """Find every tensor's role by its name and shape alone.

    The fallback if the module tree cannot be built: a numbered path is a block, and a 2-D weight in
    a block that is not a norm, embedding or router is a linear layer, stored ``(out, in)`` unless
    names and shapes match GPT-2. Stacked 3-D experts whose orientation does not follow from the
    shapes get the more common ``(experts, out, in)``.

    Returns:
        A map with origin ``headers``; ``tied`` is never set, since headers do not show it.
    """
    headers = _survey(specs)
    roles = {spec.name: _header_role(spec, headers) for spec in specs}
    return RoleMap(roles, origin="headers", detail="names and shapes")


def _header_role(spec: TensorSpec, headers: _Headers) -> TensorRole:
    stack, layer, component = place(spec.name)
    if stack not in headers.blocks:
        role = named_role(spec.name, len(spec.shape))
        return TensorRole(role, component=spec.name.removesuffix(".weight"))
    role, axis = _block_role(spec, stack, layer, headers)
    return TensorRole(role, stack, layer, component, axis)


def _block_role(
    spec: TensorSpec, stack: str, layer: int | None, headers: _Headers
) -> tuple[Role, int | None]:
    """Role and input axis of a tensor in a block."""
    ndim = len(spec.shape)
    short = spec.name.removesuffix(".weight")
    parent, _, own = short.rpartition(".")
    role = named_role(spec.name, ndim)
    if role in (Role.NORM, Role.BIAS, Role.ROUTER, Role.POSITION) or not spec.dtype.is_float:
        return role, None
    if is_router_gate(short, headers.children.get(parent, ())):
        return Role.ROUTER, None
    axis = _experts_axis(parent, stack, layer, headers) if ndim == 3 else None
    if axis is not None:
        return Role.LINEAR, axis
    if ndim == 3 and spec.name.endswith(".weight"):
        return Role.CONVOLUTION, None
    if role in (Role.EMBEDDING, Role.CONVOLUTION) or ndim != 2:
        return role, None
    if not spec.name.endswith((".weight", "_weight")):
        return Role.OTHER, None
    return Role.LINEAR, 0 if stack in headers.conv1d and own in _CONV1D_PARTS else 1


def _experts_axis(parent: str, stack: str, layer: int | None, headers: _Headers) -> int | None:
    """The input axis of stacked experts right below ``parent``; None if there are none."""
    if parent not in headers.experts:  # computed once, from all tensors of the module
        shapes = headers.shapes[parent]
        # JetMoE's experts are a 3-D `input_linear` and `output_linear`, without the word expert.
        axis = experts_input_axis(shapes, None)
        if axis is None and _EXPERT.search(parent):
            axis = experts_input_axis(shapes, headers.hidden.get((stack, layer))) or 2
        headers.experts[parent] = axis
    return headers.experts[parent]
