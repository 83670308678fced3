"""``prunectl prune``: write a pruned copy of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunectl.cli import calibration_options, device_options, options, push_options
from prunectl.cli.model_argument import choose_model
from prunectl.cli.output import Output
from prunectl.errors import InvalidOption
from prunectl.methods.table import DEFAULT, UPDATING
from prunectl.pattern import parse_pattern
from prunectl.plan.settings import Budget, PruneSettings, Scope, check_complete, check_mask_alone
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.analysis.remote import RemoteSpace
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.checkpoint.remote import RemoteModel

EPILOG = options.examples(
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
    model: options.Model = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            "--sparsity",
            "-s",
            metavar="S",
            help="Share of the prunable weights to be zero, 0 < S < 1. With N:M: only as "
            "many matrices take the pattern as that share needs; left out, all that fit.",
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            "-p",
            metavar="PATTERN",
            help="'unstructured' (default), or N:M: at most N kept of every M weights.",
        ),
    ] = None,
    scope: options.ScopeOption = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            parser=expanded,
            help="TOML file with rules for parts of the model.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            parser=expanded,
            help="Prune what the masks in FILE say, which 'prunectl export --masks-only' wrote.",
        ),
    ] = None,
    method: calibration_options.MethodOption = DEFAULT,
    refine: calibration_options.Refine = False,
    budget: calibration_options.BudgetOption = Budget.MATRIX,
    calibration: calibration_options.Source = None,
    samples: calibration_options.Samples = None,
    sequence_length: calibration_options.SequenceLength = None,
    seed: calibration_options.Seed = None,
    damping: calibration_options.Damping = None,
    true_sequential: calibration_options.TrueSequential = False,
    device: device_options.PruneDevice = None,
    dtype: calibration_options.Dtype = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=expanded,
            help="Folder to write; must not hold anything.",
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest weights file.")
    ] = "5GB",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan; read no weights and write nothing."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is at --output, once all is written.")
    ] = False,
    push: push_options.Push = None,
    push_revision: push_options.PushRevision = None,
    private: push_options.Private = False,
    create_pr: push_options.CreatePr = False,
    commit_message: push_options.CommitMessage = None,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    remote: options.Remote = False,
    no_cache: options.NoCache = False,
    jobs: options.Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Set weights to zero, by default those of lowest magnitude; the result loads as before.

    Methods that are calibrated run samples through the model, one block at a time, to choose the
    weights and to fit those that stay. They need --calibration.

    The source is not touched. The output is complete or absent; a run that was cut off goes on
    where it stopped when the same command is given again.
    """
    out = Output(json=json, quiet=quiet, verbose=verbose)
    choice = choose_model(model, revision, out)
    is_calibrated = refine or method.spec.is_calibrated
    chosen = calibration_options.calibration_of(
        choice.model, method, refine, calibration, true_sequential, samples=samples,
        sequence_length=sequence_length, seed=seed, damping=damping, dtype=dtype,
        device=device if is_calibrated else None,
    )  # fmt: skip
    how = {"method": method, "refine": refine, "calibration": chosen, "budget": budget}
    settings = _settings(sparsity, pattern, scope, include or [], exclude or [], recipe, mask, how)
    shard_size = options.parsed_size(max_shard_size)
    after = push_options.PushAfter(
        push, push_revision, private, create_pr, commit_message, token, trust_remote_code, jobs
    )
    after.check()
    if output is None and not dry_run:
        raise InvalidOption(
            "no output folder given", hint="add -o DIR, or --dry-run to see only the plan"
        )
    if remote and not dry_run:
        raise InvalidOption(
            "--remote reads headers only, which is enough for --dry-run and nothing else",
            hint="add --dry-run, or leave --remote out",
        )
    if (output is None or dry_run) and device not in (None, "auto"):
        out.note(f"--device {device}: a plan is made without it")
    if remote:
        found = options.open_headers(choice, token, cache_dir, trust_remote_code, jobs, out)
        space = _remote_space(found, output or Path.cwd(), shard_size)
        _show_plan(found.headers(), settings, out, space)
        return
    checkpoint = options.open_source(choice, token, cache_dir, trust_remote_code, out)
    if output is None or dry_run:
        if settings.calibration is not None and settings.calibration.dtype != "auto":
            from prunectl.plan.job import dtype_of

            dtype_of(settings.calibration, checkpoint)  # refused now as it would be then
        _show_plan(checkpoint, settings, out)
        return
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
            command=options.command_of(context, model, choice, checkpoint),
            on_event=on_event,
        )
    if not ranks.is_first:
        return
    if not json:
        from prunectl.cli.prune_screen import prune_screen

        out.show(*prune_screen(result, everything=verbose))
    pushed = after.push(result.output, out, source=checkpoint)
    out.data(result.to_json() | push_options.document(pushed))


def _settings(
    sparsity: float | None,
    pattern: str | None,
    scope: Scope | None,
    include: list[str],
    exclude: list[str],
    recipe: Path | None,
    mask: Path | None,
    how: dict[str, Any],
) -> PruneSettings:
    """Flags and recipe together, checked before anything is opened."""
    from prunectl.plan.recipe import combine, read_recipe

    if mask is not None:
        check_mask_alone(
            sparsity=sparsity,
            pattern=pattern,
            scope=scope,
            include=tuple(include),
            exclude=tuple(exclude),
            recipe=recipe,
        )
        settings = PruneSettings(mask=mask, **how)
        check_complete(settings)
        return settings
    settings = combine(
        read_recipe(recipe) if recipe else None,
        sparsity=sparsity,
        pattern=parse_pattern(pattern) if pattern is not None else None,
        scope=scope,
        include=tuple(include),
        exclude=tuple(exclude),
        **how,
    )
    check_complete(settings)
    return settings


def _remote_space(remote: RemoteModel, output: Path, shard_size: int) -> RemoteSpace:
    from prunectl.analysis.remote import remote_space

    remote.headers()  # a pickle has none, and no plan either
    return remote_space(remote, output, shard_size)


def _show_plan(
    checkpoint: Checkpoint, settings: PruneSettings, out: Output, space: RemoteSpace | None = None
) -> None:
    """The plan; where the model is still on the Hub, also what fetching and pruning it takes."""
    from prunectl.cli.plan_screen import plan_screen
    from prunectl.cli.remote_screen import space_screen
    from prunectl.plan.job import plan_prune

    options.warn_of(checkpoint, out)
    plan = plan_prune(checkpoint, settings)
    for text in plan.notes:
        out.note(text)
    if out.json:
        needs = {"space": space.to_json()} if space else {}
        out.data({"dry_run": True, "model": checkpoint.model} | plan.to_json() | needs)
        return
    needed = space_screen(space, everything=out.verbose, more="-v") if space else ()
    out.show(*needed, *plan_screen(plan, checkpoint.model, everything=out.verbose))
