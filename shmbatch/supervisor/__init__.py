"""The process that starts an executor anew when it dies; light, and without a thread."""
