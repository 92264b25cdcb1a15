"""Splitting every model of a zoo and writing down what happened: how the adapter is accepted."""
