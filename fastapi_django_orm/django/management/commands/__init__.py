"""``manage.py coherence`` and ``manage.py refresh``."""
