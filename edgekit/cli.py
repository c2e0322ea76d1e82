"""The command line: one short function a command. The only place that prints and exits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from edgekit import __version__
from edgekit.console import Terminal, keep_stdout_ours, one_line_errors, open_terminal, prepare_streams, print_json
from edgekit.errors import DeviceError, InputError
from edgekit.flags import (
    Bundle,
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
)

if TYPE_CHECKING:
    from edgekit.api import HostsBench
    from edgekit.types import Budget


class _Commands(typer.core.TyperGroup):
    """The commands, each of whose errors ends in one line."""

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    help="From a trained model to a board: within its latency, memory and accuracy budget, proven before it ships.",
    epilog=(
        "Exit codes: 0 done · 2 bad usage or input · 3 no plan fits the budget · 4 a toolchain or extra is missing · "
        "5 device or transport failed · 6 a guard refused · 7 bundle does not verify · 130 interrupted"
    ),
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"edgekit {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def _budget(latency: str | None, memory: str | None, size: str | None, max_drop: str | None) -> Budget:
    from edgekit.budget import parse_budget

    return parse_budget(latency, memory, size, max_drop)


def _shapes(shape: list[str] | None) -> dict[str, tuple[int, ...]]:
    from edgekit.budget import parse_shapes

    return parse_shapes(shape or [])


@app.command()
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

    budget = _budget(latency, memory, size, max_drop)
    shapes = _shapes(shape)
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
    ran = _on_hosts(out, timed, lab, overlay, terminal, seconds=1.0) if timed else None
    if as_json:
        print_json(results.to_json(result) | ({} if ran is None else {"hosts": results.unstructure(ran.hosts)}))
    else:
        _print_summary(result, terminal)
    if ran is not None:
        _finish_hosts(ran, terminal, as_json)


@app.command()
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
        _require_alone(context, "diff", "as_json")
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

    budget = _budget(latency, memory, size, max_drop)
    shapes = _shapes(shape)
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


@app.command()
def predict(
    model: Model,
    target: Target,
    precision: Annotated[
        str, typer.Option("--precision", help="Everything in this precision: fp32, bf16, fp16, int8, w8.")
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
    """
    from edgekit import api, results
    from edgekit.reporting import tables

    shapes = _shapes(shape)
    terminal = open_terminal()
    found = api.predict(
        model,
        target,
        precision=_precision(precision),
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


@app.command()
def profile(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="With --diff: two device profiles.", metavar="[A B]", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="The board: see `edgekit targets`.", metavar="NAME")
    ] = None,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write the profile to this file; default: among your own, which every command takes in place of the "
            "shipped one of that name.",
            metavar="FILE",
        ),
    ] = None,
    diff: Annotated[
        bool,
        typer.Option("--diff", help="Show what your own profile of --target changed, or what differs from A to B."),
    ] = False,
    host: Host = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Measure what a board costs in some minutes, so that latencies on it can be predicted; or compare profiles.

    edgekit profile --target host

    edgekit profile --diff --target host
    """
    if diff:
        _print_profile_difference(context, files or [], target, overlay, as_json)
        return
    if files or target is None:
        problem = f"profile takes no file {files[0]}" if files else "profile needs --target"
        raise InputError(problem, "write edgekit profile --target NAME, or edgekit profile --diff A B")
    from edgekit import api, results
    from edgekit.reporting.profiles import print_profile

    terminal = open_terminal()
    found = api.profile(
        target,
        threads=threads,
        out=out,
        overlays=overlay or (),
        progress=terminal.progress,
        host=host,
        lab=lab,
    )
    if as_json:
        print_json(results.unstructure(found))
    else:
        print_profile(found, terminal.out)


@app.command()
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

    found = api.inspect(model, target, shapes=_shapes(shape), overlays=overlay or ())
    if as_json:
        print_json(results.unstructure(found))
    else:
        tables.print_inspection(found, open_terminal().out)


@app.command()
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
        shapes=_shapes(shape),
        overlays=overlay or (),
        progress=terminal.progress,
    )
    if as_json:
        print_json(results.unstructure(found))
    else:
        print_diagnosis(found, terminal.out)


@app.command()
def targets(
    name: Annotated[str | None, typer.Argument(help="Show everything about this one.", metavar="[NAME]")] = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """List the boards that --target knows, or show one with its device profile."""
    from edgekit import catalog, results
    from edgekit.reporting import tables

    overlays = overlay or ()
    if name is not None:
        target = catalog.target(name, overlays)
        profile = catalog.device_profile(target.device_profile, overlays)
        if as_json:
            print_json({"target": results.unstructure(target), "device_profile": results.unstructure(profile)})
        else:
            tables.print_target(target, profile, open_terminal().out)
            file = catalog.profile_file(target.device_profile, overlays)
            if file.parent == catalog.own_profiles():
                more = f"edgekit profile --diff --target {name}"
                sys.stdout.write(f"the device profile is your own: {file}; {more} shows what it changes\n")
        return
    known = catalog.targets(overlays)
    if as_json:
        print_json({"targets": [results.unstructure(target) for target in known.values()]})
    else:
        tables.print_targets(known.values(), open_terminal().out)


toolchain = typer.Typer(
    help="The environments that converters run in; made on first use, or ahead of time.",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(toolchain, name="toolchain")


@toolchain.command("list")
def toolchain_list(as_json: Json = False) -> None:
    """List the toolchains, and whether they are installed."""
    from edgekit import toolchains

    rows = [
        {"name": name, "description": chain.description, "state": toolchains.problem(name) or "installed"}
        for name, chain in toolchains.known().items()
    ]
    if as_json:
        print_json({"toolchains": rows})
    else:
        for row in rows:
            sys.stdout.write(f"{row['name']}: {row['state']}; {row['description']}\n")


@toolchain.command("install")
def toolchain_install(
    name: Annotated[str, typer.Argument(help="See `edgekit toolchain list`.", metavar="NAME")],
    wheels: Annotated[
        Path | None, typer.Option("--wheels", help="Install from this folder of wheels, without any network.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a toolchain's environment, anew where there is one."""
    from edgekit import toolchains
    from edgekit.progress import OnConsole

    python = toolchains.ensure(name, OnConsole(open_terminal().err), wheels, again=True)
    if as_json:
        print_json({"name": name, "python": str(python)})


