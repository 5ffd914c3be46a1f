"""What a repository reads from the database, how, and when: whole, by key, or live."""
