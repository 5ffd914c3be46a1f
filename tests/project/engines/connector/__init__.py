"""MySQL, through another driver."""
