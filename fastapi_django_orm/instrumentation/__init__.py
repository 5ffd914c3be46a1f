"""Everything of other packages that is replaced while a lifespan is open, and the way back."""
