"""What a repository has loaded: pages of rows that are never changed, and what a change makes of them."""
