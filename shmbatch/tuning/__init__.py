"""How `shmbatch tune` chooses batching parameters: it measures, proposes, expects and checks."""
