"""Commands on a model: from looking at it to deploying it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.bundles import finish_hosts, on_hosts, print_summary
from edgekit.cli.console import open_terminal, print_json
from edgekit.cli.flags import (
    Data,
    Eval,
    Host,
    Json,
    Lab,
    Latency,
    MaxDrop,
    Memory,
    Metric,
    Model,
    NoPrune,
    Overlay,
    Recipe,
    Shape,
    Size,
    Synthetic,
    Target,
    Threads,
    budget_of,
    precision_of,
    require_alone,
    shapes_of,
)
from edgekit.errors import InputError


def deploy(
    model: Model,
    target: Target,
    data: Data = None,
    evaluation: Eval = None,
    recipe: Recipe = "npz",
    metric: Metric = None,
    latency: Latency = None,
    memory: Memory = None,
    size: Size = None,
    max_drop: MaxDrop = None,
    threads: Threads = None,
    shape: Shape = None,
    synthetic: Synthetic = False,
    no_prune: NoPrune = False,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Ship although layers execute otherwise than planned; report them.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Where the bundle goes.", metavar="DIR")] = Path("bundle"),
    host: Host = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Plan, compress, compile and race MODEL on a board; write a bundle for the firmware build.

    edgekit deploy model.onnx --target host --data calib.npz --latency 10ms --memory 64MB --max-drop 1%
    """
    from edgekit import api, results

    budget = budget_of(latency, memory, size, max_drop)
    shapes = shapes_of(shape)
    terminal = open_terminal()
    result = api.deploy(
        model,
        target,
        data=data,
        evaluation=evaluation,
        recipe=recipe,
        metric=metric,
        budget=budget,
        threads=threads,
        shapes=shapes,
        synthetic=synthetic,
        prune=not no_prune,
        out=out,
        allow_mismatch=allow_mismatch,
        overlays=overlay or (),
        progress=terminal.progress,
        host=host,
        lab=lab,
    )
    timed = host or ""
    if result.vectors is not None and result.vectors.emulated:
        timed = timed.partition(",")[2]  # the first one gave its results, and no time of it means anything
    ran = on_hosts(out, timed, lab, overlay, terminal, seconds=1.0) if timed else None
    if as_json:
        print_json(results.to_json(result) | ({} if ran is None else {"hosts": results.unstructure(ran.hosts)}))
    else:
        print_summary(result, terminal)
    if ran is not None:
        finish_hosts(ran, terminal, as_json)


