# ruff: noqa: F722, UP037 - jaxtyping's shapes are strings that are no Python expressions
"""Actors ask one policy what to do, and its weights change while they do.

    shmbatch run docs/examples/policy.py

16 processes, each with a CartPole of its own, step in lockstep: every batch has a call of each.
Meanwhile the weights are replaced, between two batches and without stopping anybody. Needs
gymnasium and jaxtyping.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import Float32

import shmbatch

ACTORS = 16
BEFORE = 50  # steps that every actor has made when the weights change
AFTER = 300  # steps that it then makes with the new ones

app = shmbatch.App()


@app.cls()
class Policy:
    """Pushes to one side or the other, as a weighted sum of what an actor sees says."""

    @shmbatch.enter()
    def load(self) -> None:
        self.weights = np.zeros(4, np.float32)  # always to the left
        self.version = 0
        self.sizes = Counter[int]()  # of the batches that this version has answered

    @shmbatch.batched(max_batch_size=2 * ACTORS, wait_ms=10_000, lockstep=True)
    def act(self, seen: Float32[np.ndarray, "batch 4"]) -> list[tuple[int, int]]:
        """Return the action for each, and the version of the weights that chose it."""
        self.sizes[len(seen)] += 1
        return [(int(side), self.version) for side in seen @ self.weights > 0]

    @shmbatch.method()
    def refresh(self, weights: Float32[np.ndarray, "4"]) -> int:
        """Take other weights; no batch runs meanwhile, so none has some of each."""
        self.weights = weights
        self.version += 1
        self.sizes.clear()
        return self.version

    @shmbatch.method()
    def batches(self) -> dict[int, int]:
        """Return how many batches this version has answered, by their size."""
        return dict(self.sizes)


def actor(act: shmbatch.Function, seed: int, parent: Connection) -> None:
    """Step a pole as the policy says, until that has been refreshed and for some steps more."""
    import gymnasium  # here, since the executor has no use for it

    pole = gymnasium.make("CartPole-v1")
    seen, _ = pole.reset(seed=seed)
    steps = Counter[int]()  # by version
    while steps[1] < AFTER:
        side, version = act.remote(seen)
        steps[version] += 1
        if steps.total() == BEFORE:
            parent.send("acting")
        seen, _, fell, stood_long_enough, _ = pole.step(side)
        if fell or stood_long_enough:
            seen, _ = pole.reset()
    parent.send(steps)


@app.local_entrypoint()
def main() -> None:
    policy = Policy()
    spawn = multiprocessing.get_context("spawn")  # a child that has nothing but what it imports
    pipes, processes = [], []
    for seed in range(ACTORS):
        here, there = spawn.Pipe()
        process = spawn.Process(target=actor, args=(policy.act, seed, there), daemon=True)
        process.start()
        there.close()  # so that a dead actor is an EOFError here
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    print(f"{ACTORS} actors are acting on version 0")
    version = policy.refresh.remote(np.array([0, 0.4, 1, 1], np.float32))
    steps = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    print(f"all made {AFTER} steps more on version {version}")
    batches = policy.batches.remote()
    for size, count in sorted(batches.items()):
        print(f"for which {count} batches of {size} ran")
    if any(each[version] != AFTER for each in steps) or batches != {ACTORS: AFTER}:
        sys.exit("error: the actors were not in step")
