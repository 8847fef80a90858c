"""Settings of the systems that are more than one adapter on one task, a group each."""

from rmlora.sections.continual import ContinualSettings
from rmlora.sections.derivative_free import DerivativeFreeSettings
from rmlora.sections.federated import FederatedSettings
from rmlora.sections.mixture import MixtureSettings
from rmlora.sections.section import Section

__all__ = ["ContinualSettings", "DerivativeFreeSettings", "FederatedSettings", "MixtureSettings", "Section"]