def plan(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(help="The trained float model, an ONNX file.", metavar="MODEL", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="The board: see `edgekit targets`.", metavar="NAME")
    ] = None,
    data: Data = None,
    evaluation: Eval = None,
    recipe: Recipe = "npz",
    metric: Metric = None,
    latency: Latency = None,
    memory: Memory = None,
    size: Size = None,
    max_drop: MaxDrop = None,
    threads: Threads = None,
    shape: Shape = None,
    synthetic: Synthetic = False,
    no_prune: NoPrune = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan to this file.", metavar="FILE")] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(
            "--pareto",
            help="Write every plan that was considered to this JSON file, and a picture beside it: front.json gives "
            "front.svg; front.png gives front.json too.",
            metavar="FILE",
        ),
    ] = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--diff",
            help="Compare two plans of one model instead: plan.json files or bundles. Takes --json and nothing else.",
            metavar="A B",
        ),
    ] = None,
    host: Host = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Find the plan for MODEL on a board, without racing or bundling it; or compare two plans.

    edgekit plan model.onnx --target host --data calib.npz --latency 10ms --out plan.json --pareto front.json

    edgekit plan --diff plan.json bundle/plan.json
    """
    if diff is not None:
        require_alone(context, "diff", "as_json")
        _print_difference(*diff, as_json)
        return
    if model is None or target is None:
        missing = "MODEL" if model is None else "--target"
        raise InputError(
            f"plan needs {missing}",
            "write edgekit plan model.onnx --target host --data calib.npz, or edgekit plan --diff A B",
        )
    from edgekit import api, results
    from edgekit.reporting import files, front, tables

    budget = budget_of(latency, memory, size, max_drop)
    shapes = shapes_of(shape)
    front_files = () if pareto is None else front.files(pareto)
    files.require_writable(out, *front_files)
    terminal = open_terminal()
    found = api.plan(
        model,
        target,
        data=data,
        evaluation=evaluation,
        recipe=recipe,
        metric=metric,
        budget=budget,
        threads=threads,
        shapes=shapes,
        synthetic=synthetic,
        prune=not no_prune,
        overlays=overlay or (),
        progress=terminal.progress,
        host=host,
        lab=lab,
    )
    document = results.unstructure(found)
    files.write_front(found, front_files)
    files.write_document(out, document)
    if as_json:
        print_json(document)
    else:
        tables.print_plan(found, terminal.out)


def predict(
    model: Model,
    target: Annotated[
        str,
        typer.Option(
            "--target", help="The board: see `edgekit targets`. Several: a,b,c; every board: all.", metavar="NAME"
        ),
    ],
    precision: Annotated[
        str, typer.Option("--precision", help="Everything in this precision: fp32, bf16, fp16, int8, fp8, w8.")
    ] = "fp32",
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan.json, of a bundle or of `edgekit plan`.", metavar="FILE")
    ] = None,
    threads: Threads = None,
    shape: Shape = None,
    host: Host = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Predict latency, weight size and peak activations of MODEL on a board; needs no samples.

    edgekit predict model.onnx --target host --precision int8

    edgekit predict model.onnx --target all
    """
    from edgekit import api, results
    from edgekit.reporting import tables

    shapes = shapes_of(shape)
    terminal = open_terminal()
    if target == "all" or "," in target:
        if host is not None or lab is not None or threads is not None:
            raise InputError("--host, --lab and --threads go with one target", "name one board with --target")
        names = () if target == "all" else tuple(filter(None, (word.strip() for word in target.split(","))))
        if not names and target != "all":
            raise InputError(f"--target {target!r} names no board", "see edgekit targets")
        several = api.predict_boards(
            model,
            names,
            precision=precision_of(precision),
            plan=plan,
            shapes=shapes,
            overlays=overlay or (),
            progress=terminal.progress,
        )
        if as_json:
            print_json(results.unstructure(several))
        else:
            tables.print_predictions(several, terminal.out)
        return
    found = api.predict(
        model,
        target,
        precision=precision_of(precision),
        plan=plan,
        threads=threads,
        shapes=shapes,
        overlays=overlay or (),
        progress=terminal.progress,
        host=host,
        lab=lab,
    )
    if as_json:
        print_json(results.unstructure(found))
    else:
        tables.print_prediction(found, terminal.out)


def inspect(
    model: Model,
    target: Annotated[
        str | None, typer.Option("--target", help="Show each layer's options on this board.", metavar="NAME")
    ] = None,
    shape: Shape = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Show the layers of MODEL: shapes, multiply-accumulates, weights, peak activations."""
    from edgekit import api, results
    from edgekit.reporting import tables

    found = api.inspect(model, target, shapes=shapes_of(shape), overlays=overlay or ())
    if as_json:
        print_json(results.unstructure(found))
    else:
        tables.print_inspection(found, open_terminal().out)


def diagnose(
    model: Model,
    target: Target,
    data: Data = None,
    evaluation: Eval = None,
    recipe: Recipe = "npz",
    shape: Shape = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Find the layers that int8 hurts, what would cure each, and whether the samples are to blame.

    edgekit diagnose model.onnx --target host --data samples.npz

    Every figure is a trial on samples that calibration did not see; no board is needed.
    """
    from edgekit import api, results
    from edgekit.reporting.diagnosis import print_diagnosis

    terminal = open_terminal()
    found = api.diagnose(
        model,
        target,
        data=data,
        evaluation=evaluation,
        recipe=recipe,
        shapes=shapes_of(shape),
        overlays=overlay or (),
        progress=terminal.progress,
    )
    if as_json:
        print_json(results.unstructure(found))
    else:
        print_diagnosis(found, terminal.out)


def _print_difference(a: Path, b: Path, as_json: bool) -> None:
    from edgekit import api, results
    from edgekit.reporting import comparison

    found = api.diff_plans(a, b)
    if as_json:
        print_json(results.unstructure(found))
    else:
        comparison.print_difference(found, open_terminal().out)
