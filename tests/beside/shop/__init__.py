"""A shop whose models are made with packages that change how rows are read."""
