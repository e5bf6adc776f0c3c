"""What a user writes: apps, decorators, entrypoints; and how their files are loaded and run."""
