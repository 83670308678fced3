"""``prunectl prune``: write a pruned copy of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunectl.cli import options
from prunectl.cli.output import Output
from prunectl.cli.push import PushAfter
from prunectl.cli.signatures import Given
from prunectl.errors import InvalidOption
from prunectl.methods.table import UPDATING
from prunectl.option import OUTPUT, PRUNING, Option, device_option
from prunectl.plan.settings import Calibration, PruneSettings, check_complete, check_mask_alone

if TYPE_CHECKING:
    from prunectl.analysis.remote import RemoteSpace
    from prunectl.checkpoint.checkpoint import Checkpoint

EXAMPLES = (
    "prunectl prune org/name --sparsity 0.4 -o out/",
    "prunectl prune --sparsity 0.4 --pattern 2:4 -o out/",
    "prunectl prune ./my-model --pattern 2:4 --exclude '*.down_proj.weight' -o out/",
    "prunectl prune ./my-model -s 0.3 --scope row --dry-run",
    "prunectl prune ./my-model --recipe recipe.toml -o out/ --force",
    "prunectl prune org/name --mask masks.safetensors -o out/",
    f"prunectl prune org/name --method {UPDATING[0]} "
    "--pattern 2:4 --calibration text:a.txt -o out/",
    "prunectl prune org/name --sparsity 0.4 -o out/ --push org/name-pruned --private",
)


def prune(
    context: typer.Context,
    source: options.OneModel,
    flags: Given[PruneSettings],
    calibration: Given[Calibration],
    after: PushAfter,
    out: Output,
    recipe: Annotated[
        Path | None,
        Option("TOML file with rules for parts of the model.", "FILE", PRUNING, suffix=".toml"),
    ] = None,
    device: Annotated[
        str | None,
        device_option("calibration: CUDA if there is any; magnitudes: the CPU"),
    ] = None,
    output: Annotated[
        Path | None,
        Option("Folder to write; must not hold anything.", "DIR", OUTPUT, short="-o"),
    ] = None,
    max_shard_size: options.MaxShardSize = options.SHARD_SIZE,
    dry_run: Annotated[
        bool, Option("Show the plan; read no weights and write nothing.", heading=OUTPUT)
    ] = False,
    force: options.Force = False,
    remote: options.Remote = False,
    no_cache: options.NoCache = False,
    jobs: options.Jobs = None,
) -> None:
    """Set weights to zero, by default those of lowest magnitude; the result loads as before.

    Methods that are calibrated run samples through the model, one block at a time, to choose the
    weights and to fit those that stay. They need --calibration.

    The source is not touched. The output is complete or absent; a run that was cut off goes on
    where it stopped when the same command is given again.
    """
    from prunectl.output.shards import parse_size

    choice = source.choose(out)
    settings = _settings(flags, recipe, calibration, choice.model, device)
    shard_size = parse_size(max_shard_size)
    after.check()
    if output is None and not dry_run:
        raise InvalidOption(
            "no output folder given", hint="add -o DIR, or --dry-run to see only the plan"
        )
    if remote and not dry_run:
        raise InvalidOption(
            "--remote reads only headers, so it needs --dry-run",
            hint="add --dry-run, or leave --remote out",
        )
    if (output is None or dry_run) and device not in (None, "auto"):
        out.note(f"--device {device}: a plan does not use it")
    if remote:
        from prunectl.analysis.remote import remote_space

        found = source.open_headers(choice, jobs, out)
        headers = found.headers()  # a pickle has none, and no plan either
        space = remote_space(found, output or Path.cwd(), shard_size)
        _show_plan(headers, settings, out, space)
        return
    checkpoint = source.open(choice, out)
    if output is None or dry_run:
        if settings.calibration is not None and settings.calibration.dtype != "auto":
            from prunectl.plan.job import dtype_of

            dtype_of(settings.calibration, checkpoint)  # refused now as it would be then
        _show_plan(checkpoint, settings, out)
        return
    from prunectl.cli.prune_screen import prune_screen
    from prunectl.pruning.verb import prune

    ranks = options.ranks_of(context)
    with out.progress() as on_event:
        result = prune(
            checkpoint,
            output,
            settings,
            max_shard_size=shard_size,
            force=force,
            use_cache=not no_cache,
            jobs=jobs,
            device=device or "auto",
            ranks=ranks,
            command=source.command(context, choice, checkpoint),
            on_event=on_event,
        )
    if not ranks.is_first:
        return
    out.show(*prune_screen(result, everything=out.verbose))
    out.data(result.to_json() | after.push(result.output, source, jobs, out, checkpoint))


def _settings(
    flags: Given[PruneSettings],
    recipe: Path | None,
    calibration: Given[Calibration],
    model: str,
    device: str | None,
) -> PruneSettings:
    """Flags and recipe together, checked before anything is opened."""
    from prunectl.plan.recipe import combine, read_recipe

    of_recipes = ("sparsity", "pattern", "scope")
    typed: dict[str, Any] = {name: flags.typed.get(name) for name in of_recipes}
    typed |= {name: flags.values[name] for name in ("include", "exclude")}
    how: dict[str, Any] = {
        name: flags.values[name] for name in ("method", "refine", "reconstruct", "budget")
    }
    how["calibration"] = options.calibration_of(
        calibration, model, how["method"], how["refine"], how["reconstruct"], device
    )
    if mask := flags.values["mask"]:
        check_mask_alone(**typed, recipe=recipe)
        settings = PruneSettings(mask=mask, **how)
    else:
        settings = combine(read_recipe(recipe) if recipe else None, **typed, **how)
    check_complete(settings)
    return settings


def _show_plan(
    checkpoint: Checkpoint, settings: PruneSettings, out: Output, space: RemoteSpace | None = None
) -> None:
    """The plan; where the model is still on the Hub, also what fetching and pruning it takes."""
    from prunectl.cli.analyze_screen import space_screen
    from prunectl.cli.prune_screen import plan_screen
    from prunectl.plan.job import plan_prune

    options.warn_of(checkpoint, out)
    plan = plan_prune(checkpoint, settings)
    for text in plan.notes:
        out.note(text)
    needs = {"space": space.to_json()} if space else {}
    out.data({"dry_run": True, "model": checkpoint.model} | plan.to_json() | needs)
    needed = space_screen(space, everything=out.verbose, more="-v") if space else ()
    out.show(*needed, *plan_screen(plan, checkpoint.model, everything=out.verbose))
