"""Loaders in, sample sets out: finding labels, splitting by goal, reading batches."""
