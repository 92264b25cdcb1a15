"""The engine: one life of a request, whatever the method."""
