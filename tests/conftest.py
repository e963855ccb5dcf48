"""Profiles of the property tests: `make test` runs the short one, `--hypothesis-profile=long` looks much further."""

from hypothesis import HealthCheck, settings

settings.register_profile("short", max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("long", parent=settings.get_profile("short"), max_examples=5000)
settings.load_profile("short")
