"""Profiles of the property tests: `make test` runs the short one; `--hypothesis-profile=long` looks much further."""

from hypothesis import HealthCheck, Phase, settings

settings.register_profile("short", max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("long", parent=settings.get_profile("short"), max_examples=8000)
# For planted mutants: a finding is enough, the smallest one is not wanted.
settings.register_profile(
    "hunt", parent=settings.get_profile("short"), max_examples=300, phases=[Phase.generate], derandomize=True
)
settings.load_profile("short")
