"""Random writers of every kind beside real workers, whose every answer is judged, and compared in the end."""
