"""What ends a run early."""


class Wrong(AssertionError):
    """A worker has done what it must not."""
