"""Whether anything is lost, wrong or left when everything goes wrong at once, for half an hour.

::

    director --starts, stops, kills--> producer 0..63, a process each; most live for seconds
       |    \\                            |        |
       |     +--kills, stops, reloads--> executor under `shmbatch start --restart`
       |                                  |        |
       +--reads--------------------------ledger   executions

Every result carries the checksum of its input, every call is in its producer's ledger before it
is made and again when it has ended, and a ledger outlives its producer however that ends. See
README.md in the folder above.

    $ python -m benchmarks.soak                          # 30 minutes
    $ python -m benchmarks.soak --minutes 1 --seed 7 --transport posix
"""
