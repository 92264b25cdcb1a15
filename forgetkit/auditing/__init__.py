"""Evidence about what a model still knows: outputs, attacks, audits, a record and a verdict."""
