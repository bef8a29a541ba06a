"""All that is fuzzed, by name."""

from collections.abc import Mapping

from tests.fuzz import answers, bodies, files, spoken, wire
from tests.fuzz.target import Target

FAMILIES = (wire, spoken, answers, bodies, files)
TARGETS: Mapping[str, Target] = {target.name: target for family in FAMILIES for target in family.TARGETS}
