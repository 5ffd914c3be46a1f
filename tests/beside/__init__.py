"""Tests beside packages that people have installed, in an environment of their own: ``make beside``."""
