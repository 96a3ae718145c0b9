"""The command line: wiring only. A command is a function of `labkit.commands`; those with figures have ``--json``."""

from __future__ import annotations

import typer

from labkit.commands.book import build, doctor, lab, lecture, run
from labkit.commands.fetching import fetch
from labkit.commands.grading import grade, release
from labkit.commands.memory import dryrun, memory
from labkit.commands.spectrum import snr
from labkit.commands.sweep import sweep
from labkit.commands.training import sft
from labkit.console import run_app
from labkit.labels import language

# In the order of --help.
COMMANDS = (doctor, fetch, lab, build, run, memory, dryrun, lecture, sft, sweep, snr, release, grade)

app = typer.Typer(
    help="The lab book on parameter-efficient fine-tuning, from the command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def first() -> None:
    """Before any command: ``LABKIT_LANG`` must be one of the book's languages, or an error would come in mid-work."""
    language()


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
