"""Training, tables and speed reports of the built-in benchmark."""
