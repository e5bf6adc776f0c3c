"""How a batch's inputs get to the device and its results back; torch's home."""
