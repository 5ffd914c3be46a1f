"""Creating, changing and deleting rows through a repository."""
