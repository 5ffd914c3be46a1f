"""Real projects' models, each served beside what Django gives."""