@app.command()
def bench(
    bundle: Bundle,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=600, help="How long to measure.")] = 3.0,
    host: Host = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Verify a bundle and measure its latency again: on this machine, or on one or several boards at once.

    edgekit bench bundle --host pi@192.168.1.20,pi@192.168.1.21
    """
    from edgekit import api, results
    from edgekit.reporting import tables

    terminal = open_terminal()
    if host is not None and "," in host:
        ran = _on_hosts(bundle, host, lab, overlay, terminal, seconds)
        if as_json:
            print_json(results.unstructure(ran))
        _finish_hosts(ran, terminal, as_json)
        return
    with terminal.progress.stage(f"measure {bundle}"):
        found = api.bench(bundle, seconds, overlay or (), host, lab, terminal.progress)
    if as_json:
        print_json(results.unstructure(found))
    else:
        tables.print_bench(found, terminal.out)


def _on_hosts(
    bundle: Path, host: str, lab: Path | None, overlay: list[Path] | None, terminal: Terminal, seconds: float
) -> HostsBench:
    from edgekit import api

    with terminal.progress.stage(f"run {bundle} on {host}"):
        return api.bench_hosts(bundle, host, seconds, overlay or (), lab, terminal.progress)


def _finish_hosts(ran: HostsBench, terminal: Terminal, as_json: bool) -> None:
    """Print what the boards did, unless it was as JSON, and fail where one of them did."""
    from edgekit.reporting.hosts import print_hosts

    if not as_json:
        print_hosts(ran, terminal.out)
    if ran.failed:
        names = ", ".join(row.host for row in ran.failed)
        raise DeviceError(f"{len(ran.failed)} of {len(ran.hosts)} boards failed: {names}", ran.failed[0].hint)


@app.command()
def verify(bundle: Bundle, overlay: Overlay = None, as_json: Json = False) -> None:
    """Recompute every digest of a bundle and run its test vectors on this machine."""
    from edgekit import api, results

    found = api.verify(bundle, overlay or ())
    if as_json:
        print_json({"schema": "edgekit/verify/1", "ok": True, **results.unstructure(found)})
    else:
        open_terminal().out.print(
            f"{bundle}: {found.files} files, {found.total_bytes / 1e6:.1f} MB, every digest holds; test vectors pass",
            highlight=False,
        )


@app.command()
def report(bundle: Bundle, as_json: Json = False) -> None:
    """Print the report of a bundle; the long form is report.html in it."""
    from edgekit import api, results

    result = api.report(bundle)
    if as_json:
        print_json(results.to_json(result))
    else:
        _print_summary(result, open_terminal())


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(help="The sweep: a TOML file with targets, [[model]] and [[budget]].", metavar="FILE")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Where the table and the bundles go.", metavar="DIR", show_default=False)
    ],
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            help="Run on the workers of this Dask scheduler instead of here, as in tcp://10.0.0.1:8786. A board is a "
            "resource of its worker: dask worker ADDRESS --nthreads 1 --resources board:NAME=1.",
            metavar="ADDRESS",
        ),
    ] = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Deploy every model to every target within every budget; write one table and one report.

    edgekit sweep sweep.toml --out sweep

    A cell that cannot is a row with its error. Run it again to resume. Exit code: 0 if every cell is done, else that of
    the worst, by the order 1 (crashed), 5, 4, 2, 7, 6, 3.
    """
    from edgekit.reporting import sweeps
    from edgekit.sweep import run_sweep
    from edgekit.sweeping import table

    terminal = open_terminal()
    found = run_sweep(file, out, scheduler=scheduler, lab=lab, overlays=overlay or (), progress=terminal.progress)
    if as_json:
        print_json(table.to_json(found))
    else:
        sweeps.print_sweep(found, terminal.out, str(out))
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _print_summary(result: Any, terminal: Terminal) -> None:
    from edgekit.reporting.terminal import print_summary

    print_summary(result, terminal.out)


