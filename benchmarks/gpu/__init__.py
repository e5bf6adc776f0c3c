"""What the package costs and gains on a GPU; `run_all` measures everything in one command."""
