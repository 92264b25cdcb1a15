"""One file for each metric, attack or audit; the registry finds them by walking this folder."""
