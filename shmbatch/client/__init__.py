"""What a producer process imports: connections, calls, function handles. Never the executor."""
