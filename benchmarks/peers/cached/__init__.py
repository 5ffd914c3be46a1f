"""`GET /topics`: the whole list, which no peer may read from the database during a request."""
