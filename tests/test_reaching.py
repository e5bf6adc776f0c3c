"""Every test file runs over every transport, but for those listed here."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict

import pytest

from shmbatch.protocol.transport import TRANSPORTS
from tests.processes import ROOT, environment

# Folders and files of which no test touches a transport, or each test chooses its own.
OVER_ONE = {
    "tests/app/test_app.py",  # definitions, and what is refused before anything starts
    "tests/app/test_classes.py",
    "tests/app/test_decorators.py",
    "tests/app/test_endpoints.py",
    "tests/app/test_install.py",  # a package without its core
    "tests/app/test_load.py",
    "tests/cli/test_doctor.py",  # what it finds has nothing to do with how it got there
    "tests/cli/test_entrypoint.py",
    "tests/cli/test_printing.py",
    "tests/cli/test_service.py",  # what systemd is told
    "tests/client/test_line.py",  # one line, two names: no executor is started
    "tests/client/test_patience.py",
    "tests/cli/test_start_class.py",  # how an instance is started; called in tests/client
    "tests/environment/test_homeless.py",
    "tests/environment/test_limits.py",  # of the machine; each says which transport meets it
    "tests/protocol/test_core_moving.py",  # a ring alone
    "tests/conformance/test_coverage.py",
    "tests/conformance/test_definition.py",
    "tests/contract/",
    "tests/crash/test_leftovers.py",
    "tests/doctor/",
    "tests/executor/test_batcher.py",
    "tests/executor/test_clocks.py",
    "tests/executor/staging/",
    "tests/executor/test_cuda.py",  # a device that is not there
    "tests/executor/test_delivery.py",  # and those below: over worlds, without processes
    "tests/executor/test_fake_gpu.py",
    "tests/executor/test_instances.py",
    "tests/executor/test_isolating.py",
    "tests/executor/test_isolating_cuda.py",
    "tests/executor/test_loop.py",
    "tests/executor/test_overload.py",
    "tests/executor/test_memory_limit.py",
    "tests/executor/test_runner.py",
    "tests/executor/test_served.py",
    "tests/executor/test_statistics.py",
    "tests/executor/test_turns.py",
    "tests/gpu/",  # a GPU cares little about who sleeps how
    "tests/hostile/test_closing.py",
    "tests/hostile/test_fuzz_ring.py",
    "tests/hostile/test_fuzz_values.py",
    "tests/model/",
    "tests/native/",
    "tests/protocol/test_attempts.py",
    "tests/protocol/test_clock.py",
    "tests/protocol/test_control.py",
    "tests/protocol/test_core.py",  # memory that both transports share
    "tests/protocol/test_core_batches.py",
    "tests/protocol/test_core_calling.py",
    "tests/protocol/test_core_lending.py",
    "tests/protocol/test_core_values.py",
    "tests/protocol/test_core_watchdog.py",
    "tests/protocol/test_cpus.py",
    "tests/protocol/test_directory.py",
    "tests/protocol/test_layout.py",
    "tests/protocol/test_memory.py",
    "tests/protocol/test_names.py",
    "tests/protocol/test_owners.py",
    "tests/protocol/test_ownership.py",
    "tests/protocol/test_ring_model.py",
    "tests/protocol/test_spinning.py",
    "tests/protocol/test_supervision.py",
    "tests/supervisor/",  # what a supervisor decides, without processes
    "tests/testing/",  # one process, but for test_plugin.py
    "tests/test_architecture.py",
    "tests/test_budget.py",
    "tests/test_documentation.py",
    "tests/test_reaching.py",
    "tests/test_rivals.py",  # other people's programs, and what drives them
    "tests/tuning/",  # batches in one process, and what is made of their times
    "tests/web/test_bad_input.py",  # and those below: how web workers call does not matter there
    "tests/web/test_child.py",
    "tests/web/test_docs_page.py",
    "tests/web/test_lifecycle.py",
    "tests/web/test_other_servers.py",
    "tests/web/test_server.py",
    "tests/web/test_site.py",
}


@pytest.mark.no_transport
@pytest.mark.slow  # it collects all tests
def test_no_file_falls_out_of_running_over_both_transports() -> None:
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not soak", "tests"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert collected.returncode == 0, collected.stdout[-2000:]
    over = defaultdict[str, set[str]](set)
    for file, test in re.findall(r"^(tests/\S+?\.py)::(.*)$", collected.stdout, re.MULTILINE):
        over[file].update(name for name in TRANSPORTS if name in re.split(r"[\[\]-]", test))
    over_one = {file for file, names in over.items() if names != set(TRANSPORTS)}
    listed = {
        entry: {file for file in over if file == entry or file.startswith(entry)}
        for entry in OVER_ONE
    }
    assert over_one - set().union(*listed.values()) == set(), "run over one transport only"
    assert set().union(*listed.values()) - over_one == set(), "are listed, and run over both"
    assert [entry for entry, files in listed.items() if not files] == [], "are no more"
