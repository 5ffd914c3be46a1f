"""Filters: from query parameters to Django's SQL, and the pages that it selects."""
