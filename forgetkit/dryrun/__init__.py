"""Finding the head of any classifier by recording one forward pass and reading its dataflow."""
