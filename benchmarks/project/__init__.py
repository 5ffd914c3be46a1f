"""The Django project that every peer serves."""
