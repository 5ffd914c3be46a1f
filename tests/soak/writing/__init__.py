"""One writer: a process with connections of its own, and all the ways in which it writes."""
