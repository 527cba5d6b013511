"""The truth about a solve: why it does not converge, and what to try."""

from deqlm.diagnostics.audit import audit_gradient
from deqlm.diagnostics.audit_report import GradientAudit, MethodAudit
from deqlm.diagnostics.cause import Cause
from deqlm.diagnostics.contraction import Contraction
from deqlm.diagnostics.diagnose import diagnose
from deqlm.diagnostics.examine import Probes
from deqlm.diagnostics.findings import Backward, Findings, PathDependence, Plain
from deqlm.diagnostics.growth import Skip
from deqlm.diagnostics.memory import MemoryForecast, forecast_memory
from deqlm.diagnostics.parts import Parts
from deqlm.diagnostics.probes import InPlace, Mixing, Randomness
from deqlm.diagnostics.report import Diagnosis
from deqlm.diagnostics.suggestion import Suggestion

__all__ = [
    "Backward",
    "Cause",
    "Contraction",
    "Diagnosis",
    "Findings",
    "GradientAudit",
    "InPlace",
    "MemoryForecast",
    "MethodAudit",
    "Mixing",
    "Parts",
    "PathDependence",
    "Plain",
    "Probes",
    "Randomness",
    "Skip",
    "Suggestion",
    "audit_gradient",
    "diagnose",
    "forecast_memory",
]
