"""The flags that several commands share, with what ``--help`` says of them, and what their words mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.types import Budget

Model = Annotated[Path, typer.Argument(help="The trained float model, an ONNX file.", metavar="MODEL")]
Bundle = Annotated[Path, typer.Argument(help="The folder that deploy wrote.", metavar="BUNDLE")]
Target = Annotated[str, typer.Option("--target", help="The board: see `edgekit targets`.", metavar="NAME")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; all else goes to stderr.")]
Overlay = Annotated[
    list[Path] | None,
    typer.Option(
        "--overlay",
        help="A folder with your own targets/, device_profiles/, calibration/ (may be repeated; also EDGEKIT_OVERLAY).",
        metavar="DIR",
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", help="Freeze a dynamic input, as in x=1x3x48x320 (may be repeated).", metavar="NAME=DIMS"),
]
Host = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="The board to measure on, over ssh: user@address[:port], a Host of ~/.ssh/config, or a name of the lab "
        "file. Your keys, agent, jump hosts and known_hosts are used as they are. Several: a,b,c. This machine: local.",
        metavar="HOST",
    ),
]
Lab = Annotated[
    Path | None,
    typer.Option(
        "--lab", help="A TOML file of [[board]] blocks: name, host, target, python, work_dir (also EDGEKIT_LAB)."
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Inference threads; default: the target's.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Samples: an .npz whose keys are the model's inputs (first axis = samples, `labels` optional) or a folder "
        "that the recipe reads.",
    ),
]
Eval = Annotated[
    Path | None,
    typer.Option("--eval", help="Samples to judge by; default: those of --data that calibration does not use."),
]
Recipe = Annotated[
    str, typer.Option("--recipe", help="Samples to inputs: npz, image-classification, text-line, audio-16k.")
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="top-1, auc, ctc-exact, cer, cosine, sqnr, or your own as file.py:function. Default: the recipe's, or by "
        "the labels.",
    ),
]
Latency = Annotated[str | None, typer.Option("--latency", help="Latency budget of one inference, as in 10ms.")]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Budget for loaded weights + peak activations, as in 64MB.")
]
Size = Annotated[str | None, typer.Option("--size", help="Budget for stored weights, as in 5MB.")]
MaxDrop = Annotated[
    str | None, typer.Option("--max-drop", help="Largest drop of the metric, absolute: 1% is one point (default).")
]
NoPrune = Annotated[
    bool, typer.Option("--no-prune", help="Plan precisions alone: every layer keeps all of its channels.")
]
Synthetic = Annotated[
    bool, typer.Option("--synthetic", help="Plan on random inputs, for latency work only: accuracy then means nothing.")
]


def budget_of(latency: str | None, memory: str | None, size: str | None, max_drop: str | None) -> Budget:
    """What the four flags ask for. Raises InputError naming the one that is none."""
    from edgekit.budget import parse_budget

    return parse_budget(latency, memory, size, max_drop)


def shapes_of(shape: list[str] | None) -> dict[str, tuple[int, ...]]:
    """The shapes by input. Raises InputError for what is none."""
    from edgekit.budget import parse_shapes

    return parse_shapes(shape or [])


def precision_of(word: str) -> str:
    """The word. Raises InputError unless it is a precision's."""
    from edgekit.types import Precision

    words = [precision.value for precision in Precision]
    if word not in words:
        raise InputError(f"--precision {word!r} is not a precision", f"choose from {', '.join(words)}")
    return word


def require_alone(context: typer.Context, *allowed: str) -> None:
    """Raises InputError, naming the first of ``allowed``, where other parameters were given too."""
    for one in context.command.params:
        source = context.get_parameter_source(one.name or "")
        if one.name in allowed or source is None or source.name != "COMMANDLINE":
            continue
        odd = one.opts[0] if one.param_type_name == "option" else f"MODEL {context.params[one.name or '']}"
        raise InputError(f"--{allowed[0]} does not go with {odd}", "compare two plans with edgekit plan --diff A B")
