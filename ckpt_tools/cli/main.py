"""The `ckpt` command: a table of lazily imported subcommands and one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from .. import __version__
from ..errors import CkptError, nearest

# Kept here so that `ckpt --help` imports none of them.
COMMANDS = {
    "analyze": "Run analyzers over a checkpoint or a trajectory and write HDF5.",
    "compare": "Compare two results files, or two sets of runs with statistics.",
    "export": "Write a results file as CSV, Parquet, netCDF or TensorBoard events.",
    "inspect": "List tensors, roles, shapes, dtypes, steps, and what is skipped and why.",
    "pack": "Move the step folders of a run into logs, and check logs.",
    "plot": "Draw figures of results files: curves, heat maps, spectra, several runs overlaid.",
    "plugins": "List, show, check and create plugins.",
    "report": "Write results files as one HTML page with interactive charts.",
    "show": "Print a results file as tables with a sparkline per series.",
    "study": "Reproduce a paper: train, analyze, check its claims, draw figures, report.",
    "train": "Train a small model and save a dense trajectory of checkpoints.",
    "unpack": "Write checkpoints of a run as step folders that any safetensors reader opens.",
    "verify": "Check that a trajectory is one run: no copies, mix-ups, gaps, damage or NaN.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all command names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{cmd_name}", __package__), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Name the nearest command when there is none of the given name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No command is named {args[0]!r}.{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list from the table, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ckpt")
def cli() -> None:
    """Measure how neural networks learn: point ckpt at checkpoints, name analyzers, get numbers.

    \b
    ckpt train transformer --task markov --out run
    ckpt analyze run --plugin rank -o results.h5
    ckpt show results.h5

    Shell completion: eval "$(_CKPT_COMPLETE=bash_source ckpt)" (or zsh_source, fish_source).
    """


# One thread per process unless the user says otherwise: spinning BLAS threads make small matrices many times slower on
# shared cores, and `--workers` uses cores better. Read once, when the libraries are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Run the command line; errors a user can mend are one line on stderr and exit code 2."""
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 141
    except CkptError as error:
        click.echo(f"ckpt: {error}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
