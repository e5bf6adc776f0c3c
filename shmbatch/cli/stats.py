"""``shmbatch stats NAME``: what an executor has counted."""

from __future__ import annotations

import json

import click


@click.command("stats")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: str, as_json: bool) -> None:
    """Print what the executor NAME has counted since it started, a line a function."""
    from ..client.asking import statistics

    functions = statistics(name)
    if as_json:
        click.echo(json.dumps(functions))
        return
    for function, counts in functions.items():
        sizes = " ".join(f"{size}:{count}" for size, count in counts["batch_sizes"].items())
        click.echo(
            f"{function}: {counts['producers']} producers, {counts['calls_done']} calls done, "
            f"{counts['calls_failed']} failed, batches by size {sizes or 'none'}"
        )
