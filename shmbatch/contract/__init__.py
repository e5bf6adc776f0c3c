"""What a batched function promises: signature, columns, batching parameters, exceptions."""
