"""Roles of a checkpoint's tensors from its model's module tree, and whether the model would load.

The tree shows what names cannot: which matrix belongs to a Linear, an Embedding or a router, which
modules are blocks, and along which axis a layer's inputs run. It is built without weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.checkpoint.module_tree import (
    Destination,
    build_on_meta,
    map_names,
    model_class,
    quiet_transformers,
    unknown_if_it_fails,
)
from prunectl.checkpoint.roles import (
    Role,
    RoleMap,
    TensorRole,
    can_hold_blocks,
    experts_input_axis,
    is_router_gate,
    named_role,
    place,
    roles_from_headers,
)
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_NORM_CLASS = re.compile("norm", re.IGNORECASE)
_ROUTER_CLASS = re.compile(r"router|gate$|gating", re.IGNORECASE)
_BLOCK_PART_CLASS = re.compile(r"norm|attention|ffn|feedforward|mixer", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """What ``from_pretrained`` would report about a checkpoint.

    Attributes:
        model_class: the class that would be loaded.
        missing: parameters without a tensor, which would be newly initialized.
        unexpected: tensors that the model does not use, by their names in transformers.
        mismatched: parameters whose tensor has another shape.
        error: the error of ``from_pretrained`` if tensors cannot be converted to the model's
            layout, for example if an expert is missing from its stack; else ''.
    """

    model_class: str
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    error: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether every weight of the model is in the checkpoint, and every tensor is used."""
        return not (self.missing or self.unexpected or self.mismatched or self.error)


def roles_from_modules(
    folder: Path, specs: Sequence[TensorSpec], *, trust_remote_code: bool = False
) -> RoleMap:
    """Find every tensor's role by the module that it is loaded into.

    Blocks are the elements of the outermost ``nn.ModuleList`` (or ``nn.Sequential``) around a
    module, if these elements hold linear layers with norms or attention. Tensors that the model
    does not use get their role from :func:`~prunectl.checkpoint.roles.roles_from_headers`.

    Args:
        folder: holds config.json (and the model's own code, if any); the Hub is never asked.
        specs: all tensors of the checkpoint, by their names in the file.
        trust_remote_code: run the model's own code where ``auto_map`` names it.

    Raises:
        UnknownArchitecture: the module tree cannot be built; the header rules remain.
    """
    with unknown_if_it_fails(), quiet_transformers():
        cls, config = model_class(folder, trust_remote_code=trust_remote_code)
        model = build_on_meta(cls, config)
        targets = map_names(model, [spec.name for spec in specs])
        tree = _survey(model)
    by_name = roles_from_headers(specs).roles
    roles = {
        spec.name: (
            _module_role(spec, targets[spec.name], tree, by_name[spec.name])
            if spec.name in targets
            else by_name[spec.name]
        )
        for spec in specs
    }
    return RoleMap(roles, origin="modules", detail=cls.__name__)


def check_loadable(
    folder: Path, specs: Sequence[TensorSpec], *, trust_remote_code: bool = False
) -> LoadCheck:
    """Ask transformers what would be missing, unused or of another shape, without reading weights.

    ``from_pretrained`` itself runs on the meta device with empty tensors of the file's names and
    shapes, so ties, conversions and each model's list of harmless keys count as in a real load. Two
    different weights that are tied in the config are not detected: that takes their values.

    Raises:
        UnknownArchitecture: the model class cannot be determined or built.
    """
    import torch

    with unknown_if_it_fails(), quiet_transformers():
        cls, config = model_class(folder, trust_remote_code=trust_remote_code)
        # The dtype does not affect names and shapes, and not every stored dtype is one of torch.
        state = {s.name: torch.empty(s.shape, device="meta") for s in specs}
        # errors here concern the architecture; errors below concern the tensors
        build_on_meta(cls, config)
        try:
            _, info = cls.from_pretrained(
                None,
                config=config,
                state_dict=state,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
            )
        except RuntimeError as error:
            return LoadCheck(cls.__name__, [], [], [], error=str(error).split("\n")[0])
    return LoadCheck(
        cls.__name__,
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(info["unexpected_keys"]),
        mismatched=sorted(key for key, *_ in info["mismatched_keys"]),
    )


# --- reading the tree -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tree:
    """The facts of a model that the role rules use."""

    modules: dict[str, nn.Module]
    blocks: set[str]
    """Paths of the lists of blocks."""
    tied: dict[str, bool]
    """Parameters that share their values with another -> whether one of them is an embedding's."""
    hidden: int | None
    base_prefix: str
    """Path of the base model in a model with a head, with its dot; '' for a base model."""


def block_lists(model: PreTrainedModel) -> set[str]:
    """Paths of the lists in a module tree whose elements are transformer blocks.

    One list may be inside another; the outermost around a module counts.
    """
    from torch import nn

    return {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and can_hold_blocks(name)
        and _is_list_of_blocks(module)
    }


def _survey(model: PreTrainedModel) -> _Tree:
    from torch import nn

    modules = dict(model.named_modules(remove_duplicate=False))
    blocks = block_lists(model)
    tied: dict[str, bool] = {}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        owners = [modules.get(name.rpartition(".")[0]) for name in (target, source)]
        embeds = any(isinstance(owner, nn.Embedding) for owner in owners)
        tied[target] = embeds
        tied[source] = embeds or tied.get(source, False)
    hidden = getattr(model.config.get_text_config(), "hidden_size", None)
    prefix = model.base_model_prefix
    base = f"{prefix}." if prefix and prefix in modules else ""
    return _Tree(modules, blocks, tied, hidden if isinstance(hidden, int) else None, base)


