"""`GET /topics/{pk}` and `GET /latest`: every peer reads the database in every request."""
