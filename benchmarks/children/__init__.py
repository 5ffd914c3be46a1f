"""Measurements in a fresh process, which prints one line of JSON."""
