"""This package side by side with what people use instead, measured in one run."""
