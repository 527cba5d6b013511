"""The truth about a solve: why it does not converge, and what to try."""

from deqlm.diagnostics.audit.audit import audit_gradient
from deqlm.diagnostics.audit.audit_report import GradientAudit, MethodAudit
from deqlm.diagnostics.certificate import Certificate, certify
from deqlm.diagnostics.diagnosis.cause import Cause
from deqlm.diagnostics.diagnosis.contraction import Contraction
from deqlm.diagnostics.diagnosis.diagnose import diagnose
from deqlm.diagnostics.diagnosis.examine import Probes
from deqlm.diagnostics.diagnosis.findings import Backward, Findings, PathDependence, Plain
from deqlm.diagnostics.diagnosis.growth import Skip
from deqlm.diagnostics.diagnosis.parts import Parts
from deqlm.diagnostics.diagnosis.probes import InPlace, Mixing, Randomness
from deqlm.diagnostics.diagnosis.report import Diagnosis
from deqlm.diagnostics.diagnosis.suggestion import Suggestion
from deqlm.diagnostics.memory import MemoryForecast, forecast_memory
from deqlm.diagnostics.monitoring.monitor import Monitor, monitor
from deqlm.diagnostics.monitoring.record import Call
from deqlm.diagnostics.radius import spectral_radius

__all__ = [
    "Backward",
    "Call",
    "Cause",
    "Certificate",
    "Contraction",
    "Diagnosis",
    "Findings",
    "GradientAudit",
    "InPlace",
    "MemoryForecast",
    "MethodAudit",
    "Mixing",
    "Monitor",
    "Parts",
    "PathDependence",
    "Plain",
    "Probes",
    "Randomness",
    "Skip",
    "Suggestion",
    "audit_gradient",
    "certify",
    "diagnose",
    "forecast_memory",
    "monitor",
    "spectral_radius",
]
