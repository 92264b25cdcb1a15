"""One file per method. The registry walks this folder; there is no list to maintain."""
