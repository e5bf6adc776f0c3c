# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""Actors, each a process with an environment of its own, ask one policy what to do next.

    shmbatch run docs/examples/actors.py

An actor asks, waits for its action, makes a step, and asks again. A batch that waits for more
calls than there are actors waits in vain, at every step; in lockstep it runs as soon as all
actors have asked. Done twice, and every pole must move the same way. Needs jaxtyping.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

import shmbatch

ACTORS = 8
STEPS = 500
DT_S = 0.02

app = shmbatch.App()


def push(poles: NDArray[np.float64]) -> list[int]:
    """Push against the side to which a pole leans and falls."""
    return np.where(poles @ [1.0, 0.3] > 0, -1, 1).tolist()


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=2)
def waiting(poles: Float64[np.ndarray, "batch 2"]) -> list[int]:
    return push(poles)


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=2, lockstep=True)
def in_lockstep(poles: Float64[np.ndarray, "batch 2"]) -> list[int]:
    return push(poles)


class Pole:
    """A pole that falls over in the wind unless it is pushed."""

    def __init__(self, seed: int) -> None:
        self.wind = random.Random(seed)
        self.state = np.zeros(2)  # angle and speed
        self.steps_upright = 0

    def step(self, action: int) -> None:
        angle, speed = self.state
        speed += (10 * angle + 5 * action + self.wind.gauss(0, 3)) * DT_S
        self.state = np.array([angle + speed * DT_S, speed])
        self.steps_upright += abs(self.state[0]) < 0.5


def act(policy: shmbatch.Function, seed: int, parent: Connection) -> None:
    """Be an actor: step a pole as the policy says."""
    pole = Pole(seed)
    policy.remote(pole.state)  # connects, so that this is not measured
    parent.send("ready")
    parent.recv()
    began = time.monotonic()  # the same clock in all processes
    for _ in range(STEPS):
        pole.step(policy.remote(pole.state))
    parent.send((pole.steps_upright, began, time.monotonic()))


def measure(policy: shmbatch.Function) -> tuple[list[int], float]:
    """Let all actors act; return for how many steps each pole stood, and the steps per second."""
    spawn = multiprocessing.get_context("spawn")  # a child that has nothing but what it imports
    pipes, processes = [], []
    for seed in range(ACTORS):
        here, there = spawn.Pipe()
        process = spawn.Process(target=act, args=(policy, seed, there), daemon=True)
        process.start()
        there.close()  # so that a dead actor is an EOFError here
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()  # ready
    for pipe in pipes:
        pipe.send("go")
    upright, began, ended = zip(*(pipe.recv() for pipe in pipes), strict=True)
    for process in processes:
        process.join()
    return list(upright), ACTORS * STEPS / (max(ended) - min(began))


@app.local_entrypoint()
def main() -> None:
    print(f"{ACTORS} actors, {STEPS} steps each")
    poles_waiting, rate_waiting = measure(waiting)
    poles_in_lockstep, rate_in_lockstep = measure(in_lockstep)
    print(f"waiting      {rate_waiting:10,.0f} steps per second")
    print(f"in lockstep  {rate_in_lockstep:10,.0f} steps per second")
    print(f"poles stood for {np.mean(poles_in_lockstep) / STEPS:.0%} of the steps")
    if poles_waiting != poles_in_lockstep:
        sys.exit("error: a pole moved otherwise")