def _precision(word: str) -> str:
    from edgekit.types import Precision

    words = [precision.value for precision in Precision]
    if word not in words:
        raise InputError(f"--precision {word!r} is not a precision", f"choose from {', '.join(words)}")
    return word


def _require_alone(context: typer.Context, *allowed: str) -> None:
    """Only the ``allowed`` parameters were given, the first of which is the one that is named."""
    for one in context.command.params:
        source = context.get_parameter_source(one.name or "")
        if one.name in allowed or source is None or source.name != "COMMANDLINE":
            continue
        odd = one.opts[0] if one.param_type_name == "option" else f"MODEL {context.params[one.name or '']}"
        raise InputError(f"--{allowed[0]} does not go with {odd}", "compare two plans with edgekit plan --diff A B")


def _print_difference(a: Path, b: Path, as_json: bool) -> None:
    from edgekit import api, results
    from edgekit.reporting import comparison

    found = api.diff_plans(a, b)
    if as_json:
        print_json(results.unstructure(found))
    else:
        comparison.print_difference(found, open_terminal().out)


def _print_profile_difference(
    context: typer.Context, files: list[Path], target: str | None, overlay: list[Path] | None, as_json: bool
) -> None:
    from edgekit import api, results
    from edgekit.reporting.profiles import print_profile_difference

    if len(files) == 2 and target is None:
        found = api.diff_profiles(files[0], files[1], overlay or ())
    elif not files and target is not None:
        found = api.profile_changes(target, overlay or ())
    else:
        raise InputError(
            f"profile --diff with {len(files)} files" + (" and --target" if target else ""),
            "write edgekit profile --diff --target NAME, or edgekit profile --diff A B",
        )
    _require_alone(context, "diff", "as_json", "overlay", "target", "files")
    if as_json:
        print_json(results.unstructure(found))
    else:
        print_profile_difference(found, open_terminal().out)


def main() -> None:
    """Entry point of the ``edgekit`` command."""
    prepare_streams()
    with one_line_errors():  # those of parsing and of help texts; commands' own end before
        keep_stdout_ours()
        app()


if __name__ == "__main__":
    main()
