"""The process that runs the function: it times it, then serves it with the parameters told.

    python -m shmbatch.tuning.executor '{"file": ..., "function": ..., ...}'

The user's file is loaded once. Commands come as lines of JSON, each is answered by one or more::

    {"time": size, "seconds": s}        {"function_ns": [...], "total_ns": [...]}
                                        {"too_large": why}
    {"serve": name, "variants": {function: parameters, ...}}
                                        {"ready": true}, and after a SIGTERM {"stopped": true}
    end of file                         (it ends)
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..app.load import find_app, load_file
from ..app.reports import Reporter, report_of
from ..client.function import serving
from ..errors import ConfigError, LoadError, ShmbatchError
from ..executor.instances import Instances, needs_loop
from ..executor.process import serve
from ..executor.staging.choosing import devices_for
from ..protocol.transport import transport_name
from .bench import Bench, TooLarge
from .examples import examples_for
from .variants import Parameters, other_options, variant

if TYPE_CHECKING:
    from ..app.app import App
    from ..contract.definition import Definition


def find_definition(app: App, name: str | None) -> Definition:
    """Return the app's function of that name, or its only one.

    Raises:
        LoadError: there is none, or there are several and *name* does not choose.
        ConfigError: it is a plain method, or of a class that needs parameters.
    """
    names = ", ".join(map(repr, app.definitions))
    known = app.classes.get("" if name is None else name.partition(".")[0])
    if known is not None and known.needs_parameters:
        raise ConfigError(
            f"class {app.name}.{known.name} needs parameters ({', '.join(known.parameters)}); "
            f"give each a default to tune it"
        )
    if not app.definitions:
        raise LoadError(f"app {app.name!r} has no functions; add one with @app.function()")
    if name is None and len(app.definitions) > 1:
        raise LoadError(f"app {app.name!r} has several functions, {names}; use FILE::NAME")
    if name is not None and name not in app.definitions:
        raise LoadError(f"app {app.name!r} has no function {name!r}; it has {names}")
    found = app.definitions[name if name is not None else next(iter(app.definitions))]
    if found.signature.plain:
        raise ConfigError(
            f"{app.name}.{found.name} is a plain method, which is run for one call at a time; "
            f"only what is decorated with @shmbatch.batched can be tuned"
        )
    return found


def main() -> None:
    """Do what the commands say, until there are no more."""
    logging.basicConfig(stream=sys.stderr)
    logging.getLogger("shmbatch").setLevel(logging.ERROR)  # whoever called hears of failures
    asked: dict[str, Any] = json.loads(sys.argv[1])
    report = Reporter(asked["reports"])
    for fd in (asked["commands"], asked["lifeline"]):
        os.set_inheritable(fd, False)
    try:
        with os.fdopen(asked["commands"]) as commands:
            _obey(asked, commands, report)
    except ShmbatchError as error:
        report.make(report_of(error))
        sys.exit(1)


def _obey(asked: dict[str, Any], commands: Iterable[str], report: Reporter) -> None:
    app = find_app(load_file(Path(asked["file"])), asked["app"])
    serving(app.name)  # a function that calls itself is told so, and does not wait
    definition = find_definition(app, asked["function"])
    name = f"{app.name}.{definition.name}"
    examples = examples_for(definition.signature, name, asked["input"])
    (device,) = devices_for([definition], asked["device"])
    report.make(
        {
            "app": app.name,
            "function": definition.name,
            "device": device.name,
            "is_async": definition.is_async,
            "graphs": definition.cuda_graphs,
            "arrays": all(column.kind == "array" for column in definition.signature.parameters),
            "examples": examples.described,
            "options": list(other_options(definition)),
        }
    )
    bench: Bench | None = None
    with ExitStack() as stack:
        for line in commands:
            command = json.loads(line)
            if "serve" in command:
                _serve(definition, command, asked, report)
                continue
            if bench is None:
                events = None
                if needs_loop(definition):
                    events = asyncio.new_event_loop()
                    stack.callback(events.close)
                # What is served later is this object's too, which it may have taken long to make.
                instances = stack.enter_context(Instances(events))
                definition = replace(instances.bound([definition])[0], instance=None)
                bench = Bench(definition, device, events, examples)
                stack.callback(bench.close)
                gc.collect()
                gc.freeze()  # as an executor does before it serves
            try:
                report.make(asdict(bench.timed(command["time"], command["seconds"])))
            except TooLarge as error:
                report.make({"too_large": str(error)})


def _serve(
    definition: Definition, command: dict[str, Any], asked: dict[str, Any], report: Reporter
) -> None:
    definitions = [
        replace(variant(definition, Parameters.from_message(parameters)), name=name)
        for name, parameters in command["variants"].items()
    ]
    serving(command["serve"])
    serve(
        command["serve"],
        lambda: definitions,
        transport=transport_name(None),
        device=asked["device"],
        ready=lambda: report.make({"ready": True}),
        supervisor_fd=asked["lifeline"],
    )
    report.make({"stopped": True})


if __name__ == "__main__":
    main()
