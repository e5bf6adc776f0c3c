"""What else could serve a batched function to many processes, each tried in its own environment.

::

    benchmark --asked.measure--> ENVIRONMENT/bin/python -m benchmarks.rivals MODULE ...
              <-- .npz file ---    the module's measure(work, load, warmup_s, measure_s)
                                     |- producer 0..n   (a Crew: a process each, _load drives it)
                                     `- what batches    (a process more, or a server of its own)

listed.py        which rivals there are, what each needs, and what it leaves behind when killed
environments.py  makes the virtual environments: python -m benchmarks.rivals.environments
kept.py          runs a program so that nothing it starts outlives it
asked.py         the parent's side: has a rival measured once, and removes whatever is left of it
__main__.py      the child's side: measures once, and writes down what came out

Every other file is a rival, or several that differ in their options. It has one function::

    def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]

which returns each producer's latencies as `drive` gives them, int64 nanoseconds as bytes, and
raises if the rival cannot do it, or answers wrongly. It gets the options of its row in listed.py
as further keywords. The file's docstring says which page of the rival's documentation it follows.

- No rival imports shmbatch. A rival's own packages are imported inside functions only, so that
  every file can be imported where they are not installed.
- What batches executes ``work.function(batch[:n], results[:n])`` once for each batch, on a stack
  of inputs, and executes it once before it says that it is ready, so that a model is loaded.
- A producer is a process of a ``Crew(PRELOAD)``, and is driven by one of two functions of
  _load.py, which check every answer: `drive` where one thread submits and collects, `drive_async`
  where a call is awaited.
- Files, ports and names are its own, so it may run beside anything but another rival. When it has
  ended, every process that is left of it is killed, and removed are the temporary folder
  (`tempfile`) and names in /dev/shm that begin with that folder's name, or as listed.py says.
"""
