"""What `shmbatch serve` runs: web workers, each a producer, and who starts and ends them."""
