"""What may be wrong with a machine, a user's setup, or the executors there are, and the remedy.

A check is a function of what was read: `machine` reads, `examination` puts them together.
"""
