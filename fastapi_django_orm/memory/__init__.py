"""The rows of a repository in memory: snapshots, their parts, and how and when they are loaded."""
