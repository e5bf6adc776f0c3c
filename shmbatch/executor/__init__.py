"""What runs in the executor process: batcher, poller, staging, runner, loop, control."""
