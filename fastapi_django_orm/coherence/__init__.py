"""How a write anywhere reaches every worker: hints, one small module for each way they travel."""