def _is_list_of_blocks(modules: Iterable[nn.Module]) -> bool:
    """Whether elements have weight matrices together with a norm, attention or feed-forward.

    Heads of a detection model and convolutions of a neck are numbered too, but are not blocks.
    """
    return any(
        any(_BLOCK_PART_CLASS.search(type(m).__name__) for m in element.modules())
        and sum(p.ndim >= 2 for p in element.parameters()) > 1
        for element in modules
    )


def _block_of(parameter: str, tree: _Tree) -> tuple[str, int | None, str]:
    """The outermost list of blocks around a parameter, its block, and the path in the block."""
    path = parameter.split(".")
    for i in range(1, len(path) - 1):
        stack = ".".join(path[:i])
        if stack in tree.blocks and path[i].isdecimal():
            return stack, int(path[i]), ".".join(path[i + 1 :]).removesuffix(".weight")
    return "", None, parameter.removesuffix(".weight")


# --- role rules -------------------------------------------------------------------------------


def _module_role(
    spec: TensorSpec, target: Destination, tree: _Tree, by_name: TensorRole
) -> TensorRole:
    stack, layer, component = _block_of(target.parameter, tree)
    if layer is None:
        component = spec.name.removesuffix(".weight")
    elif place(spec.name)[1] == layer:
        # the path in the file says more: separate experts share one stacked parameter
        stack, _, component = place(spec.name)
    role = _role(target.parameter, tree, layer is not None, by_name.role)
    is_tied = target.parameter in tree.tied
    if is_tied and tree.tied[target.parameter] and role is not Role.BIAS:
        role = Role.EMBEDDING
    axis = _input_axis(spec, target, tree, by_name) if role is Role.LINEAR else None
    return TensorRole(role, stack, layer, component, axis, is_tied)


def _role(parameter: str, tree: _Tree, in_block: bool, by_name: Role) -> Role:
    """Role by the class of the module that owns the parameter, else by its name."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    owner_path, _, own = parameter.rpartition(".")
    owner = tree.modules[owner_path]
    named = named_role(parameter, getattr(owner, own).ndim)
    if _NORM_CLASS.search(type(owner).__name__):
        return Role.NORM
    if isinstance(owner, nn.Embedding):
        return Role.POSITION if named is Role.POSITION else Role.EMBEDDING
    if own.endswith("bias"):
        return named
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return Role.CONVOLUTION
    if _is_router(owner_path, tree):
        return Role.ROUTER
    if not isinstance(owner, nn.Linear | Conv1D | nn.MultiheadAttention):
        # a class of the model's own: name and shape decide, but the tree knows the blocks
        return Role.OTHER if by_name is Role.LINEAR and not in_block else by_name
    return Role.LINEAR if in_block else _outside_role(parameter, named, tree)


def _is_router(path: str, tree: _Tree) -> bool:
    parent = tree.modules[path.rpartition(".")[0]]
    siblings = [name for name, _ in parent.named_children()]
    return bool(
        _ROUTER_CLASS.search(type(tree.modules[path]).__name__)
        or named_role(path + ".weight", 2) is Role.ROUTER
        or is_router_gate(path, siblings)
    )


def _outside_role(parameter: str, named: Role, tree: _Tree) -> Role:
    """Pooler, head or other: a linear layer outside blocks is never pruned by default."""
    if named in (Role.POOLER, Role.HEAD):
        return named
    is_head = tree.base_prefix and not parameter.startswith(tree.base_prefix)
    return Role.HEAD if is_head else Role.OTHER


def _input_axis(
    spec: TensorSpec, target: Destination, tree: _Tree, by_name: TensorRole
) -> int | None:
    """The input axis of the stored tensor, from the module's layout and conversion on loading."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    owner_path, _, own = target.parameter.rpartition(".")
    owner = tree.modules[owner_path]
    shape = tuple(getattr(owner, own).shape)
    if isinstance(owner, nn.Linear | nn.MultiheadAttention):
        is_last = True
    elif isinstance(owner, Conv1D):
        is_last = False
    elif len(shape) == 3:
        is_last = _experts_input_is_last(owner_path, tree)
    else:
        return by_name.input_axis
    if target.transposes and not (target.only_if_needed and shape == spec.shape):
        is_last = not is_last
    # counted from the end, since stacking separate experts adds an axis in front
    return len(spec.shape) - (1 if is_last else 2)


def _experts_input_is_last(path: str, tree: _Tree) -> bool:
    """Whether stacked experts are ``(experts, out, in)``.

    transformers' ``use_experts_implementation`` sets ``is_transposed`` on the module: True means
    ``(experts, in, out)``. Modules without it (Llama 4's text experts, JetMoE's parallel ones) are
    judged by the shapes and the config's hidden size.
    """
    owner = tree.modules[path]
    flag = getattr(owner, "is_transposed", None)
    if isinstance(flag, bool):
        return not flag
    shapes = {name: tuple(p.shape) for name, p in owner.named_parameters(recurse=False)}
    if set(shapes) == {"weight"}:
        # one module for each projection: its counterpart shows the orientation
        for name, sister in tree.modules[path.rpartition(".")[0]].named_children():
            if type(sister) is type(owner):
                shapes[name] = tuple(sister.get_parameter("weight").shape)
    return experts_input_axis(shapes, tree.hidden) != 1
