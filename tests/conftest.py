"""What all tests share in pytest."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a loaded machine is no failure
settings.load_profile("any machine")
